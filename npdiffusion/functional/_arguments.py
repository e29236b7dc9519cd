"""What ops share: turning arguments into Tensors, arrays and pairs, and checking them. All checking is done here."""

import functools
import operator

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from ..tensor import Tensor


def as_tensor(x, like=None):
    """x as a Tensor. A Python number takes the floating dtype of ``like``, so that float32 stays float32."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.generic) and x.ndim == 0:
        x = x.item()
    if like is not None and isinstance(x, (bool, int, float)):
        if like.dtype.kind == "f" or like.dtype.kind in "iu" and not isinstance(x, float):
            x = np.asarray(x, dtype=like.dtype)
    return Tensor(x)


def arrays(op, *tensors):
    """The Tensors' arrays; TypeError unless all are Tensors, on one device.

    Beside Tensors on a GPU, one of the CPU with no axes and no gradient is a number, and comes as a NumPy scalar.
    """
    for x in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"{op} expects a Tensor, got {type(x).__name__}; wrap it: Tensor(...)")
    if all([isinstance(x.data, np.ndarray) for x in tensors]):
        return [x.data for x in tensors]
    numbers = [x.device == "cpu" and not x.ndim and not x.requires_grad for x in tensors]
    _check_devices(op, [x for x, number in zip(tensors, numbers) if not number])
    return [x.data[()] if number else x.data for x, number in zip(tensors, numbers)]


def needs(*tensors):
    """Which of the Tensors (or None) want a gradient."""
    return [x is not None and x.requires_grad for x in tensors]


def ints(value):
    """An integer (Python's or NumPy's) or a sequence of them as a tuple; TypeError for anything else."""
    return tuple(map(operator.index, value)) if hasattr(value, "__len__") else (operator.index(value),)


def axes_of(dim, ndim):
    """``dim`` (None or () for all, an int or a sequence) as a tuple of axes from 0 to ndim − 1, each once.

    A Tensor () has no axes, but 0 and −1 may be said, as in PyTorch.
    """
    dims = () if dim is None else ints(dim)
    axes = normalize_axis_tuple(dims or range(ndim), max(ndim, 1), "dim")
    return axes if ndim else ()


def axis_of(dim, ndim):
    """One ``dim`` as an axis from 0 to ndim − 1."""
    return normalize_axis_index(dim, max(ndim, 1), "dim")


def pair(value, name, least=1):
    """An int or a pair of ints (or a sequence of one for both), each at least ``least``, as a tuple of two."""
    if type(value) is int and value >= least:
        return value, value
    try:
        a, b = 2 * ints(value) if not hasattr(value, "__len__") or len(value) == 1 else ints(value)
    except (TypeError, ValueError):  # not a pair, or not integers
        a = b = least - 1
    if min(a, b) < least:
        raise ValueError(f"{name} must be an integer or a pair of integers, at least {least}; got {value!r}")
    return a, b


def floats(op, **tensors):
    """The Tensors' arrays (None of None); TypeError unless all have one and the same floating dtype and device."""
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}")
    dtype = x.data.dtype
    if dtype.kind != "f" or any([x.data.dtype != dtype for x in given.values()]):
        dtypes = ", ".join(f"{name} {x.dtype}" for name, x in given.items())
        raise TypeError(f"{op} needs one floating-point dtype for all of its inputs, got {dtypes}")
    _check_devices(op, given.values())
    return [None if x is None else x.data for x in tensors.values()]


def _check_devices(op, tensors):
    for x in tensors:
        if type(x.data) is not np.ndarray and len({x.device for x in tensors}) > 1:
            devices = ", ".join(x.device for x in tensors)
            raise TypeError(f"{op} got inputs on different devices: {devices}; bring them together with .to()")


def check_affine(op, shape, **parameters):
    """ValueError unless the Tensors (None is allowed) have this shape."""
    for name, p in parameters.items():
        if p is not None and p.shape != shape:
            raise ValueError(f"{op} expects a {name} of shape {shape}, got {p.shape}")


def check_probability(op, p):
    """ValueError unless 0 ≤ p ≤ 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op} expects a probability 0 <= p <= 1, got {p!r}")


def check_groups(op, name, groups, channels):
    """Groups as Python's int; ValueError unless it is a positive integer that divides the channels."""
    if not isinstance(groups, (int, np.integer)) or groups < 1 or channels % groups:
        raise ValueError(f"{op}: {name} must be a positive integer that divides {channels} channels, got {groups!r}")
    return int(groups)


def check_not_in_place(op, inplace):
    """ValueError if inplace, PyTorch's argument."""
    if inplace:
        raise ValueError(f"{op} does not support inplace=True")


