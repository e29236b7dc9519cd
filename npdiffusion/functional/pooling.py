"""Pooling and nearest-neighbour resizing."""

import math

import numpy as np

from ..device import array_module, to_device
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import floats, of_images, pair, pool_geometry


@of_images
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The maximum over windows: y[p] = max_k x[p·stride + k·dilation − padding], −∞ outside.

    input (N, C, H, W) or (C, H, W); stride is the kernel size by default. The gradient goes to the first maximum of
    a window. H_out = ⌊(H + 2·padding − dilation·(k − 1) − 1)/stride⌋ + 1 (⌈ ⌉ with ceil_mode).
    return_indices: also return where these maxima are, as numbers of pixels, row by row.
    """
    x, size, *geometry = pool_geometry("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    y = kernels(x).max_pool2d(x, size, *geometry)
    out = record(y, "max_pool2d", (input,), lambda g: (kernels(g).max_pool2d_backward(g, x, y, *geometry),))
    return (out, Tensor(_places(x, size, *geometry))) if return_indices else out


def _places(x, size, *geometry):
    """The number of the pixel at which the first maximum of each window is: (N, C, H_out, W_out)."""
    (n, c, h, w), xp = x.shape, array_module(x)
    rows, columns = [np.arange(o)[:, None] * s - p + np.arange(k) * d for o, k, s, p, d in zip(size, *geometry)]
    rows, columns = rows[:, None, :, None], columns[:, None]
    outside = to_device(((rows < 0) | (rows >= h) | (columns < 0) | (columns >= w)).reshape(*size, -1), x)
    pixels = to_device((rows.clip(0, h - 1) * w + columns.clip(0, w - 1)).reshape(*size, -1), x)  # [p, q, k]
    windows = xp.where(outside, -np.inf, x.reshape(n, c, h * w)[..., pixels])  # [n, c, p, q, k]
    first = xp.expand_dims(windows.argmax(-1), -1)
    return xp.take_along_axis(xp.broadcast_to(pixels, windows.shape), first, -1).squeeze(-1)


@of_images
def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
               divisor_override=None):
    """The mean over windows; arguments and shapes as ``max_pool2d``.

    count_include_pad: zeros of the padding count as elements. divisor_override: divide by this number instead.
    """
    x, size, *geometry, _ = pool_geometry("avg_pool2d", input, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    inside, counts = input.shape[2:], _window_counts(x, size, *geometry, count_include_pad, divisor_override)
    y = kernels(x).avg_pool2d(x, size, *geometry, counts)
    return record(y, "avg_pool2d", (input,), lambda g: (kernels(g).avg_pool2d_backward(g, inside, *geometry, counts),))


def _window_counts(x, size, kernel, stride, padding, count_include_pad, divisor_override):
    """(H_out, W_out), on x's device: what the sum over each window is divided by."""
    xp = array_module(x)
    if divisor_override is not None:
        return xp.full(size, float(divisor_override), x.dtype)
    around = padding if count_include_pad else (0, 0)  # which counts
    ones = xp.ones((1, 1, *(n + 2 * p for n, p in zip(x.shape[2:], around))), x.dtype)
    front = [p - q for p, q in zip(padding, around)]
    return kernels(x).avg_pool2d(ones, size, kernel, stride, front, xp.ones(size, x.dtype))[0, 0]


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
                antialias=False):
    """Resize by nearest neighbour: y[p] = x[⌊p·in/out⌋], with scale_factor x[⌊p/scale_factor⌋].

    input (N, C, H, W); give ``size`` (int or pair) or ``scale_factor`` (number or pair), not both.
    recompute_scale_factor: a scale_factor only decides the size. align_corners, antialias: of other modes.
    """
    [x] = floats("interpolate", input=input)
    if input.ndim != 4:  # PyTorch takes three axes for (N, C, L)
        raise ValueError(f"interpolate expects an input of shape (N, C, H, W), got {input.shape}")
    if mode != "nearest" or align_corners is not None or antialias:
        raise ValueError(f"interpolate supports mode='nearest' only, which has no align_corners and no antialias; got "
                         f"{mode!r}, align_corners={align_corners!r}, antialias={antialias!r}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate expects either size or scale_factor")
    sides, xp = input.shape[2:], array_module(x)
    if size is None:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
        if len(factors) != 2 or not min(factors) > 0:
            raise ValueError(f"scale_factor must be a positive number or a pair of them, got {scale_factor!r}")
        size = tuple(int(n * f) for n, f in zip(sides, factors))
        if recompute_scale_factor:
            return interpolate(input, size)
        rows, columns = [xp.minimum((xp.arange(o) / f).astype(int), n - 1) for o, f, n in zip(size, factors, sides)]
    else:
        size = pair(size, "size")
        factors = [o / n for o, n in zip(size, sides)]
        rows, columns = [xp.arange(o) * n // o for o, n in zip(size, sides)]
    if min(size) < 1:
        raise ValueError(f"interpolate to {size} leaves nothing of the input {input.shape}")
    x = x.transpose(0, 2, 3, 1)  # channels last, as in memory: whole pixels are copied

    def collected(g, axis, source, factor):  # a source pixel collects from its copies: the first ones, the next, ...
        copies = xp.arange(x.shape[axis])[:, None] == source  # [h, h_out]
        first, count, total = copies.argmax(1), copies.sum(1), 0
        for k in range(math.ceil(factor)):
            copy = g.take(xp.minimum(first + k, len(source) - 1), axis)
            total = total + xp.where((k < count).reshape(-1, *[1] * (3 - axis)), copy, 0)
        return total

    def backward(g):
        dx = collected(g.transpose(0, 2, 3, 1), 1, rows, factors[0])  # [n, h, w_out, c]
        return (collected(dx, 2, columns, factors[1]).transpose(0, 3, 1, 2),)

    return record(x.take(rows, 1).take(columns, 2).transpose(0, 3, 1, 2), "interpolate", (input,), backward)
