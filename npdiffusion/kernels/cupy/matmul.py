"""Matrix products: our own (matmul.cu), and cuBLAS's where both are large and no CUDA graph is being captured.

Our own reads operands as they lie in memory, costs less of the CPU's time to launch, and can be captured in a CUDA
graph, which CuPy's cuBLAS refuses.
"""

import math

import numpy as np

from ...backend import cupy, tf32_allowed
from .build import launch, struct
from .layout import contiguous
from .tile import gradients, tile_kernel, tiles_of

__all__ = ["linear_backward", "matmul"]

OPERAND = np.dtype([("stack", "i8", 2), ("pitch", "i4")], align=True)  # structs of matmul.cu
PRODUCT = np.dtype([*((name, OPERAND) for name in "aby"), *((name, "i4") for name in (
    "rows", "columns", "terms", "inner", "bias_pitch"))], align=True)
LARGE = 1 << 30  # multiplications, from which on cuBLAS takes over
LONG = 1 << 10  # terms, from which on a transposed product is summed in slices


def matmul(a, b, bias=None):
    """a @ b + bias by NumPy's rules. A stack times one matrix is one product of two.

    bias: (columns of b,), for two matrices also (rows of a, columns of b), or None.
    Where the matrices of b are interleaved in memory (the heads of attention are, pixel by pixel) so are the result's.
    """
    if b.ndim == 1:
        return matmul(a, b[:, None])[..., 0]
    if a.ndim == 1:
        return matmul(a[None], b)[..., 0, :]
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        return matmul(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, bias).reshape(*a.shape[:-1], b.shape[1])
    if a.dtype != b.dtype or a.dtype.char not in "fd" or _is_for_cublas(a, b):
        _set_tf32(tf32_allowed())
        y = cupy().matmul(a, b)
        return y if bias is None else cupy().add(y, bias, out=y)
    if bias is None and a.ndim == b.ndim == 2 and len(b) >= LONG and a.T.flags.c_contiguous and b.flags.c_contiguous:
        return _gradients(a.T, b)[0]
    return _product(a, b, bias)


def linear_backward(g, x, weight, need_input=True, onto=None):
    """dx, dweight and dbias of <g, x weightᵀ + bias>: g (n, out), x (n, in), weight (out, in). dx is added to the array
    ``onto`` if given, and None if not needed."""
    dx = matmul(g, weight, onto) if need_input else None
    if 0 in x.shape or _is_for_cublas(g.T, x):
        return dx, matmul(g.T, x), g.sum(0)
    return dx, *_gradients(contiguous(g), contiguous(x))


def _is_for_cublas(a, b):
    return (a.ndim == b.ndim == 2 and a.size * b.shape[1] >= LARGE
            and not cupy().cuda.get_current_stream().is_capturing())


def _product(a, b, bias):
    """a (..., n, k) @ b (..., k, m) + bias."""
    if bias is None and _interleaved(a.swapaxes(-1, -2)) and not _interleaved(b):
        return _product(b.swapaxes(-1, -2), a.swapaxes(-1, -2), None).swapaxes(-1, -2)
    *stack, n, k = a.shape
    *others, _, m = b.shape
    if stack != others:
        stack = np.broadcast_shapes(stack, others)
    if len(stack) > 2:
        a, b = (cupy().broadcast_to(x, (*stack, *x.shape[-2:])) for x in (a, b))
        a, b = (x.reshape(math.prod(stack), *x.shape[-2:]) for x in (a, b))
        return _product(a, b, bias).reshape(*stack, n, m)
    outer, inner = (1, 1, *stack)[-2:]
    y = cupy().empty((outer, n, inner, m), a.dtype).swapaxes(1, 2) if _interleaved(b) else (
        cupy().empty((outer, inner, n, m), a.dtype))
    (a, *of_a), (b, *of_b), (y, *of_y) = map(_operand, (a, b, y))
    warps = (4, 1) if m <= 32 else (1, 4) if n <= 32 else (2, 2)
    bias_pitch = m if bias is not None and bias.ndim == 2 else 0
    product = struct(PRODUCT, of_a[1], of_b[1], of_y[1], n, m, k, inner, bias_pitch)
    launch(tile_kernel(f"product_{of_a[0]}{of_b[0]}", "matmul", a.dtype, warps),
           (tiles_of(n, m, warps) * outer * inner,), (128,), (a, b, contiguous(bias), y, product))
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
    (terms, rows), columns = g.shape, x.shape[1]
    return gradients("linear_gradient", "matmul", g, x, rows, columns, terms, np.int32(rows), np.int32(columns), terms)


_is_set = None


def _set_tf32(allowed):
    """Tell CuPy; it reads CUPY_TF32 from the environment only once."""
    global _is_set
    if allowed != _is_set:
        core = cupy()._core
        linalg = core._routines_linalg
        kind = linalg.COMPUTE_TYPE_TF32 if allowed else linalg.COMPUTE_TYPE_DEFAULT
        core.set_compute_type(np.float32, kind)
        _is_set = allowed
