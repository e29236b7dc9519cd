"""What ops share: turning arguments into arrays and pairs, and checking them."""

import numpy as np

from ..tensor import Tensor

__all__ = ["arrays", "as_tensor", "axes_of", "axis_of", "check_float", "check_image", "check_not_empty",
           "check_tensor", "pair"]


def as_tensor(x, like=None):
    """x as a Tensor. A Python number takes the floating dtype of ``like``, so that float32 stays float32."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.generic) and x.ndim == 0:
        x = x.item()
    if like is not None and isinstance(x, (bool, int, float)):
        fits = like.dtype.kind == "f" or like.dtype.kind in "iu" and not isinstance(x, float)
        return Tensor(np.asarray(x, dtype=like.dtype)) if fits else Tensor(x)
    return Tensor(x)


def arrays(op, *tensors):
    """The Tensors' arrays, all on one device; TypeError if they are not.

    Beside Tensors on a GPU, one of the CPU with no axes and no gradient is a number, and comes as a NumPy scalar.
    """
    devices = {x.device for x in tensors}
    if len(devices) == 1:
        return [x.data for x in tensors]
    numbers = [x.device == "cpu" and not x.ndim and not x.requires_grad for x in tensors]
    _check_devices(op, [x for x, number in zip(tensors, numbers) if not number])
    return [x.data[()] if number else x.data for x, number in zip(tensors, numbers)]


def _check_devices(op, tensors):
    devices = [x.device for x in tensors]
    if len(set(devices)) > 1:
        raise TypeError(f"{op} got inputs on different devices: {', '.join(devices)}; bring them together with .to()")


def axes_of(dim, ndim):
    """``dim`` (None for all, an int or a sequence) as a tuple of axes from 0 to ndim − 1, each once."""
    dims = range(ndim) if dim is None else (dim,) if isinstance(dim, (int, np.integer)) else tuple(dim)
    axes = tuple(d + ndim if d < 0 else d for d in dims)
    if any(not 0 <= a < ndim for a in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"dim {dim!r} does not name distinct axes of a Tensor with {ndim} axes")
    return axes


def axis_of(dim, ndim):
    """One ``dim`` as an axis from 0 to ndim − 1."""
    if not isinstance(dim, (int, np.integer)):
        raise TypeError(f"dim must be an integer here, got {dim!r}")
    return axes_of(dim, ndim)[0]


def pair(value, name, least=1):
    """An int or a pair of ints, each at least ``least``, as a tuple of two."""
    both = (value, value) if isinstance(value, (int, np.integer)) else value
    try:
        a, b = both
        if isinstance(a, (int, np.integer)) and isinstance(b, (int, np.integer)) and min(a, b) >= least:
            return int(a), int(b)
    except (TypeError, ValueError):  # not a pair
        pass
    raise ValueError(f"{name} must be an integer or a pair of integers, at least {least}; got {value!r}")


def check_tensor(op, *inputs):
    """TypeError unless all inputs are Tensors, on one device."""
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"{op} expects a Tensor, got {type(x).__name__}; wrap it: Tensor(...)")
    _check_devices(op, inputs)


def check_float(op, **tensors):
    """TypeError unless all the Tensors (None is allowed) have one and the same floating dtype and device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}")
    if len({x.dtype for x in given.values()}) != 1 or next(iter(given.values())).dtype.kind != "f":
        dtypes = ", ".join(f"{name} {x.dtype}" for name, x in given.items())
        raise TypeError(f"{op} needs one floating-point dtype for all of its inputs, got {dtypes}")
    _check_devices(op, given.values())


def check_image(op, input):
    """ValueError unless input is (N, C, H, W) or (C, H, W); returns whether it has no batch axis."""
    check_float(op, input=input)
    if input.ndim not in (3, 4):
        raise ValueError(f"{op} expects an input of shape (N, C, H, W) or (C, H, W), got {input.shape}")
    return input.ndim == 3


def check_not_empty(op, input):
    """ValueError if input has no elements."""
    if not input.data.size:
        raise ValueError(f"{op}: an input of shape {input.shape} has no elements")
