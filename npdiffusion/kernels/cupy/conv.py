"""Convolution and transposed convolution, with their gradients: three products (conv.cu) serve all of them.

A transposed convolution is the input gradient of the convolution with the same weight, and the other way round.
Weights are (C_out, C_in/groups, kh, kw) over channels-last memory, and so are their gradients; others are copied.
"""

import math
from functools import lru_cache

import numpy as np

from ...backend import cupy, tf32_allowed
from .build import ceil_div, kernel, launch, struct
from .elementwise import channel_sums, sum_parts
from .layout import channels_last, contiguous, to_nchw

__all__ = ["conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward"]

CONV = np.dtype([*((name, "i4") for name in ("samples", "groups", "channels", "out_channels")), *(
    (name, "i4", 2) for name in ("size", "out_size", "kernel", "stride", "corner", "dilation"))])  # struct Conv
WARPS = {(2, 2), (4, 1), (1, 4)}  # of a block of conv.cu, down and across: each computes 32 x 32 results
DEPTH = 16  # of conv.cu
PIXELS = 2**31 - 2**10  # that an int can count, and a tile beyond
BLOCKS = 512  # that sum a weight gradient, about: enough to keep a GPU busy


def conv2d(x, weight, bias, stride, padding, dilation, groups):
    """y (N, C_out, H_out, W_out); bias (C_out,) or None; padding ((top, bottom), (left, right))."""
    size = tuple((n + sum(p) - d * (k - 1) - 1) // s + 1
                 for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation))
    return forward(x, weight, bias, size, stride, padding, dilation, groups)


def conv2d_backward(g, x, weight, stride, padding, dilation, groups, need_input=True, need_weight=True):
    """Gradients dx, dweight and dbias of <g, conv2d(x, weight) + bias>; None for those that are not needed."""
    g, settings = to_nchw(channels_last(g)), (stride, padding, dilation, groups)
    dx = input_gradient(g, weight, None, x.shape[2:], *settings) if need_input else None
    return dx, *(weight_gradient(g, x, weight.shape, *settings) if need_weight else (None, None))


def conv_transpose2d(x, weight, bias, stride, padding, output_padding, dilation, groups):
    """Transposed convolution: x (N, C_in, H, W), weight (C_in, C_out/groups, kh, kw) -> y."""
    size = tuple((n - 1) * s - sum(p) + d * (k - 1) + e + 1 for n, k, s, p, d, e in zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding))
    return input_gradient(x, weight, bias, size, stride, padding, dilation, groups)


def conv_transpose2d_backward(
    g, x, weight, stride, padding, output_padding, dilation, groups, need_input=True, need_weight=True
):
    """Gradients of <g, conv_transpose2d(x, weight) + bias>, where <g, conv_transpose2d(x, weight)> =
    <conv2d(g, weight), x>."""
    g, settings = to_nchw(channels_last(g)), (stride, padding, dilation, groups)
    dx = forward(g, weight, None, x.shape[2:], *settings) if need_input else None
    if not need_weight:
        return dx, None, None
    return dx, weight_gradient(x, g, weight.shape, *settings)[0], channel_sums(g)


def forward(x, weight, bias, size, *settings):
    """Convolution of x, with y of this size; settings: stride, padding, dilation, groups."""
    x, weight, bias = channels_last(x), channels_last(weight), contiguous(bias)
    y = cupy().empty((len(x), *size, len(weight)), x.dtype)
    conv, groups = _conv(x.shape, y.shape, weight.shape, *settings), settings[-1]
    down, across = (4, 1) if len(weight) // groups <= 32 else (2, 2)
    tiles = ceil_div(y.size // len(weight), 32 * down) * ceil_div(len(weight) // groups, 32 * across)
    launch(_kernel("conv_forward", x, down, across), (tiles, 1, groups), (128,), (x, weight, bias, y, conv))
    return to_nchw(y)


def input_gradient(g, weight, bias, size, stride, padding, dilation, groups, onto=None):
    """dx, of this size, plus a bias, plus the array ``onto``."""
    g, weight, bias = channels_last(g), channels_last(weight), contiguous(bias)
    onto, c, (sh, sw) = None if onto is None else channels_last(onto), weight.shape[3], stride
    dx = cupy().empty((len(g), *size, c * groups), g.dtype)
    conv = _conv(dx.shape, g.shape, weight.shape, stride, padding, dilation, groups)
    down, across = (4, 1) if c <= 32 else (2, 2)
    pixels = len(g) * ceil_div(size[0], sh) * ceil_div(size[1], sw)  # of a phase
    grid = ceil_div(pixels, 32 * down) * ceil_div(c, 32 * across), 1, groups * sh * sw
    launch(_kernel("conv_input_gradient", g, down, across), grid, (128,), (g, weight, bias, onto, dx, conv))
    return to_nchw(dx)


def weight_gradient(g, x, shape, *settings):
    """dweight, of this shape, and the sums of g, which are dbias; in slices of the pixels, a whole tile of 16 of them or
    more, that are summed afterwards."""
    g, x = channels_last(g), channels_last(x)
    out_channels, c, *kernel = shape
    conv, groups = _conv(x.shape, g.shape, (out_channels, *kernel, c), *settings), settings[-1]
    rows, terms = out_channels // groups, kernel[0] * kernel[1] * c
    down, across = (1, 4) if rows <= 32 else (2, 2)
    tiles = ceil_div(rows, 32 * down) * ceil_div(terms, 32 * across)
    slices = max(1, min(BLOCKS // (tiles * groups), g.size // out_channels // (8 * DEPTH)))
    parts = cupy().empty((slices, out_channels * (terms + 1)), g.dtype)
    launch(_kernel("conv_weight_gradient", g, down, across), (tiles, slices, groups), (128,), (g, x, parts, conv))
    sums, size = sum_parts(parts), out_channels * terms
    return to_nchw(sums[:size].reshape(out_channels, *kernel, c)), sums[size:]


@lru_cache(1024)
def _conv(x_shape, y_shape, weight_shape, stride, padding, dilation, groups):
    """struct Conv for the convolution of x to y, all shapes channels-last."""
    if max(math.prod(x_shape[:3]), math.prod(y_shape[:3])) > PIXELS:
        raise ValueError(f"convolution: images of more than {PIXELS} pixels together; split the batch of {x_shape[0]}")
    n, *size, _ = x_shape
    out_channels, *kernel, c = weight_shape
    corner = tuple(before for before, _ in padding)
    pairs = (tuple(size), y_shape[1:3], tuple(kernel), tuple(stride), corner, tuple(dilation))
    return struct(CONV, n, groups, c, out_channels // groups, *pairs)


def _kernel(name, x, down, across):
    tf32 = int(x.dtype == np.float32 and tf32_allowed())
    return kernel(name, "conv", x.dtype, WARPS_DOWN=down, WARPS_ACROSS=across, TF32=tf32)
