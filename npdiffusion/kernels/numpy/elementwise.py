"""Sums, concatenation, activations and what else goes element by element. Where an array is large, the batch is split
over threads, although sums and copies are bound by memory."""

import math

import numpy as np

from ...threads import one_blas_thread, parallel
from .layout import pixel_rows, sums_over_pixels

__all__ = ["add", "bias_activation", "bias_activation_backward", "cat", "channel_sums", "squared_error",
           "squared_error_backward", "timestep_embedding"]

LARGE = 1 << 20  # elements; below, waking a thread costs more than it brings


def add(a, b, out=None):
    """a + b with broadcasting, in the memory order of the inputs."""
    if a.shape != b.shape or a.ndim < 2 or a.size < LARGE:
        return np.add(a, b, out=out)
    if out is None:
        out = np.empty_like(b if a.strides[-1] == 0 else a, dtype=np.result_type(a, b))
    parallel(lambda start, stop: np.add(a[start:stop], b[start:stop], out=out[start:stop]), len(a))
    return out


def cat(arrays, axis):
    """The arrays one after the other along ``axis``; NCHW arrays come out in channels-last memory."""
    if arrays[0].ndim != 4 or axis != 1 or sum(a.size for a in arrays) < LARGE:
        return np.concatenate(arrays, axis)
    n, _, h, w = arrays[0].shape
    edges = np.cumsum([0] + [a.shape[1] for a in arrays]).tolist()
    out = np.empty((n, h, w, edges[-1]), np.result_type(*arrays)).transpose(0, 3, 1, 2)

    def copy(start, stop):
        for a, first, last in zip(arrays, edges, edges[1:]):
            out[start:stop, first:last] = a[start:stop]

    parallel(copy, n)
    return out


def channel_sums(x):
    """Σ x over samples and pixels: (N, C, H, W) -> (C,)."""
    rows, c = pixel_rows(x), x.shape[1]
    if x.size < LARGE:
        with one_blas_thread():
            return sums_over_pixels(rows, c).sum(0)
    parts = parallel(lambda start, stop: sums_over_pixels(rows[start:stop], c).sum(0), len(rows))
    return sum(parts)


def bias_activation(x, bias, activation):
    """f(x + bias): bias (C,) or None; f "relu", "silu" or None; x (N, C, H, W), or (..., C)."""
    z = _biased(x, bias)
    return z * _sigmoid(z) if activation == "silu" else np.maximum(z, 0) if activation == "relu" else +z


def bias_activation_backward(g, x, bias, activation):
    """dx of ``bias_activation``; the bias's gradient is dx summed over all but the channels."""
    z = _biased(x, bias)
    if activation == "silu":
        s = _sigmoid(z)
        return g * s * (1 + z * (1 - s))
    return g * (z > 0) if activation == "relu" else +g


def _biased(x, bias):
    return x if bias is None else x + (bias[:, None, None] if x.ndim == 4 else bias)


def _sigmoid(x):
    y = np.tanh(0.5 * x)
    y += 1
    y *= 0.5
    return y


def squared_error(x, y, scale):
    """scale·Σ (x − y)², an array ()."""
    difference = x - y
    difference *= difference
    return np.asarray(difference.sum() * scale)


def squared_error_backward(g, x, y, scale):
    """dx of ``squared_error``, and −dy: 2·scale·g·(x − y)."""
    difference = x - y
    difference *= 2 * scale * g
    return difference


def timestep_embedding(t, dim, max_period, dtype):
    """cos(t·ω_i), then sin(t·ω_i), with ω_i = max_period^(−i/(dim/2)): t (N,) integers -> (N, dim)."""
    angle = t[:, None] * np.exp(np.arange(dim // 2) * (-math.log(max_period) / (dim // 2)))
    return np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(dtype, copy=False)
