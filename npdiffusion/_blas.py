"""Ask NumPy's BLAS for its AVX-512 kernels where it would not find them by itself.

The OpenBLAS in NumPy's wheels chooses kernels by a list of known processors and falls back to AVX2 for newer ones
(AMD's Zen 5, for one), which halves the speed of everything here. OPENBLAS_CORETYPE overrides the choice, but only
before NumPy is first imported: later this does nothing. Set the variable yourself to decide otherwise.
"""

import os
import sys

NEEDED = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def _flags():
    try:
        with open("/proc/cpuinfo") as lines:
            return set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


if "numpy" not in sys.modules and NEEDED <= _flags():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
