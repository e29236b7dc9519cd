"""Denoisers of NumPy arrays that know the training pictures: what a learned one should be measured against."""

import math

import numpy as np

from .checks import check_sample


class PCAWiener:
    """The best linear denoiser: E[x_0 | x_t] if pictures were Gaussian with the training pictures' mean and covariance.

    x̂_0 = m + Σ_k u_k √ᾱ_t λ_k / (ᾱ_t λ_k + 1 − ᾱ_t) u_kᵀ (x_t − √ᾱ_t m), with the principal components u_k and their
    variances λ_k (Wiener's filter in their basis; linear minimum mean squared error).

    images: (N, …) training pictures. ``wiener(noisy, alpha_bar)`` takes x_t (M, …) and ᾱ_t, and returns x̂_0.
    """

    def __init__(self, images):
        check_sample(images, "images")
        flat = images.reshape(len(images), -1)
        self.mean = flat.mean(0)
        centred = flat - self.mean
        self.variances, self.components = np.linalg.eigh((centred.T @ centred / len(flat)).astype(np.float64))

    def __call__(self, noisy, alpha_bar):
        check_sample(noisy, "noisy")
        a = math.sqrt(alpha_bar)
        gain = a * self.variances / (alpha_bar * self.variances + 1 - alpha_bar)
        rest = noisy.reshape(len(noisy), -1) - a * self.mean
        x0 = self.mean + rest @ (self.components * gain) @ self.components.T
        return x0.astype(noisy.dtype).reshape(noisy.shape)


def posterior_mean(noisy, alpha_bar, images, block=250):
    """E[x_0 | x_t] if the training pictures were all there is: Σ_i w_i x_i, the optimum of the training loss itself.

    w = softmax_i(−‖x_t − √ᾱ_t x_i‖² / (2 (1 − ᾱ_t)))

    noisy: x_t, (M, …). alpha_bar: ᾱ_t < 1. images: (N, …) training pictures. block: rows of the M × N weights in
    memory at a time. Returns an array like noisy.
    """
    check_sample(noisy, "noisy")
    check_sample(images, "images")
    x, flat = noisy.reshape(len(noisy), -1), images.reshape(len(images), -1)
    a, half_norms = math.sqrt(alpha_bar), 0.5 * np.einsum("ij,ij->i", flat, flat)
    result = np.empty_like(x)
    for i in range(0, len(x), block):
        logits = (x[i:i + block] @ flat.T - a * half_norms) * (a / (1 - alpha_bar))  # without ‖x_t‖², common to all
        w = np.exp(logits - logits.max(1, keepdims=True))
        result[i:i + block] = w @ flat / w.sum(1, keepdims=True)
    return result.reshape(noisy.shape)
