"""Settings of this process that the kernels' speed depends on, made when npdiffusion is imported.

- The OpenBLAS in NumPy's wheels chooses its kernels by a list of known processors and falls back to AVX2 for newer
  ones (AMD's Zen 5, for one), which halves the speed of everything here. OPENBLAS_CORETYPE overrides the choice.
- OpenBLAS's threads wait for their next product spinning, 26 ms long, on cores that our own threads need. With
  OPENBLAS_THREAD_TIMEOUT they wait 2^20 of the processor's cycles, and small tensors may be left to them.
- Both count only while NumPy is first imported. So NumPy is imported here with them set, and they are then taken back:
  child processes do not inherit them. If NumPy is there already, or you have set them yourself, nothing is done.
- glibc gives large blocks back to the system as soon as they are freed, and every step of a training would have to
  ask for them again, page by page. It is told to keep up to 1 GiB.

NPDIFFUSION_KEEP_PROCESS=1 in the environment leaves the process as it is.
"""

import ctypes
import os
import sys

from . import _ranks  # noqa: F401  (first: it chooses this process's cores)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"


def processor_flags():
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as lines:
            return set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


blas_threads_sleep = False  # soon after each product
if os.environ.get("NPDIFFUSION_KEEP_PROCESS", "0") in ("", "0"):
    if "numpy" not in sys.modules:
        settings = {TIMEOUT: "20"} | ({"OPENBLAS_CORETYPE": "SkylakeX"} if AVX512 <= processor_flags() else {})
        new = [name for name in settings if name not in os.environ]
        blas_threads_sleep = TIMEOUT in new
        for name in new:
            os.environ[name] = settings[name]
        try:
            import numpy  # noqa: F401
        finally:
            for name in new:
                del os.environ[name]
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 25)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 1 << 30)
