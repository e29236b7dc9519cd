"""Convolution and transposed convolution, with their gradients: three products (conv.cu) serve all of them.

A transposed convolution is the input gradient of the convolution with the same weight, and the other way round.
Weights are (C_out, C_in/groups, kh, kw) over channels-last memory, and so are their gradients; others are copied.
"""

import math
from functools import lru_cache

import numpy as np

from ...device import cupy
from .build import ceil_div, launch, struct
from .elementwise import channel_sums
from .layout import channels_last, contiguous, to_nchw
from .tile import gradients, tile_kernel, tiles_of

CONV = np.dtype([*((name, "i4") for name in ("samples", "groups", "channels", "out_channels")), *(
    (name, "i4", 2) for name in ("size", "out_size", "kernel", "stride", "padding", "dilation"))])  # struct Conv
PIXELS = 2**31 - 2**10  # that an int can count, and a tile beyond


def conv2d(x, weight, bias, size, stride, padding, dilation, groups):
    x, weight = channels_last(x), channels_last(weight)
    y = cupy().empty((len(x), *size, len(weight)), x.dtype)
    conv = _conv(x.shape, y.shape, weight.shape, stride, padding, dilation, groups)
    pixels = len(x) * size[0] * size[1]
    return _launch("conv_forward", x, weight, bias, y, conv, pixels, len(weight) // groups, groups)


def conv2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    need_input, need_weight, need_bias = needs
    settings, dweight, dbias = (stride, padding, dilation, groups), None, None
    dx = conv_transpose2d(g, weight, None, x.shape[2:], *settings) if need_input else None
    if need_weight:
        dweight, dbias = weight_gradient(g, x, weight.shape, *settings)  # the second costs nothing
    elif need_bias:
        dbias = channel_sums(g)
    return dx, dweight, dbias if need_bias else None


def conv_transpose2d(x, weight, bias, size, stride, padding, dilation, groups):
    x, weight = channels_last(x), channels_last(weight)
    channels, (sh, sw) = weight.shape[3], stride
    y = cupy().empty((len(x), *size, channels * groups), x.dtype)
    conv = _conv(y.shape, x.shape, weight.shape, stride, padding, dilation, groups)
    pixels = len(x) * ceil_div(size[0], sh) * ceil_div(size[1], sw)  # of a phase
    return _launch("conv_input_gradient", x, weight, bias, y, conv, pixels, channels, groups * sh * sw)


def conv_transpose2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    need_input, need_weight, need_bias = needs
    g, settings = to_nchw(channels_last(g)), (stride, padding, dilation, groups)
    dx = conv2d(g, weight, None, x.shape[2:], *settings) if need_input else None
    dweight = weight_gradient(x, g, weight.shape, *settings)[0] if need_weight else None
    return dx, dweight, channel_sums(g) if need_bias else None


def weight_gradient(g, x, shape, *settings):
    """dweight, of this shape, and the sums of g's channels."""
    g, x = channels_last(g), channels_last(x)
    out_channels, c, *kernel = shape
    conv, groups = _conv(x.shape, g.shape, (out_channels, *kernel, c), *settings), settings[-1]
    dweight, sums = gradients("conv_weight_gradient", "conv", g, x, out_channels // groups, kernel[0] * kernel[1] * c,
                              g.size // out_channels, conv, groups=groups)
    return to_nchw(dweight.reshape(out_channels, *kernel, c)), sums


def _launch(name, x, weight, bias, y, conv, pixels, channels, parts):
    """Blocks for tiles of (pixels, channels), for each of the parts that y falls into; returns y as (N, C, H, W)."""
    warps = (4, 1) if channels <= 32 else (2, 2)
    grid = tiles_of(pixels, channels, warps), 1, parts
    launch(tile_kernel(name, "conv", x.dtype, warps), grid, (128,), (x, weight, contiguous(bias), y, conv))
    return to_nchw(y)


@lru_cache(1024)
def _conv(x_shape, y_shape, weight_shape, stride, padding, dilation, groups):
    """struct Conv for the convolution of x to y, all shapes channels-last."""
    if max(math.prod(x_shape[:3]), math.prod(y_shape[:3])) > PIXELS:
        raise ValueError(f"convolution: images of more than {PIXELS} pixels together; split the batch of {x_shape[0]}")
    n, *size, _ = x_shape
    out_channels, *kernel, c = weight_shape
    pairs = map(tuple, (size, y_shape[1:3], kernel, stride, padding, dilation))
    return struct(CONV, n, groups, c, out_channels // groups, *pairs)
