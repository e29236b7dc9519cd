"""Reductions along axes, with PyTorch's arguments ``dim`` and ``keepdim``."""

import math
from collections import namedtuple

from ..device import array_module
from ..tensor import Tensor, record
from ._arguments import arrays, axes_of, axis_of, floats
from .arithmetic import maximum, minimum
from .shape import to

Extreme = namedtuple("Extreme", "values indices")


def sum(input, dim=None, keepdim=False, dtype=None):
    """Σ input over the axes ``dim`` (all by default), as ``dtype`` if given; integers add up as int64."""
    input = to(input, dtype, "sum")
    shape, axes = input.shape, axes_of(dim, input.ndim)
    kept = tuple(1 if i in axes else size for i, size in enumerate(shape))
    dtype = None if input.dtype.kind == "f" else dtype or "int64"
    return record(input.data.sum(axes, dtype, keepdims=keepdim), "sum", (input,),
                  lambda g: (array_module(g).broadcast_to(g.reshape(kept), shape),))


def mean(input, dim=None, keepdim=False, dtype=None):
    """The mean over the axes ``dim`` (all by default), as ``dtype`` if given."""
    input = to(input, dtype, "mean")
    floats("mean", input=input)
    return sum(input, dim, keepdim) / math.prod([input.shape[a] for a in axes_of(dim, input.ndim)])


def var(input, dim=None, correction=1, keepdim=False, unbiased=None):
    """Σ (x − mean)²/(n − correction) over the axes ``dim``; d/dx = 2·(x − mean)/(n − correction).

    unbiased: the older way to say correction=1 (True) or 0 (False), also alone: var(input, False).
    """
    floats("var", input=input)
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    correction = 1 if correction is None else float(correction) if unbiased is None else int(unbiased)
    axes = axes_of(dim, input.ndim)
    count = math.prod([input.shape[a] for a in axes]) - correction
    if count <= 0:
        raise ValueError(f"var over {count + correction:g} element(s) with correction={correction:g} is undefined")
    centred = input - mean(input, axes, keepdim=True)
    return sum(centred * centred, axes, keepdim) / count


def max(input, dim=None, keepdim=False):
    """The largest element; along one axis ``dim``: (values, indices), where the first of equals counts.

    Without ``dim`` equal maxima share the gradient, as in PyTorch. With a Tensor for ``dim``: ``maximum``.
    """
    return maximum(input, dim) if isinstance(dim, Tensor) else _extreme("max", input, dim, keepdim)


def min(input, dim=None, keepdim=False):
    """The smallest element; along one axis ``dim``: (values, indices). See ``max``."""
    return minimum(input, dim) if isinstance(dim, Tensor) else _extreme("min", input, dim, keepdim)


def _extreme(name, input, dim, keepdim):
    [x] = arrays(name, input)
    xp = array_module(x)
    if dim is None:
        y = getattr(x, name)()

        def backward(g):
            hits = (x == y) | (x != x)  # if y is NaN, the NaNs
            return (xp.where(hits, g / hits.sum(dtype=g.dtype), 0),)

        return record(y, name, (input,), backward)

    axis = axis_of(dim, x.ndim)
    if not x.ndim:
        return Extreme(input.reshape(()), Tensor(xp.zeros((), int)))
    y, index = getattr(x, name)(axis, keepdims=keepdim), getattr(x, "arg" + name)(axis, keepdims=keepdim)

    def backward(g):
        dx = xp.zeros_like(x)
        xp.put_along_axis(dx, *[a if keepdim else xp.expand_dims(a, axis) for a in (index, g)], axis)
        return (dx,)

    return Extreme(record(y, name, (input,), backward), Tensor(index))
