"""Group normalisation, alone or fused with SiLU: one block for each sample and group, which reads its part of x once
from memory and then from cache."""

import numpy as np

from ...device import cupy
from .build import kernel, launch, struct
from .elementwise import sum_parts
from .layout import channels_last, contiguous, to_nchw

NORM = np.dtype([*((name, "i4") for name in ("pixels", "channels", "width", "silu")), ("eps", "f8")])  # struct Norm


def group_norm(x, groups, weight, bias, eps, silu=False, scale_shift=None):
    x, conditions = channels_last(x), map(contiguous, (weight, bias, scale_shift))
    n, h, w, c = x.shape
    y, mean, rstd = (cupy().empty(shape, x.dtype) for shape in (x.shape, (n, c), (n, c)))
    args = x, *conditions, y, mean, rstd, struct(NORM, h * w, c, c // groups, silu, eps)
    launch(kernel("group_norm", "norm", x.dtype), (n * groups,), (256,), args)
    return to_nchw(y), mean, rstd


def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False, scale_shift=None):
    g, x, conditions = channels_last(g), channels_last(x), map(contiguous, (weight, bias, scale_shift))
    n, h, w, c = x.shape
    dx = cupy().empty(x.shape, x.dtype)
    parts = cupy().empty((n, 2 * c), x.dtype)  # of dweight and dbias, for each sample
    dscale_shift = None if scale_shift is None else cupy().empty_like(parts)
    norm = struct(NORM, h * w, c, c // groups, silu, 0.0)  # rstd knows eps
    args = g, x, mean, rstd, *conditions, dx, parts, dscale_shift, norm
    launch(kernel("group_norm_backward", "norm", x.dtype), (n * groups,), (256,), args)
    sums = sum_parts(parts)
    return to_nchw(dx), sums[:c], sums[c:], dscale_shift
