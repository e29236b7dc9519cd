"""Matrix products over our own threads.

OpenBLAS's own threads spin for milliseconds after each product, and would take a core from the kernel that follows.
"""

import numpy as np

from ...threads import one_blas_thread, parallel

__all__ = ["linear", "linear_backward", "matmul"]

LARGE = 1 << 24  # multiplications; below, waking a thread costs more than it brings


def matmul(a, b):
    """a @ b by NumPy's rules, split over the first axis of stacks, or over the rows of a."""
    stacked = a.ndim > 2 or b.ndim > 2
    small = a.size * b.shape[-1] < LARGE
    if small or min(a.ndim, b.ndim) < 2 or (stacked and a.shape[:-2] != b.shape[:-2]):
        with one_blas_thread():
            return np.matmul(a, b)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.result_type(a, b))

    def rows(start, stop):
        np.matmul(a[start:stop], b[start:stop] if stacked else b, out=out[start:stop])

    parallel(rows, len(a))
    return out


def linear(x, weight, bias):
    """x·Wᵀ + b: rows x (n, in), weight (out, in), bias (out,) or None -> (n, out)."""
    y = matmul(x, weight.T)
    if bias is not None:
        y += bias
    return y


def linear_backward(g, x, weight, need_input=True, need_weight=True, onto=None):
    """Gradients dx (plus the array ``onto``), dweight and dbias of <g, linear(x, weight, bias)>; None for those that are
    not needed."""
    dx = matmul(g, weight) if need_input else None
    if onto is not None:
        dx += onto
    return (dx, matmul(g.T, x), g.sum(0)) if need_weight else (dx, None, None)
