"""Pooling and nearest-neighbour resizing."""

import numpy as np

from ..backend import array_module, beside, kernels
from ..tensor import record
from ._arguments import check_image, pair

__all__ = ["avg_pool2d", "interpolate", "max_pool2d"]


def _arguments(op, input, kernel_size, stride, padding, dilation, ceil_mode):
    kernel = pair(kernel_size, "kernel_size")
    stride = kernel if stride is None else pair(stride, "stride")
    padding, dilation = pair(padding, "padding", least=0), pair(dilation, "dilation")
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ValueError(f"{op} expects padding of at most half the kernel size {kernel}, got {padding}")
    out = []
    for size, k, s, p, d in zip(input.shape[-2:], kernel, stride, padding, dilation):
        room = size + 2 * p - d * (k - 1) - 1
        n = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (n - 1) * s >= size + p:  # a window must start inside the input or its front padding
            n -= 1
        if n < 1:
            raise ValueError(f"{op}: an input of shape {input.shape} with padding {padding} is smaller than "
                             f"the kernel {kernel} with dilation {dilation}")
        out.append(n)
    return kernel, stride, padding, dilation, tuple(out)


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """The maximum over windows: y[p] = max_k x[p·stride + k·dilation − padding], −∞ outside.

    input (N, C, H, W) or (C, H, W); stride is the kernel size by default. The gradient goes to the first maximum of
    a window. H_out = ⌊(H + 2·padding − dilation·(k − 1) − 1)/stride⌋ + 1 (⌈ ⌉ with ceil_mode).
    """
    single = check_image("max_pool2d", input)
    kernel, stride, padding, dilation, size = _arguments(
        "max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    x = input.data[None] if single else input.data
    y = kernels(x).max_pool2d(x, size, kernel, stride, padding, dilation)

    def backward(g):
        dx = kernels(x).max_pool2d_backward(g[None] if single else g, x, y, kernel, stride, padding, dilation)
        return (dx[0] if single else dx,)

    return record(y[0] if single else y, "max_pool2d", (input,), backward)


def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
               divisor_override=None):
    """The mean over windows; arguments and shapes as ``max_pool2d``.

    count_include_pad: zeros of the padding count as elements. divisor_override: divide by this number instead.
    """
    single = check_image("avg_pool2d", input)
    kernel, stride, padding, _, size = _arguments("avg_pool2d", input, kernel_size, stride, padding, 1, ceil_mode)
    if divisor_override is not None and divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    x = input.data[None] if single else input.data
    inside = x.shape[2:]

    def counts_along(axis):  # how many elements a window has along one axis
        p = padding[axis]
        first = np.arange(size[axis]) * stride[axis] - p
        last = np.minimum(first + kernel[axis], inside[axis] + p)
        return last - first if count_include_pad else np.minimum(last, inside[axis]) - np.maximum(first, 0)

    counts = np.multiply.outer(counts_along(0), counts_along(1)).astype(x.dtype)
    if divisor_override is not None:
        counts[:] = divisor_override
    if counts.min() == counts.max():  # without copying them to a GPU
        counts = array_module(x).full(size, float(counts[0, 0]), x.dtype)
    counts = beside(counts, x)
    y = kernels(x).avg_pool2d(x, size, kernel, stride, padding, counts)

    def backward(g):
        dx = kernels(g).avg_pool2d_backward(g[None] if single else g, inside, kernel, stride, padding, counts)
        return (dx[0] if single else dx,)

    return record(y[0] if single else y, "avg_pool2d", (input,), backward)


def interpolate(input, size=None, scale_factor=None, mode="nearest"):
    """Resize by nearest neighbour: y[p] = x[⌊p·in/out⌋], with scale_factor x[⌊p/scale_factor⌋].

    input (N, C, H, W) or (C, H, W); give ``size`` (int or pair) or ``scale_factor`` (number or pair), not both.
    """
    check_image("interpolate", input)
    if mode != "nearest":
        raise ValueError(f"interpolate supports mode='nearest' only, got {mode!r}")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate expects either size or scale_factor")
    inside = input.shape[-2:]
    xp = array_module(input.data)
    if size is None:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
        if len(factors) != 2 or not min(factors) > 0:
            raise ValueError(f"scale_factor must be a positive number or a pair of them, got {scale_factor!r}")
        size = tuple(int(n * f) for n, f in zip(inside, factors))
        sources = [xp.minimum((xp.arange(o) / f).astype(int), n - 1) for o, f, n in zip(size, factors, inside)]
    else:
        size = pair(size, "size")
        sources = [xp.arange(o) * n // o for o, n in zip(size, inside)]
    if min(size) < 1:
        raise ValueError(f"interpolate to {size} leaves nothing of the input {input.shape}")
    rows, columns = sources
    x = xp.moveaxis(input.data, -3, -1)  # channels last, as in memory: whole pixels are copied

    def backward(g):  # a source pixel collects from all its copies: one-hot matrices for rows and columns
        g = xp.moveaxis(g, -3, -1)
        onto_rows = (xp.arange(inside[0])[:, None] == rows).astype(g.dtype)
        onto_columns = (xp.arange(inside[1])[:, None] == columns).astype(g.dtype)
        product = kernels(g).matmul
        dx = product(onto_rows, g.reshape(g.shape[:-2] + (-1,)))  # (..., H, W_out·C)
        dx = product(onto_columns, dx.reshape(dx.shape[:-1] + g.shape[-2:]))  # (..., H, W, C)
        return (xp.moveaxis(dx, -1, -3),)

    return record(xp.moveaxis(x.take(rows, -3).take(columns, -2), -1, -3), "interpolate", (input,), backward)
