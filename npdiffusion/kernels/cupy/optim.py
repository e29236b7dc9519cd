"""Optimiser steps over flat arrays: one launch for all parameters.

What changes from step to step may be given as numbers, or as a float64 array on the device, for launches that are
captured in a CUDA graph.
"""

import numpy as np

from ...backend import cupy
from .build import ceil_div, kernel, launch, launch_each

__all__ = ["adam", "clip_norm", "ema", "gather"]

ADAM = np.dtype([*((name, "f8") for name in (
    "lr", "correction1", "correction2", "beta1", "beta2", "eps", "weight_decay")), ("decoupled", "i8")])  # struct Adam
MANY = 100  # arrays that one launch gathers
ARRAYS = np.dtype([("arrays", "u8", MANY), ("offsets", "i8", MANY + 1)])  # struct Arrays
PARTS = 256  # blocks that share a sum


def adam(w, g, m, v, changing, beta1, beta2, eps, weight_decay, decoupled, factor=None):
    """A step of Adam, or, ``decoupled``, AdamW: changes w, m and v, all of one size.

    changing: lr, 1 − β₁^k and 1 − β₂^k at step k, a list or an array on the device.
    factor: array (1,) or () to multiply g by, such as ``clip_norm`` gives.
    """
    numbers, changing = (changing, None) if isinstance(changing, list) else ([0.0, 1.0, 1.0], changing)
    numbers = np.array((*numbers, beta1, beta2, eps, weight_decay, decoupled), ADAM)[()]
    launch_each("adam", "optim", w, (w, g, m, v, w.size, numbers, changing, factor))


def ema(average, w, decay):
    """average ← decay·average + (1 − decay)·w; decay: a number, or an array of one element on the device."""
    number, changing = (decay, None) if isinstance(decay, (int, float)) else (0.0, decay)
    launch_each("ema", "optim", w, (average, w, w.size, float(number), changing))


def clip_norm(g, max_norm, scale=True):
    """Array (2,): the norm of the flat array g, and the factor that limits it to max_norm; multiplies g if ``scale``.

    Sums in float64, in a fixed order.
    """
    count = max(1, min(PARTS, ceil_div(g.size, 4096)))
    parts, result = cupy().empty(count, np.float64), cupy().empty(2, g.dtype)
    launch(kernel("squares", "optim", g.dtype), (count,), (256,), (g, parts, g.size))
    args = parts, np.int32(count), float(max_norm), result
    launch(kernel("clip_factor", "optim", g.dtype), (1,), (256,), args)
    if scale:
        launch_each("scale", "optim", g, (g, result[1:], g.size))
    return result


def gather(arrays, out):
    """Copy arrays, of out's dtype and dense in memory, one after the other into the flat array out, as they lie."""
    start = 0
    for first in range(0, len(arrays), MANY):
        some = arrays[first:first + MANY]
        table = np.zeros((), ARRAYS)
        table["arrays"][:len(some)] = [a.data.ptr for a in some]
        table["offsets"][1:len(some) + 1] = np.cumsum([a.size for a in some])
        end = start + int(table["offsets"][len(some)])
        blocks = min(32, ceil_div(max(a.size for a in some), 256))
        launch(kernel("gather", "optim", out.dtype), (blocks, len(some)), (256,), (table[()], out[start:end]))
        start = end
