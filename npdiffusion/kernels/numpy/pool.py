"""Pooling: a window is a few taps, and each tap over all windows at once is one strided view of the input."""

import numpy as np

from ...threads import parallel
from .layout import channels_last, to_nchw


def _padded(x, out_size, kernel, stride, padding, dilation, value):
    """x (N, H, W, C) with ``value`` around it: padding in front, and behind it what the last window needs."""
    behind = [max(0, (o - 1) * s + d * (k - 1) + 1 - size - p)
              for o, k, s, p, d, size in zip(out_size, kernel, stride, padding, dilation, x.shape[1:3])]
    if not any(padding) and not any(behind):
        return x
    return np.pad(x, ((0, 0), (padding[0], behind[0]), (padding[1], behind[1]), (0, 0)), constant_values=value)


def _taps(x, out_size, kernel, stride, dilation):
    """For each place in the window: x's elements there, for all windows, as a view (N, H_out, W_out, C)."""
    (sh, sw), (dh, dw) = stride, dilation
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield x[:, i * dh: i * dh + sh * (out_size[0] - 1) + 1: sh, j * dw: j * dw + sw * (out_size[1] - 1) + 1: sw]


def max_pool2d(x, size, kernel, stride, padding, dilation):
    """See ``plain.max_pool2d``."""
    x = _padded(channels_last(x), size, kernel, stride, padding, dilation, -np.inf)
    out = np.empty((len(x), *size, x.shape[3]), x.dtype)

    def run(start, stop):
        first, *others = _taps(x[start:stop], size, kernel, stride, dilation)
        y = out[start:stop]
        np.copyto(y, first)
        for tap in others:
            np.maximum(y, tap, out=y)

    parallel(run, len(x))
    return to_nchw(out)


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    """See ``plain.max_pool2d_backward``."""
    size, out_size = x.shape[2:], y.shape[2:]
    x, y, g = channels_last(x), channels_last(y), channels_last(g)
    padded = _padded(x, out_size, kernel, stride, padding, dilation, -np.inf)
    out, bits = np.zeros(padded.shape, x.dtype), f"i{g.itemsize}"
    whole = g.view(bits)  # numbers for which ∞·0 is 0
    overlap = any(s < d * (k - 1) + 1 for s, d, k in zip(stride, dilation, kernel))

    def run(start, stop):
        free = np.ones(y[start:stop].shape, bool)  # windows whose maximum was not yet found
        taps = (_taps(a[start:stop], out_size, kernel, stride, dilation) for a in (padded, out))
        for tap, dtap in zip(*taps):
            hit = tap == y[start:stop]
            hit &= free
            free ^= hit
            if overlap:
                dtap += (whole[start:stop] * hit).view(g.dtype)
            else:
                np.multiply(whole[start:stop], hit, out=dtap.view(bits))

    parallel(run, len(x))
    return to_nchw(out[:, padding[0]:padding[0] + size[0], padding[1]:padding[1] + size[1]])


def avg_pool2d(x, size, kernel, stride, padding, counts):
    """See ``plain.avg_pool2d``."""
    x = _padded(channels_last(x), size, kernel, stride, padding, (1, 1), 0)
    out = sum(_taps(x, size, kernel, stride, (1, 1)))
    return to_nchw(out / counts[:, :, None])


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    """See ``plain.avg_pool2d_backward``."""
    n, c, *out_size = g.shape
    share = channels_last(g) / counts[:, :, None]
    like = np.broadcast_to(np.zeros((), g.dtype), (n, *size, c))
    out = np.zeros_like(_padded(like, out_size, kernel, stride, padding, (1, 1), 0), subok=False, order="C")
    for tap in _taps(out, out_size, kernel, stride, (1, 1)):
        tap += share
    return to_nchw(out[:, padding[0]:padding[0] + size[0], padding[1]:padding[1] + size[1]])