def of_images(op):
    """Make an op on images (N, C, H, W) one that also takes a single image (C, H, W), or none (N = 0)."""
    @functools.wraps(op)
    def of_any(input, *args, **options):
        if isinstance(input, Tensor) and input.ndim == 3:
            input, part = input.unsqueeze(0), 0
        elif isinstance(input, Tensor) and input.ndim == 4 and not len(input):
            input, part = input.sum(0, keepdim=True), slice(0)  # as of one image, the sum of none
        else:
            return op(input, *args, **options)
        y = op(input, *args, **options)
        return tuple([z[part] for z in y]) if isinstance(y, tuple) else y[part]

    return of_any


def image_floats(op, input, **others):
    """The Tensors' arrays, by ``floats``; ValueError unless input is (N, C, H, W), or was (C, H, W)."""
    arrays = floats(op, input=input, **others)
    if input.ndim != 4:
        raise ValueError(f"{op} expects an input of shape (N, C, H, W) or (C, H, W), got {input.shape}")
    return arrays


def conv_geometry(op, input, weight, bias, stride, padding, dilation, groups, output_padding=None):
    """A convolution's arguments, checked and as the kernels take them; a transposed one's with ``output_padding``.

    Returns the arrays, the result's size, stride, padding in front (top, left), dilation (pairs), and groups. Raises as
    the ops, where the formulas for the size stand.
    """
    transposed = output_padding is not None
    arrays = image_floats(op, input, weight=weight, bias=bias)
    if not input.data.size:
        raise ValueError(f"{op}: an input of shape {input.shape} has no elements")
    if weight.ndim != 4:
        shape = "(C_in, C_out/groups, kh, kw)" if transposed else "(C_out, C_in/groups, kh, kw)"
        raise ValueError(f"{op} expects a weight of shape {shape}, got {weight.shape}")
    first, second, *kernel = weight.shape
    groups = check_groups(op, "groups", groups, first)
    channels, out_channels = (first, second * groups) if transposed else (second * groups, first)
    if input.shape[1] != channels:
        raise ValueError(f"{op} with weight {weight.shape} and groups={groups} expects {channels} input channels, "
                         f"got input {input.shape}")
    check_affine(op, (out_channels,), bias=bias)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    sides, name = input.shape[2:], padding if isinstance(padding, str) else None
    if transposed:
        front, extra = pair(padding, "padding", least=0), pair(output_padding, "output_padding", least=0)
        if any([e >= max(s, d) for e, s, d in zip(extra, stride, dilation)]):
            raise ValueError(f"output_padding must be smaller than stride or dilation, got {extra} with stride "
                             f"{stride} and dilation {dilation}")
        size = tuple([(n - 1) * s - 2 * p + e + x for n, s, p, e, x in zip(sides, stride, front, span, extra)])
    elif name == "same":
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        size, front = sides, tuple([(e - 1) // 2 for e in span])  # an odd pixel goes behind
    else:
        front = pair(0 if name == "valid" else padding, "padding (other than 'same' or 'valid')", least=0)
        size = tuple([(n + 2 * p - e) // s + 1 for n, p, e, s in zip(sides, front, span, stride)])
    if min(size) < 1:
        reason = "leaves no output" if transposed else f"makes it smaller than the kernel {tuple(kernel)}"
        raise ValueError(f"{op}: padding {padding!r} of an input {input.shape} {reason} with dilation {dilation}")
    return arrays, size, stride, front, dilation, groups


def pool_geometry(op, input, kernel_size, stride, padding, dilation, ceil_mode):
    """A pooling's arguments, checked: array, the result's size, kernel, stride, padding in front and dilation (pairs).

    The size is as in ``max_pool2d``, but every window must start inside the input or the padding in front of it.
    """
    [x] = image_floats(op, input)
    kernel = pair(kernel_size, "kernel_size")
    stride = kernel if stride is None or isinstance(stride, (tuple, list)) and not stride else pair(stride, "stride")
    padding, dilation = pair(padding, "padding", least=0), pair(dilation, "dilation")
    if any([2 * p > k for p, k in zip(padding, kernel)]):
        raise ValueError(f"{op} expects padding of at most half the kernel size {kernel}, got {padding}")
    size = []
    for n, k, s, p, d in zip(input.shape[2:], kernel, stride, padding, dilation):
        room = n + 2 * p - d * (k - 1) - 1
        steps = -(-room // s) if ceil_mode else room // s
        size.append(steps if steps * s >= n + p else steps + 1)
    if min(size) < 1:
        raise ValueError(f"{op}: an input of shape {input.shape} with padding {padding} is smaller than "
                         f"the kernel {kernel} with dilation {dilation}")
    return x, tuple(size), kernel, stride, padding, dilation
