"""Convolution and transposed convolution, with their gradients: three products (conv.cu) serve all of them.

A transposed convolution is the input gradient of the convolution with the same weight, and the other way round.
Weights are (C_out, C_in/groups, kh, kw) over channels-last memory, and so are their gradients; others are copied.
"""

import math
from functools import lru_cache

import numpy as np

from ...backend import cupy
from .build import ceil_div, launch, struct
from .elementwise import channel_sums
from .layout import channels_last, contiguous, to_nchw
from .tile import gradients, tile_kernel, tiles_of

__all__ = ["conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward"]

CONV = np.dtype([*((name, "i4") for name in ("samples", "groups", "channels", "out_channels")), *(
    (name, "i4", 2) for name in ("size", "out_size", "kernel", "stride", "corner", "dilation"))])  # struct Conv
PIXELS = 2**31 - 2**10  # that an int can count, and a tile beyond


def conv2d(x, weight, bias, stride, padding, dilation, groups, onto=None):
    """y (N, C_out, H_out, W_out), plus the array ``onto`` or None; bias (C_out,) or None; padding ((top, bottom),
    (left, right))."""
    size = tuple((n + sum(p) - d * (k - 1) - 1) // s + 1
                 for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation))
    return forward(x, weight, bias, size, stride, padding, dilation, groups, onto)


def conv2d_backward(
    g, x, weight, stride, padding, dilation, groups, need_input=True, need_weight=True, need_bias=True
):
    """Gradients dx, dweight and dbias of <g, conv2d(x, weight, bias)>; None for those that are not needed."""
    settings, dweight, dbias = (stride, padding, dilation, groups), None, None
    dx = input_gradient(g, weight, None, x.shape[2:], *settings) if need_input else None
    if need_weight:
        dweight, dbias = weight_gradient(g, x, weight.shape, *settings)  # the second costs nothing
    elif need_bias:
        dbias = channel_sums(g)
    return dx, dweight, dbias if need_bias else None


def conv_transpose2d(x, weight, bias, stride, padding, output_padding, dilation, groups):
    """Transposed convolution: x (N, C_in, H, W), weight (C_in, C_out/groups, kh, kw) -> y."""
    size = tuple((n - 1) * s - sum(p) + d * (k - 1) + e + 1 for n, k, s, p, d, e in zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding))
    return input_gradient(x, weight, bias, size, stride, padding, dilation, groups)


def conv_transpose2d_backward(
    g, x, weight, stride, padding, output_padding, dilation, groups, need_input=True, need_weight=True, need_bias=True
):
    """Gradients of <g, conv_transpose2d(x, weight, bias)>, without bias <conv2d(g, weight), x>."""
    g, settings = to_nchw(channels_last(g)), (stride, padding, dilation, groups)
    dx = forward(g, weight, None, x.shape[2:], *settings) if need_input else None
    dweight = weight_gradient(x, g, weight.shape, *settings)[0] if need_weight else None
    return dx, dweight, channel_sums(g) if need_bias else None


def forward(x, weight, bias, size, stride, padding, dilation, groups, onto=None):
    """Convolution of x, with y of this size, plus the array ``onto``."""
    x, weight, bias, onto = channels_last(x), channels_last(weight), contiguous(bias), channels_last(onto)
    y = cupy().empty((len(x), *size, len(weight)), x.dtype)
    conv = _conv(x.shape, y.shape, weight.shape, stride, padding, dilation, groups)
    channels = len(weight) // groups
    warps = (4, 1) if channels <= 32 else (2, 2)
    grid = tiles_of(y.size // len(weight), channels, warps), 1, groups
    launch(tile_kernel("conv_forward", "conv", x.dtype, warps), grid, (128,), (x, weight, bias, onto, y, conv))
    return to_nchw(y)


def input_gradient(g, weight, bias, size, stride, padding, dilation, groups):
    """dx, of this size, plus a bias."""
    g, weight, bias = channels_last(g), channels_last(weight), contiguous(bias)
    c, (sh, sw) = weight.shape[3], stride
    dx = cupy().empty((len(g), *size, c * groups), g.dtype)
    conv = _conv(dx.shape, g.shape, weight.shape, stride, padding, dilation, groups)
    warps = (4, 1) if c <= 32 else (2, 2)
    pixels = len(g) * ceil_div(size[0], sh) * ceil_div(size[1], sw)  # of a phase
    grid = tiles_of(pixels, c, warps), 1, groups * sh * sw
    launch(tile_kernel("conv_input_gradient", "conv", g.dtype, warps), grid, (128,), (g, weight, bias, dx, conv))
    return to_nchw(dx)


def weight_gradient(g, x, shape, *settings):
    """dweight, of this shape, and the sums of g's channels."""
    g, x = channels_last(g), channels_last(x)
    out_channels, c, *kernel = shape
    conv, groups = _conv(x.shape, g.shape, (out_channels, *kernel, c), *settings), settings[-1]
    dweight, sums = gradients("conv_weight_gradient", "conv", g, x, out_channels // groups, kernel[0] * kernel[1] * c,
                              g.size // out_channels, conv, groups=groups)
    return to_nchw(dweight.reshape(out_channels, *kernel, c)), sums


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
