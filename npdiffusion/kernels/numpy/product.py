"""Matrix products over our own threads.

OpenBLAS's own threads spin for milliseconds after each product, and would take a core from the kernel that follows.
"""

import numpy as np

from ...threads import multiplies, parallel, threads_for


@multiplies
def matmul(a, b):
    """a @ b of matrices or stacks of them, split over the first axis of stacks, or rows of a."""
    return product(a, b)


def product(a, b, bias=None):
    """a @ b, plus a bias for each column or None."""
    stacked = a.ndim > 2 or b.ndim > 2
    threads = threads_for(8 * a.size * b.shape[-1])  # as a single call of NumPy each thread gains sooner
    if threads == 1 or min(a.ndim, b.ndim) < 2 or (stacked and a.shape[:-2] != b.shape[:-2]):
        y = np.matmul(a, b)
        return y if bias is None else np.add(y, bias, out=y)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.result_type(a, b))

    def rows(start, stop):
        y = np.matmul(a[start:stop], b[start:stop] if stacked else b, out=out[start:stop])
        if bias is not None:
            y += bias

    parallel(rows, len(a), threads)
    return out


@multiplies
def linear(x, weight, bias):
    return product(x, weight.T, bias)


@multiplies
def linear_backward(g, x, weight, need_input=True):
    return product(g, weight) if need_input else None, product(g.T, x), g.sum(0)
