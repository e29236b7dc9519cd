"""Group normalisation, alone or fused with SiLU: one block for each sample and group, which reads its part of x once
from memory and then from cache."""

import numpy as np

from ...backend import cupy
from .build import kernel, launch, struct
from .layout import channels_last, contiguous, to_nchw

__all__ = ["group_norm", "group_norm_backward"]

NORM = np.dtype([*((name, "i4") for name in (
    "pixels", "channels", "width", "weight_stride", "bias_stride", "silu")), ("eps", "f8")])  # struct Norm in norm.cu
SAMPLES = 65535  # most blocks along y


def _launch(name, arrays, x, groups, weight, bias, silu, eps=0.0):
    """The kernel on (groups, samples) blocks; more samples than a grid can have go through it in turns."""
    n, h, w, c = x.shape
    strides = [0 if len(p) == 1 else c for p in (weight, bias)]
    norm = struct(NORM, h * w, c, c // groups, *strides, silu, eps)
    for first in range(0, n, SAMPLES):
        part = [a if len(a) == 1 else a[first:first + SAMPLES] for a in arrays] if n > SAMPLES else arrays
        launch(kernel(name, "norm", x.dtype), (groups, min(n - first, SAMPLES)), (256,), (*part, norm))


def group_norm(x, groups, weight, bias, eps, silu=False):
    """y = (x − μ)/√(σ² + eps)·weight + bias, and y·sigmoid(y) if ``silu``.

    x (N, C, H, W); weight, bias (N or 1, C). Returns y (N, C, H, W), μ and 1/√(σ² + eps), each (N, C).
    """
    x, weight, bias = channels_last(x), contiguous(weight), contiguous(bias)
    n, _, _, c = x.shape
    xp = cupy()
    y, mean, rstd = xp.empty(x.shape, x.dtype), xp.empty((n, c), x.dtype), xp.empty((n, c), x.dtype)
    _launch("group_norm", (x, weight, bias, y, mean, rstd), x, groups, weight, bias, silu, eps)
    return to_nchw(y), mean, rstd


def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False):
    """Gradients of ``group_norm`` from g (N, C, H, W): dx (N, C, H, W), dweight (N, C), dbias (N, C)."""
    g, x, weight, bias = channels_last(g), channels_last(x), contiguous(weight), contiguous(bias)
    xp = cupy()
    dx, dweight, dbias = xp.empty(x.shape, x.dtype), xp.empty(mean.shape, x.dtype), xp.empty(mean.shape, x.dtype)
    arrays = g, x, mean, rstd, weight, bias, dx, dweight, dbias
    _launch("group_norm_backward", arrays, x, groups, weight, bias, silu)
    return to_nchw(dx), dweight, dbias
