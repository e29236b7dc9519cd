"""Matrix products over our own threads.

OpenBLAS's own threads spin for milliseconds after each product, and would take a core from the kernel that follows.
"""

import numpy as np

from ...threads import parallel

__all__ = ["matmul"]

LARGE = 1 << 18  # multiplications; below, OpenBLAS uses one thread by itself


def matmul(a, b):
    """a @ b by NumPy's rules, split over the first axis of stacks, or over the rows of a."""
    stacked = a.ndim > 2 or b.ndim > 2
    if min(a.ndim, b.ndim) < 2 or a.size * b.shape[-1] < LARGE or (stacked and a.shape[:-2] != b.shape[:-2]):
        return np.matmul(a, b)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.result_type(a, b))

    def rows(start, stop):
        np.matmul(a[start:stop], b[start:stop] if stacked else b, out=out[start:stop])

    parallel(rows, len(a))
    return out
