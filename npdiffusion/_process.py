"""Settings of this process that the kernels' speed depends on, made when npdiffusion is imported.

- The OpenBLAS in NumPy's wheels chooses its kernels by a list of known processors and falls back to AVX2 for newer
  ones (AMD's Zen 5, for one), which halves the speed of everything here. OPENBLAS_CORETYPE overrides the choice, but
  only before NumPy is first imported: later this does nothing. If you have set the variable yourself, it stands.
- glibc gives large blocks back to the system as soon as they are freed, and every step of a training would have to
  ask for them again, page by page. It is told to keep up to 1 GiB.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def processor_flags():
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as lines:
            return set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


if "numpy" not in sys.modules and AVX512 <= processor_flags():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")

if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 25)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 1 << 30)
