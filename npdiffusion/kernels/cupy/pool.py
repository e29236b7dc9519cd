"""Pooling: each element of the result gathers its taps, or, backward, the windows that contain it."""

import numpy as np

from ...backend import cupy
from .build import ceil_div, kernel, launch, struct
from .layout import channels_last, contiguous, to_nchw

__all__ = ["avg_pool2d", "avg_pool2d_backward", "max_pool2d", "max_pool2d_backward"]

POOL = np.dtype([("samples", "i4"), ("channels", "i4"), *((name, "i4", 2) for name in (
    "size", "out_size", "kernel", "stride", "padding", "dilation"))])  # struct Pool in pool.cu


def _pool(shape, out_size, kernel, stride, padding, dilation):
    """The geometry for an input of this shape (N, H, W, C)."""
    n, *size, c = shape
    return struct(POOL, n, c, tuple(size), *map(tuple, (out_size, kernel, stride, padding, dilation)))


def _launch(name, arrays, pool):
    """A thread for four channels of each pixel of the last array (N, H, W, C); blocks along y for its samples."""
    n, h, w, c = arrays[-1].shape
    grid = ceil_div(h * w * ceil_div(c, 4), 256), min(n, 65535)
    launch(kernel(name, "pool", arrays[0].dtype), grid, (256,), (*arrays, pool))


def max_pool2d(x, out_size, kernel, stride, padding, dilation):
    """y[p] = max over the taps k of x[p·stride + k·dilation − padding]; x (N, C, H, W), outside it −∞. NaN wins."""
    x = channels_last(x)
    y = cupy().empty((len(x), *out_size, x.shape[3]), x.dtype)
    _launch("max_pool2d", (x, y), _pool(x.shape, out_size, kernel, stride, padding, dilation))
    return to_nchw(y)


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    """dx of ``max_pool2d``: each gradient goes to the first tap (row by row) that equals the maximum y."""
    g, x, y = channels_last(g), channels_last(x), channels_last(y)
    dx = cupy().empty(x.shape, x.dtype)
    pool = _pool(x.shape, y.shape[1:3], kernel, stride, padding, dilation)
    _launch("max_pool2d_backward", (g, x, y, dx), pool)
    return to_nchw(dx)


def avg_pool2d(x, out_size, kernel, stride, padding, counts):
    """y[p] = Σ over the taps k of x[p·stride + k − padding] / counts[p]; x (N, C, H, W), outside it 0."""
    x, counts = channels_last(x), contiguous(counts)
    y = cupy().empty((len(x), *out_size, x.shape[3]), x.dtype)
    _launch("avg_pool2d", (x, counts, y), _pool(x.shape, out_size, kernel, stride, padding, (1, 1)))
    return to_nchw(y)


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    """dx of ``avg_pool2d`` for an input of spatial ``size``: each gradient spread over its window's taps."""
    g, counts = channels_last(g), contiguous(counts)
    n, *out_size, c = g.shape
    dx = cupy().empty((n, *size, c), g.dtype)
    _launch("avg_pool2d_backward", (g, counts, dx), _pool(dx.shape, out_size, kernel, stride, padding, (1, 1)))
    return to_nchw(dx)
