"""Attention, three launches forward and five backward, in which the heads are read where they lie; and softmax along
any axis: a warp for each column along the last one, a thread for each along another one."""

import math

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch
from .layout import contiguous
from .product import product


def softmax(x, axis):
    """See ``plain.softmax``."""
    return _softmax("softmax", axis, (x,), -math.inf)


def softmax_backward(g, y, axis):
    """See ``plain.softmax_backward``."""
    return _softmax("softmax_backward", axis, (g, y))


def _softmax(name, axis, arrays, *numbers):
    arrays = [*map(contiguous, arrays)]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    out = cupy().empty(shape, dtype)
    length, inner = shape[axis], math.prod(shape[axis % len(shape) + 1:])
    columns, lanes = out.size // length if length else 0, 32 if inner == 1 else 1
    args = *arrays, out, columns, np.int32(length), inner, *numbers
    launch(kernel(name, "attention", dtype, LANES=lanes), (ceil_div(columns * lanes, 256),), (256,), args)
    return out


def attention(query, key, value, mask, dropout, scale):
    """See ``plain.attention``."""
    scores = product(query, key.swapaxes(-1, -2), scale=scale)
    if mask is not None:
        scores = cupy().where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    weights = _softmax("softmax", -1, (scores,), float(np.finfo(scores.dtype).min))
    return product(_dropped(weights, dropout), value), weights


def attention_backward(g, query, key, value, weights, dropout, scale):
    """See ``plain.attention_backward``."""
    dvalue = product(_dropped(weights, dropout).swapaxes(-1, -2), g)
    dweights = product(g, value.swapaxes(-1, -2))
    dscores = softmax_backward(_dropped(dweights, dropout), weights, -1)
    return product(dscores, key, scale=scale), product(dscores.swapaxes(-1, -2), query, scale=scale), dvalue, dscores


def _dropped(x, dropout):
    """See ``plain.attention.dropped``."""
    return x if dropout is None else cupy().where(dropout, x, 0) * dropout
