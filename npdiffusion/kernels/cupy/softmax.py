"""Softmax along any axis: a warp for each row of the last axis, a thread for each column of another one."""

import math

import numpy as np

from ...backend import cupy
from .build import ceil_div, kernel, launch
from .layout import contiguous

__all__ = ["softmax", "softmax_backward"]


def _launch(name, arrays, axis, scale):
    shape, dtype = arrays[0].shape, arrays[0].dtype
    axis %= len(shape)
    length, inner = shape[axis], math.prod(shape[axis + 1:])
    columns = arrays[0].size // length if length else 0
    if inner == 1:
        args = *arrays, dtype.type(scale), columns, np.int32(length)
        launch(kernel(name.replace("softmax", "softmax_rows"), "softmax", dtype), (ceil_div(columns, 8),), (256,), args)
    else:
        args = *arrays, dtype.type(scale), columns, np.int32(length), inner
        name = name.replace("softmax", "softmax_columns")
        launch(kernel(name, "softmax", dtype), (ceil_div(columns, 256),), (256,), args)


def softmax(x, axis, scale=1.0):
    """y = e^(z − max z) / Σ e^(z − max z) along ``axis``, z = scale·x."""
    x = contiguous(x)
    y = cupy().empty(x.shape, x.dtype)
    _launch("softmax", (x, y), axis, scale)
    return y


def softmax_backward(g, y, axis, scale=1.0):
    """dx = scale·y·(g − Σ g·y)."""
    g, y = contiguous(g), contiguous(y)
    dx = cupy().empty(y.shape, y.dtype)
    _launch("softmax_backward", (g, y, dx), axis, scale)
    return dx
