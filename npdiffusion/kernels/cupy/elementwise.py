"""Sums, concatenation, activations, the gradient of indexing, and what else goes element by element."""

import math

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch
from .layout import channels_last, contiguous, packed, to_nchw

PARTS = 256  # blocks that share a sum: enough to keep a GPU busy


def add(a, b, out=None):
    """a + b with broadcasting, in the memory order of the larger input (CuPy alone would give C order)."""
    if out is None and a.shape == b.shape and a.dtype == b.dtype:
        out = cupy().empty_like(a)
    return cupy().add(a, b, out=out)


def cat(arrays, axis):
    """The arrays one after the other along ``axis``; NCHW arrays come out in channels-last memory."""
    if arrays[0].ndim == 4 and axis in (1, -3):
        return to_nchw(cupy().concatenate([x.transpose(0, 2, 3, 1) for x in arrays], 3))
    return cupy().concatenate(arrays, axis)


def channel_sums(x):
    """Σ x over samples and pixels: (N, C, H, W) -> (C,). First over parts of the pixels, then over what is left."""
    x = channels_last(x)
    pixels, c = x.size // x.shape[3], x.shape[3]
    parts = next((n for n in range(math.isqrt(pixels), 0, -1) if pixels % n == 0), 1)
    return sum_parts(sum_parts(x.reshape(parts, pixels // parts, c)))


def sum_parts(parts):
    """Σ of (n, ...) over its first axis, in a fixed order."""
    if len(parts) == 1:
        return parts[0]
    out = cupy().empty(parts.shape[1:], parts.dtype)
    args = parts, out, np.int32(len(parts)), out.size
    launch(kernel("sum_parts", "elementwise", parts.dtype), (ceil_div(out.size, 32),), (32, 16), args)
    return out


def erf(x):
    """erf(x), CUDA's own."""
    return _each("error_function", (x,))


def silu(x):
    return _each("silu", (x,))


def silu_backward(g, x):
    return _each("silu_backward", (g, x))


def squared_error(x, y, scale):
    """scale·Σ (x − y)², an array (). Blocks sum shares of the elements, a second kernel those."""
    count = max(1, min(PARTS, ceil_div(x.size, 4096)))
    parts = cupy().empty((count, 1), x.dtype)
    args = packed(x), packed(y), parts, x.size, float(scale)
    launch(kernel("squared_error", "elementwise", x.dtype), (count,), (256,), args)
    return sum_parts(parts).reshape(())


def squared_error_backward(g, x, y, scale):
    """dx of ``squared_error``, and −dy: 2·scale·g·(x − y), with g an array ()."""
    return _each("squared_error_backward", (x, y), g, float(scale))


def timestep_embedding(t, dim, max_period, dtype):
    y = cupy().empty((len(t), dim), dtype)
    t = (t if any(t.strides) else t[:1]).astype(np.float64, copy=False)  # one for all, where it was broadcast
    args = contiguous(t), np.int32(len(t) > 1), y, y.size, np.int32(dim // 2), math.log(max_period)
    return _filled("timestep_embedding", y, args)


def add_at(shape, index, g):
    """Zeros of ``shape`` with g added at ``index``, as often as an element is named there: the gradient of x[index].

    Rows are found by comparing each with every index: fine for tables (an embedding) and for shuffled batches.
    """
    if isinstance(index, cupy().ndarray) and index.dtype.kind != "b":  # whole rows of the first axis
        rows, length = shape[0], math.prod(shape[1:])
    else:
        rows, length = math.prod(shape), 1
        index = cupy().arange(rows).reshape(shape)[index]
    out = cupy().empty(shape, g.dtype)
    index = contiguous(index.astype(np.int64, copy=False))
    return _filled("add_rows", out, (contiguous(g), index, out, *map(np.int64, (index.size, rows, length))))


def _each(name, arrays, *numbers):
    """The kernel ``name`` of arrays of one shape, element by element; images come out channels-last in memory."""
    arrays = [packed(x) for x in arrays]
    y = cupy().empty_like(arrays[0])
    _filled(name, y, (*arrays, y, y.size, *numbers))
    return to_nchw(y) if y.ndim == 4 else y


def _filled(name, out, args):
    """out, after the kernel ``name`` with a thread for each of its elements."""
    launch(kernel(name, "elementwise", out.dtype), (ceil_div(out.size, 256),), (256,), args)
    return out
