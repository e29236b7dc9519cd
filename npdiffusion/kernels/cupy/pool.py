"""Pooling: each element of the result gathers its taps, or, backward, the windows that contain it."""

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch, struct
from .layout import channels_last, contiguous, to_nchw

POOL = np.dtype([("samples", "i4"), ("channels", "i4"), *((name, "i4", 2) for name in (
    "size", "out_size", "kernel", "stride", "padding", "dilation"))])  # struct Pool in pool.cu


def _launch(name, arrays, x, y, kernel_size, stride, padding, dilation):
    """A thread for four channels of each pixel of the last array (N, H, W, C); blocks along y for its samples."""
    n, h, w, c = arrays[-1].shape
    pairs = map(tuple, (x.shape[1:3], y.shape[1:3], kernel_size, stride, padding, dilation))
    grid = ceil_div(h * w * ceil_div(c, 4), 256), min(n, 65535)
    launch(kernel(name, "pool", x.dtype), grid, (256,), (*arrays, struct(POOL, n, c, *pairs)))
    return to_nchw(arrays[-1])


def max_pool2d(x, size, kernel, stride, padding, dilation):
    """See ``plain.max_pool2d``."""
    x = channels_last(x)
    y = cupy().empty((len(x), *size, x.shape[3]), x.dtype)
    return _launch("max_pool2d", (x, y), x, y, kernel, stride, padding, dilation)


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    """See ``plain.max_pool2d_backward``."""
    g, x, y = map(channels_last, (g, x, y))
    dx = cupy().empty(x.shape, x.dtype)
    return _launch("max_pool2d_backward", (g, x, y, dx), x, y, kernel, stride, padding, dilation)


def avg_pool2d(x, size, kernel, stride, padding, counts):
    """See ``plain.avg_pool2d``."""
    x = channels_last(x)
    y = cupy().empty((len(x), *size, x.shape[3]), x.dtype)
    return _launch("avg_pool2d", (x, contiguous(counts), y), x, y, kernel, stride, padding, (1, 1))


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    """See ``plain.avg_pool2d_backward``."""
    g = channels_last(g)
    dx = cupy().empty((len(g), *size, g.shape[3]), g.dtype)
    return _launch("avg_pool2d_backward", (g, contiguous(counts), dx), dx, g, kernel, stride, padding, (1, 1))
