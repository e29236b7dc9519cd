"""Ops that only move elements: views, indexing, joining, padding; to another device or dtype."""

import math

import numpy as np

from ..device import array_module, is_device, to_device
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import arrays, axes_of, axis_of, floats, ints


def _ints(numbers):
    """reshape(2, 3) and reshape((2, 3)) mean the same."""
    return tuple(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else numbers


def reshape(input, *shape):
    """The elements in row-major (NCHW) order under another shape; one entry may be −1."""
    [x], own = arrays("reshape", input), input.shape
    return record(x.reshape(_ints(shape)), "reshape", (input,), lambda g: (g.reshape(own),))


def flatten(input, start_dim=0, end_dim=-1):
    """Axes start_dim … end_dim as one."""
    arrays("flatten", input)
    first, last = axis_of(start_dim, input.ndim), axis_of(end_dim, input.ndim)
    if first > last:
        raise ValueError(f"flatten expects start_dim <= end_dim, got {start_dim} and {end_dim}")
    middle = math.prod(input.shape[first:last + 1])
    return reshape(input, input.shape[:first] + (middle,) + input.shape[last + 1:])


def permute(input, *dims):
    """The axes in the order ``dims``."""
    [x] = arrays("permute", input)
    if len(_ints(dims)) != input.ndim:
        raise ValueError(f"permute expects all {input.ndim} axes, got {_ints(dims)}")
    axes = axes_of(_ints(dims), input.ndim)
    back = tuple(np.argsort(axes).tolist())
    return record(x.transpose(axes), "permute", (input,), lambda g: (g.transpose(back),))


def transpose(input, dim0, dim1):
    """Axes dim0 and dim1 exchanged."""
    [x] = arrays("transpose", input)
    a, b = axis_of(dim0, input.ndim), axis_of(dim1, input.ndim)
    if a == b:
        return reshape(input, input.shape)
    return record(x.swapaxes(a, b), "transpose", (input,), lambda g: (g.swapaxes(a, b),))


def squeeze(input, dim=None):
    """Without the axes of length 1 (all of them, or those among ``dim``)."""
    arrays("squeeze", input)
    axes = axes_of(dim, input.ndim) if dim is None or ints(dim) else ()
    return reshape(input, tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in axes))


def unsqueeze(input, dim):
    """With a new axis of length 1 at ``dim``."""
    arrays("unsqueeze", input)
    axis = axis_of(dim, input.ndim + 1)
    return reshape(input, input.shape[:axis] + (1,) + input.shape[axis:])


def expand(input, *shape):
    """Axes of length 1 repeated to ``shape`` as a view; −1 keeps an axis, new axes come in front."""
    [x], shape = arrays("expand", input), _ints(shape)
    added = len(shape) - input.ndim
    if added < 0:
        raise ValueError(f"expand to {shape} has fewer axes than the input's shape {input.shape}")
    full = tuple(input.shape[i - added] if n == -1 and i >= added else n for i, n in enumerate(shape))
    return record(array_module(x).broadcast_to(x, full), "expand", (input,), lambda g: (g,))


def getitem(input, index):
    """input[index]: integers, slices, None, ..., integer or bool arrays (or Tensors of them), as in NumPy."""
    [x], whole = arrays("getitem", input), isinstance(index, tuple)
    parts = tuple(_index(i, x) for i in (index if whole else (index,)))
    index = parts if whole else parts[0]
    xp, shape, dtype = array_module(x), x.shape, x.dtype
    repeats = any(isinstance(i, xp.ndarray) and i.dtype.kind != "b" for i in parts)

    def backward(g):
        if repeats:  # an element may have been taken more than once
            return (kernels(g).add_at(shape, index, g),)
        dx = xp.zeros(shape, dtype)
        dx[index] = g
        return (dx,)

    return record(x[index], "getitem", (input,), backward)


def _index(i, array):
    """One part of an index, arrays on the device of ``array``."""
    i = i.data if isinstance(i, Tensor) else np.asarray(i) if isinstance(i, (list, tuple)) else i
    if isinstance(i, np.ndarray) and not i.size and i.dtype.kind == "f":  # an empty list
        i = i.astype(int)
    return i if i is None or i is ... or isinstance(i, (slice, int, np.generic)) else to_device(i, array)


def cat(tensors, dim=0):
    """The Tensors one after the other along ``dim``; their other axes must agree."""
    tensors = tuple(tensors)
    if not tensors:
        raise ValueError("cat expects at least one Tensor")
    xs, first = arrays("cat", *tensors), tensors[0]
    if not first.ndim:
        raise ValueError("cat expects Tensors with axes; stack() joins those without")
    axis = axis_of(dim, first.ndim)
    for x in tensors:
        if x.ndim != first.ndim or any(a != b for i, (a, b) in enumerate(zip(x.shape, first.shape)) if i != axis):
            raise ValueError(f"cat along axis {axis} expects equal shapes but for that axis, got "
                             f"{[x.shape for x in tensors]}")
    edges = np.cumsum([0] + [x.shape[axis] for x in tensors]).tolist()
    before = (slice(None),) * axis
    return record(kernels(*xs).cat(xs, axis), "cat", tensors,
                  lambda g: tuple(g[before + (slice(a, b),)] for a, b in zip(edges, edges[1:])))


def stack(tensors, dim=0):
    """Tensors of one shape along a new axis ``dim``."""
    return cat([unsqueeze(x, dim) for x in tensors], dim)


def pad(input, pad, mode="constant", value=0.0):
    """``pad`` elements added at the ends of the last axes: (left, right, top, bottom, ...), the last axis first.

    Only mode="constant" is supported; negative numbers crop, as in PyTorch.
    """
    floats("pad", input=input)
    if mode != "constant":
        raise ValueError(f"pad supports mode='constant' only, got {mode!r}")
    if not hasattr(pad, "__len__") or len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad expects pairs of numbers for at most {input.ndim} axes, got {pad!r}")
    pad, value = ints(pad), 0 if value is None else value
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + [tuple(pad[i:i + 2]) for i in range(len(pad) - 2, -1, -2)]
    if any(n + min(a, 0) + min(b, 0) < 0 for n, (a, b) in zip(input.shape, pairs)):
        raise ValueError(f"pad {pad!r} crops more than the input's shape {input.shape} has")
    size = tuple(n + a + b for n, (a, b) in zip(input.shape, pairs))
    if min(pad, default=0) < 0:
        input = getitem(input, tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(input.shape, pairs)))
    inside = tuple(slice(max(a, 0), max(a, 0) + n) for n, (a, _) in zip(input.shape, pairs))
    y = array_module(input.data).full(size, value, input.dtype)
    y[inside] = input.data
    return record(y, "pad", (input,), lambda g: (g[inside],))


def to(input, target, op="to"):
    """input on a device ("cpu", "cuda", "cuda:1") or, given a dtype, converted to it; input itself if it is so already.

    The gradient goes back to where input was. ``op`` is what errors call the op.
    """
    [x] = arrays(op, input)
    if is_device(target):
        y = to_device(x, target)
        return input if y is x else record(y, "to", (input,), lambda g: (to_device(g, x),))
    own, dtype = x.dtype, x.dtype if target is None else np.dtype(target)
    return input if dtype == own else record(x.astype(dtype), "to", (input,), lambda g: (g.astype(own),))
