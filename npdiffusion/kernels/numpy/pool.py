"""Pooling: a window is a few taps, and each tap over all windows at once is one strided view of the input."""

import numpy as np

from ...threads import parallel, threads_for
from ..plain import pool
from ..plain.windows import padded, taps
from .elementwise import MOVED
from .layout import channels_last, to_nchw


def max_pool2d(x, size, kernel, stride, padding, dilation):
    x, _ = padded(to_nchw(channels_last(x)), size, kernel, stride, padding, dilation, -np.inf)
    out = to_nchw(np.empty((len(x), *size, x.shape[1]), x.dtype))

    def run(start, stop):
        y, (first, *others) = out[start:stop], [x[start:stop][at] for _, _, at in taps(size, kernel, stride, dilation)]
        np.copyto(y, first)
        for tap in others:
            np.maximum(y, tap, out=y)

    parallel(run, len(x), threads_for(MOVED * x.size))
    return out


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    size, g = y.shape[2:], to_nchw(channels_last(g))
    x, inside = padded(to_nchw(channels_last(x)), size, kernel, stride, padding, dilation, -np.inf)
    overlap = any(s < d * (k - 1) + 1 for s, d, k in zip(stride, dilation, kernel))
    tiled = not overlap and all(n == k * o for n, k, o in zip(x.shape[2:], kernel, size))
    out, bits = np.empty_like(x) if tiled else np.zeros_like(x), f"i{g.itemsize}"
    whole = g.view(bits)  # numbers for which ∞·0 is 0

    def run(start, stop):
        free = np.ones_like(y[start:stop], bool)  # windows whose maximum was not yet found
        for _, _, at in taps(size, kernel, stride, dilation):
            hit, dtap = x[start:stop][at] == y[start:stop], out[start:stop][at]
            hit &= free
            free ^= hit
            if overlap:
                dtap += (whole[start:stop] * hit).view(g.dtype)
            else:
                np.multiply(whole[start:stop], hit, out=dtap.view(bits))

    parallel(run, len(x), threads_for(MOVED * x.size))
    return out[inside]


def avg_pool2d(x, size, kernel, stride, padding, counts):
    return pool.avg_pool2d(to_nchw(channels_last(x)), size, kernel, stride, padding, counts)


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    return pool.avg_pool2d_backward(to_nchw(channels_last(g)), size, kernel, stride, padding, counts)
