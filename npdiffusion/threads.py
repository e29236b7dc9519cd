"""Threads for the NumPy kernels: the batch is split over a few Python threads.

NumPy releases the GIL inside ufuncs, copies and BLAS calls, so plain Python threads do run
side by side there. Two levels of threads would fight for the cores, so BLAS itself is held at one
thread while a kernel runs its own.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["get_num_threads", "parallel", "scratch", "set_num_threads"]

_blas = ThreadpoolController()
_pool = None
_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_local = threading.local()


def get_num_threads():
    """Number of threads that the NumPy kernels use (default: the cores this process may run on)."""
    return _num_threads


def set_num_threads(n):
    """Let the NumPy kernels use ``n`` threads; raises ValueError unless n is an integer >= 1."""
    global _num_threads, _pool
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"set_num_threads expects an integer >= 1, got {n!r}")
    if _pool is not None:
        _pool.shutdown()
    _num_threads, _pool = n, None


def parallel(function, n):
    """Call ``function(start, stop)`` on contiguous slices of range(n), one slice for each thread.

    The split depends only on n and the number of threads, so that sums come out the same bits every
    time. The calling thread takes the last slice itself. Results come back as a list, in order.
    """
    global _pool
    workers = max(1, min(_num_threads, n))
    edges = [n * i // workers for i in range(workers + 1)]
    with _blas.limit(limits=1, user_api="blas"):
        if workers == 1:
            return [function(0, n)]
        if _pool is None:
            _pool = ThreadPoolExecutor(_num_threads - 1, thread_name_prefix="npdiffusion")
        others = [_pool.submit(function, *pair) for pair in zip(edges[:-2], edges[1:-1])]
        try:
            last = function(edges[-2], edges[-1])
        finally:  # never leave a thread behind that still writes into an output array
            results = [other.result() for other in others]
        return results + [last]


def scratch(name, shape, dtype):
    """An uninitialised array in a buffer that this thread keeps under ``name`` and uses again.

    Reused memory stays in cache and costs no page faults. Its content lasts until the same thread
    asks for the same name again, so it must never leave the kernel that asked.
    """
    buffers = _local.__dict__
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = buffers[name] = np.empty(size, np.uint8)
    return buffer[:size].view(dtype).reshape(shape)
