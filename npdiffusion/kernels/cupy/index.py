"""The gradient of indexing."""

import math

import numpy as np

from ...device import cupy
from .build import launch_each
from .layout import contiguous


def add_at(shape, index, g):
    """Zeros of ``shape`` with g added at ``index``, as often as an element is named there: the gradient of x[index].

    Rows are found by comparing each with every index: fine for tables (an embedding) and for shuffled batches.
    """
    if isinstance(index, cupy().ndarray) and index.dtype.kind != "b":  # whole rows of the first axis
        rows, length = shape[0], math.prod(shape[1:])
    else:
        rows, length = math.prod(shape), 1
        index = cupy().arange(rows).reshape(shape)[index]
    out = cupy().empty(shape, g.dtype)
    index = contiguous(index.astype(np.int64, copy=False))
    args = contiguous(g), index, out, *map(np.int64, (index.size, rows, length))
    launch_each("add_rows", "index", out, args)
    return out
