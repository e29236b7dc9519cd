"""Settings of this process that the kernels' speed depends on, made when npdiffusion is imported.

- The OpenBLAS in NumPy's wheels chooses its kernels by a list of known processors and falls back to AVX2 for newer
  ones (AMD's Zen 5, for one), which halves the speed of everything here. OPENBLAS_CORETYPE overrides the choice, but
  only while NumPy is first imported. So NumPy is imported here with the variable set, which is then taken back: child
  processes do not inherit it. If NumPy is there already, or you have set the variable yourself, nothing is done.
- glibc gives large blocks back to the system as soon as they are freed, and every step of a training would have to
  ask for them again, page by page. It is told to keep up to 1 GiB.

NPDIFFUSION_KEEP_PROCESS=1 in the environment leaves the process as it is.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
CHOICE = "OPENBLAS_CORETYPE"


def processor_flags():
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as lines:
            return set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


if os.environ.get("NPDIFFUSION_KEEP_PROCESS", "0") in ("", "0"):
    if "numpy" not in sys.modules and CHOICE not in os.environ and AVX512 <= processor_flags():
        os.environ[CHOICE] = "SkylakeX"
        try:
            import numpy  # noqa: F401
        finally:
            del os.environ[CHOICE]
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 25)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 1 << 30)
