"""Matrix products: large ones by cuBLAS, small ones by the convolution kernels.

A convolution of 1×1 images is a matrix product. Launched here it costs less of the CPU's time than through cuBLAS, and
a CUDA graph can capture it, which CuPy's cuBLAS refuses.
"""

import numpy as np

from ...backend import cupy, tf32_allowed
from .conv import forward, input_gradient, weight_gradient

__all__ = ["matmul"]

LARGE = 1 << 26  # multiplications, from which on cuBLAS takes over
SETTINGS = (1, 1), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation and groups of such convolutions


def matmul(a, b):
    """a @ b by NumPy's rules. A stack times one matrix is one product of two matrices."""
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        return matmul(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])
    if a.ndim == b.ndim == 2 and 0 < a.size * b.shape[1] < LARGE and a.dtype == b.dtype and a.dtype.char in "fd":
        return _product(a, b)
    _set_tf32(tf32_allowed())
    return cupy().matmul(a, b)


def _product(a, b):
    """a (n, k) @ b (k, m), each read as it lies in memory: b may be a weight's transpose, or a a gradient's."""
    if b.T.flags.c_contiguous:
        y = forward(_images(a), _images(b.T), None, (1, 1), *SETTINGS)
    elif a.T.flags.c_contiguous:
        y = weight_gradient(_images(a.T), _images(b), (a.shape[0], b.shape[1], 1, 1), *SETTINGS)[0]
    else:
        y = input_gradient(_images(a), _images(b), None, (1, 1), *SETTINGS)
    return y[:, :, 0, 0]


def _images(a):
    """Rows (n, k) as n images of one pixel with k channels."""
    return a[:, :, None, None]


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
