"""The gradient of indexing."""

import numpy as np

__all__ = ["add_at"]


def add_at(shape, index, g):
    """Zeros of ``shape`` with g added at ``index``, as often as an element is named there: the gradient of x[index]."""
    out = np.zeros(shape, g.dtype)
    np.add.at(out, index, g)
    return out
