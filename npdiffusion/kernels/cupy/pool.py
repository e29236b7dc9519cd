"""Pooling: each element of the result gathers its taps, or, backward, the windows that contain it."""

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch, struct
from .layout import packed, to_nchw

POOL = np.dtype([("samples", "i4"), ("channels", "i4"), *((name, "i4", 2) for name in (
    "size", "out_size", "kernel", "stride", "padding", "dilation"))])  # struct Pool in pool.cu


def _launch(name, arrays, size, x_size, y_size, kernel_size, stride, padding, dilation):
    """A thread for four channels of each pixel of the result (N, C, *size); blocks along y for its samples."""
    arrays = [packed(a) for a in arrays]
    n, _, _, c = arrays[0].shape
    result = cupy().empty((n, *size, c), arrays[0].dtype)
    pairs = map(tuple, (x_size, y_size, kernel_size, stride, padding, dilation))
    grid = ceil_div(size[0] * size[1] * ceil_div(c, 4), 256), min(n, 65535)
    launch(kernel(name, "pool", result.dtype), grid, (256,), (*arrays, result, struct(POOL, n, c, *pairs)))
    return to_nchw(result)


def max_pool2d(x, size, kernel, stride, padding, dilation):
    return _launch("max_pool2d", (x,), size, x.shape[2:], size, kernel, stride, padding, dilation)


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    size, out_size = x.shape[2:], y.shape[2:]
    return _launch("max_pool2d_backward", (g, x, y), size, size, out_size, kernel, stride, padding, dilation)


def avg_pool2d(x, size, kernel, stride, padding, counts):
    return _launch("avg_pool2d", (x, counts), size, x.shape[2:], size, kernel, stride, padding, (1, 1))


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    return _launch("avg_pool2d_backward", (g, counts), size, size, g.shape[2:], kernel, stride, padding, (1, 1))
