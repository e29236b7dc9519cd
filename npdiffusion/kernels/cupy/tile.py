"""What the launches of conv.cu and matmul.cu share: the tiles of tile.cuh."""

import numpy as np

from ...backend import tf32_allowed
from .build import ceil_div, kernel

__all__ = ["WARPS", "slices_of", "tile_kernel", "tiles_of"]

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


def slices_of(terms, tiles):
    """In how many slices to sum so many terms, each of eight steps or more."""
    return max(1, min(BLOCKS // max(1, tiles), terms // (8 * DEPTH)))
