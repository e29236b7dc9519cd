"""Compiles the CUDA sources of this folder, and launches their kernels."""

from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from ...device import cupy

REAL = {"float32": "float", "float64": "double"}


@cache
def build(family, dtype, **defines):
    """The module of ``family``.cu with ``real`` the floating type and macros as given; compiled at its first use.

    dtype: an array's, or its name.
    """
    return cupy().RawModule(code=source(family), options=options(REAL[np.dtype(dtype).name], defines))


def source(family):
    """The text of ``family``.cu, with that of tile.cuh in the place where it includes it: CuPy keeps compiled modules
    by their text, and would not see that an included one has changed."""
    text, tile = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in (f"{family}.cu", "tile.cuh"))
    above, include, below = text.partition('#include "tile.cuh"\n')
    line = above.count("\n") + 2
    return f'{above}#line 1 "tile.cuh"\n{tile}#line {line} "{family}.cu"\n{below}' if include else text


def options(real, defines):
    """The compiler's options."""
    return "--std=c++17", f"-Dreal={real}", *(f"-D{name}={value}" for name, value in defines.items())


@cache
def kernel(name, family, dtype, **defines):
    """The kernel ``name`` of such a module."""
    return build(family, dtype, **defines).get_function(name)


def launch(kernel, grid, block, args):
    """Run a kernel on the current stream, unless there is nothing to do.

    Each argument has the parameter's C type: NumPy scalars (a Python int is a long long, a float a double), arrays for
    pointers, scalars of a structured dtype for structs. Nothing waits for the kernel.
    """
    if 0 not in grid:
        kernel(grid, block, args)


def ceil_div(a, b):
    """⌈a/b⌉."""
    return -(-a // b)


@lru_cache(1024)
def struct(dtype, *values):
    """A C struct to pass by value: a NumPy scalar of a structured dtype (CuPy takes an array () too, but slowly)."""
    return np.array(values, dtype)[()]
