"""Softmax and attention, over our own threads where the arrays are large."""

import numpy as np

from ...threads import one_blas_thread, parallel
from ..plain.attention import dropped
from .elementwise import LARGE
from .product import product

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


def softmax(x, axis):
    """y = e^(x − m) / Σ e^(x − m) along ``axis``; m = max x where e^x might overflow, else 0."""
    return _softmax(x, axis, 1.0, -np.inf)


def _softmax(x, axis, scale, lowest):
    """The softmax of scale·x, with m ≥ lowest: if that is finite, nothing but −∞ gives zeros instead of NaN."""
    def forward(axis, y, x):
        np.multiply(x, scale, out=y)
        if x.size and not max(-y.min(), y.max()) <= SAFE:  # or is NaN
            y -= np.maximum(_largest(y, axis), lowest)
        np.exp(y, out=y)
        y /= np.maximum(_sum(y, axis), np.finfo(y.dtype).tiny)

    return _over_batch(forward, axis, np.empty_like(x), x)


def softmax_backward(g, y, axis):
    """See ``plain.softmax_backward``."""
    def backward(axis, dx, g, y):
        np.multiply(g, y, out=dx)
        np.subtract(g, _sum(dx, axis), out=dx)
        dx *= y

    return _over_batch(backward, axis, np.empty_like(y), g, y)


@one_blas_thread()
def attention(query, key, value, mask, dropout, scale):
    """See ``plain.attention``."""
    scores = product(query, key.swapaxes(-1, -2))
    if mask is not None:
        scores *= scale
        scores, scale = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask, 1.0
    weights = _softmax(scores, -1, scale, np.finfo(scores.dtype).min)
    return product(dropped(weights, dropout), value), weights


@one_blas_thread()
def attention_backward(g, query, key, value, weights, dropout, scale):
    """See ``plain.attention_backward``."""
    dweights = product(g, value.swapaxes(-1, -2))
    dvalue = product(dropped(weights, dropout).swapaxes(-1, -2), g)
    dscores = softmax_backward(dropped(dweights, dropout), weights, -1)
    dquery, dkey = product(dscores, key), product(dscores.swapaxes(-1, -2), query)
    dquery *= scale  # here, and not in the scores, of which there are more
    dkey *= scale
    return dquery, dkey, dvalue, dscores
