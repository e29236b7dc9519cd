"""Matrix products: our own (product.cu), and cuBLAS's where both are large and no CUDA graph is being captured.

Our own reads operands as they lie in memory, costs less of the CPU's time to launch, and can be captured in a CUDA
graph, which CuPy's cuBLAS refuses.
"""

import math

import numpy as np

from ...device import cupy, tf32_allowed
from .build import launch, struct
from .layout import contiguous
from .tile import gradients, tile_kernel, tiles_of

OPERAND = np.dtype([("stack", "i8", 2), ("pitch", "i4")], align=True)  # structs of product.cu
PRODUCT = np.dtype([*((name, OPERAND) for name in "aby"), *((name, "i4") for name in (
    "rows", "columns", "terms", "inner")), ("scale", "f8")], align=True)
LARGE = 1 << 30  # multiplications, from which on cuBLAS takes over
LONG = 1 << 10  # terms, from which on a transposed product is summed in slices


def matmul(a, b):
    return product(a, b)


def linear(x, weight, bias):
    return product(x, weight.T, contiguous(bias))


def linear_backward(g, x, weight, need_input=True):
    dx = product(g, weight) if need_input else None
    if 0 in x.shape or _is_for_cublas(g.T, x):
        return dx, product(g.T, x), g.sum(0)
    return dx, *_gradients(g, x)


def product(a, b, bias=None, scale=1.0):
    """scale·(a @ b) + bias: a (..., n, k), b (..., k, m), bias (m,) or None -> (..., n, m).

    A stack times one matrix is one product of two. Where the matrices of b are interleaved in memory (the heads of
    attention are, pixel by pixel) so are the result's.
    """
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        return product(rows, b, bias, scale).reshape(*a.shape[:-1], b.shape[1])
    if a.dtype != b.dtype or a.dtype.char not in "fd" or _is_for_cublas(a, b):
        y = _cublas(a, b)
        if scale != 1:
            y *= scale
        return y if bias is None else cupy().add(y, bias, out=y)
    plain = bias is None and scale == 1 and a.ndim == b.ndim == 2
    if plain and len(b) >= LONG and a.T.flags.c_contiguous and b.flags.c_contiguous:
        return _gradients(a.T, b)[0]
    return _product(a, b, bias, scale)


def _is_for_cublas(a, b):
    return (a.ndim == b.ndim == 2 and a.size * b.shape[1] >= LARGE
            and not cupy().cuda.get_current_stream().is_capturing())


def _product(a, b, bias, scale):
    if bias is None and _interleaved(a.swapaxes(-1, -2)) and not _interleaved(b):
        return _product(b.swapaxes(-1, -2), a.swapaxes(-1, -2), None, scale).swapaxes(-1, -2)
    *stack, n, k = a.shape
    *others, _, m = b.shape
    if stack != others:
        stack = np.broadcast_shapes(stack, others)
    if len(stack) > 2:
        a, b = (cupy().broadcast_to(x, (*stack, *x.shape[-2:])) for x in (a, b))
        a, b = (x.reshape(math.prod(stack), *x.shape[-2:]) for x in (a, b))
        return _product(a, b, bias, scale).reshape(*stack, n, m)
    outer, inner = (1, 1, *stack)[-2:]
    y = cupy().empty((outer, n, inner, m), a.dtype).swapaxes(1, 2) if _interleaved(b) else (
        cupy().empty((outer, inner, n, m), a.dtype))
    (a, *of_a), (b, *of_b), (y, *of_y) = map(_operand, (a, b, y))
    warps = (4, 1) if m <= 32 else (1, 4) if n <= 32 else (2, 2)
    sizes = struct(PRODUCT, of_a[1], of_b[1], of_y[1], n, m, k, inner, scale)
    launch(tile_kernel(f"product_{of_a[0]}{of_b[0]}", "product", a.dtype, warps),
           (tiles_of(n, m, warps) * outer * inner,), (128,), (a, b, bias, y, sizes))
    return y.reshape(*stack, n, m)


def _interleaved(a):
    """Whether rows of a matrix of the stack lie whole in memory, with those of other matrices between them."""
    return a.ndim == 4 and a.strides[3] == a.itemsize and a.strides[2] > a.strides[1]


def _operand(a):
    """a or a copy that the kernels can read; "n", or "t" if its columns lie side by side; its struct Operand."""
    (rows, columns), size = a.shape[-2:], a.itemsize
    if a.strides[-1] != size and columns > 1 and a.strides[-2] != size and rows > 1:
        a = cupy().ascontiguousarray(a)
    transposed = a.strides[-1] != size and columns > 1
    stack = [0 if n == 1 else s // size for n, s in zip(a.shape[:-2], a.strides)]
    return a, "t" if transposed else "n", (tuple((0, 0, *stack)[-2:]), a.strides[-1 if transposed else -2] // size)


def _gradients(g, x):
    """gᵀ x and the sums of g's columns."""
    g, x, (terms, rows), columns = contiguous(g), contiguous(x), g.shape, x.shape[1]
    return gradients("linear_gradient", "product", g, x, rows, columns, terms, np.int32(rows), np.int32(columns), terms)


def _cublas(a, b):
    core = cupy()._core
    kinds = core._routines_linalg  # CuPy itself would read CUPY_TF32 from the environment, once
    core.set_compute_type(np.float32, kinds.COMPUTE_TYPE_TF32 if tf32_allowed() else kinds.COMPUTE_TYPE_DEFAULT)
    return cupy().matmul(a, b)
