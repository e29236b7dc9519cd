"""Softmax along any axis: a warp for each column along the last axis, a thread for each along another one."""

import math

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch
from .layout import contiguous

__all__ = ["softmax", "softmax_backward"]


def softmax(x, axis):
    """y = e^(x − max x) / Σ e^(x − max x) along ``axis``."""
    return _launch("softmax", axis, x)


def softmax_backward(g, y, axis):
    """dx = y·(g − Σ g·y) of ``softmax``, from its result y."""
    return _launch("softmax_backward", axis, g, y)


def _launch(name, axis, *arrays):
    arrays = [*map(contiguous, arrays)]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    out = cupy().empty(shape, dtype)
    length, inner = shape[axis], math.prod(shape[axis % len(shape) + 1:])
    columns, lanes = out.size // length if length else 0, 32 if inner == 1 else 1
    args = *arrays, out, columns, np.int32(length), inner
    launch(kernel(name, "softmax", dtype, LANES=lanes), (ceil_div(columns * lanes, 256),), (256,), args)
    return out
