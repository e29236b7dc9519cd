"""Solutions of lesson 5."""

import numpy as np


def betas_from(alphas_cumprod):
    before = np.concatenate([[1.0], alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / before


def posterior(x0, x_t, alpha_bar, alpha_bar_prev):
    # log density: −(x − √ᾱ_{t-1} x_0)² / 2(1 − ᾱ_{t-1}) − (x_t − √α_t x)² / 2β_t, a parabola in x. What stands before
    # −x²/2 is the precision, what stands before x is the precision times the mean.
    alpha = alpha_bar / alpha_bar_prev
    precision = 1 / (1 - alpha_bar_prev) + alpha / (1 - alpha)
    mean = (np.sqrt(alpha_bar_prev) / (1 - alpha_bar_prev) * x0 + np.sqrt(alpha) / (1 - alpha) * x_t) / precision
    return mean, 1 / precision


def score(x_t, x0_mean, alpha_bar):
    # ∇p / p = Σ_i w_i (√ᾱ_t x_i − x_t) / (1 − ᾱ_t), and the weights w_i add up to 1
    return (np.sqrt(alpha_bar) * x0_mean - x_t) / (1 - alpha_bar)


def posterior_covariance(denoiser, x_t, alpha_bar, h=1e-4):
    # ∂w_i/∂x_t = w_i √ᾱ_t / (1 − ᾱ_t) (x_i − m)ᵀ, so ∂m/∂x_t = √ᾱ_t / (1 − ᾱ_t) Σ_i w_i x_i (x_i − m)ᵀ
    jacobian = np.stack([denoiser(x_t + h * e) - denoiser(x_t - h * e) for e in np.eye(len(x_t))], 1) / (2 * h)
    return (1 - alpha_bar) / np.sqrt(alpha_bar) * jacobian
