"""What the launches of conv.cu and product.cu share: the tiles of tile.cuh."""

import numpy as np

from ...device import cupy, tf32_allowed
from .build import ceil_div, kernel, launch
from .elementwise import sum_parts

WARPS = {(2, 2), (4, 1), (1, 4)}  # of a block, down and across: each computes 32 × 32 results
DEPTH = 16  # terms of a step
BLOCKS = 512  # that share a sum, about: enough to keep a GPU busy


def tile_kernel(name, family, dtype, warps):
    """The kernel ``name`` of ``family``.cu, for blocks of these warps."""
    tf32 = int(dtype == np.float32 and tf32_allowed())
    return kernel(name, family, dtype, WARPS_DOWN=warps[0], WARPS_ACROSS=warps[1], TF32=tf32)


def tiles_of(rows, columns, warps):
    """How many blocks of these warps a result of this size takes."""
    return ceil_div(rows, 32 * warps[0]) * ceil_div(columns, 32 * warps[1])


def gradients(name, family, left, right, rows, columns, terms, *others, groups=1):
    """The product that a kernel sums over so many terms, (groups·rows, columns), and the sums of its left operand's
    lines; both in slices of the terms, each of eight steps or more, which are then added."""
    warps = (1, 4) if rows <= 32 else (2, 2)
    tiles, lines = tiles_of(rows, columns, warps), groups * rows
    slices = max(1, min(BLOCKS // max(1, tiles * groups), terms // (8 * DEPTH)))
    parts = cupy().empty((slices, lines * (columns + 1)), left.dtype)
    args = left, right, parts, *others
    launch(tile_kernel(name, family, left.dtype, warps), (tiles, slices, groups), (128,), args)
    both = sum_parts(parts)
    return both[:-lines].reshape(lines, columns), both[-lines:]
