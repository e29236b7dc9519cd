"""Softmax, over our own threads where the array is large."""

import numpy as np

from ...threads import parallel
from .elementwise import LARGE

__all__ = ["softmax", "softmax_backward"]

SAFE = 64  # e^±64 is far from overflow and underflow, and so are its sums


def _over_batch(function, axis, out, *arrays):
    """function(axis, out, *arrays) on slices of the first axis, if that is not the one to reduce over."""
    if out.size < LARGE // 4 or axis % out.ndim == 0:
        function(axis, out, *arrays)
    else:
        parallel(lambda start, stop: function(axis, out[start:stop], *(a[start:stop] for a in arrays)), len(out))
    return out


def _largest(x, axis):
    """max x along ``axis``, by halves: NumPy's own takes 2 ns an element along a short last axis."""
    if axis % x.ndim != x.ndim - 1:
        return x.max(axis, keepdims=True)
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        x = np.maximum(x[..., :half], x[..., n - half:])
    return x


def _sum(x, axis):
    """Σ x along ``axis``; a product with ones is faster than NumPy's sum along a short last axis."""
    if axis % x.ndim != x.ndim - 1:
        return x.sum(axis, keepdims=True)
    return np.vecdot(x, np.ones(x.shape[-1], x.dtype))[..., None]


def softmax(x, axis, scale=1.0):
    """y = e^(z − m) / Σ e^(z − m) along ``axis``, z = scale·x; m = max z where e^z might overflow, else 0."""
    def forward(axis, y, x):
        np.multiply(x, scale, out=y)
        if x.size and not max(-y.min(), y.max()) <= SAFE:  # or is NaN
            y -= _largest(y, axis)
        np.exp(y, out=y)
        y /= _sum(y, axis)

    return _over_batch(forward, axis, np.empty_like(x), x)


def softmax_backward(g, y, axis, scale=1.0):
    """dx = scale·y·(g − Σ g·y)."""
    def backward(axis, dx, g, y):
        np.multiply(g, y, out=dx)
        np.subtract(g, _sum(dx, axis), out=dx)
        dx *= y
        if scale != 1:
            dx *= scale

    return _over_batch(backward, axis, np.empty_like(y), g, y)
