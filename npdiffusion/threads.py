"""Threads for the NumPy kernels: the batch is split over a few Python threads.

NumPy releases the GIL inside ufuncs, copies and BLAS calls, so plain Python threads do run side by side there. Two
levels of threads would fight for the cores, so BLAS itself is held at one thread while a kernel runs its own. Where
tensors are too small for that, BLAS may use its threads, if they do not keep the cores busy afterwards.
"""

import math
import os
import queue
import threading
from contextlib import ContextDecorator, contextmanager
from contextvars import copy_context
from functools import cache, partial, wraps

import numpy as np

from ._process import blas_threads_sleep
from ._ranks import sharing

WORTH = 1 << 27  # multiplications, about a millisecond, from which on threads pay

_tasks = queue.SimpleQueue()  # functions without arguments, for the workers
_workers = 0
_lock = threading.RLock()  # for counting workers, and who wants one BLAS thread
_cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []  # to place threads on
_num_threads = min(8, len(_cores) or max(1, (os.cpu_count() or 1) // sharing))  # more would wait for Python's lock
_local = threading.local()  # scratch buffers
LINE = 64  # bytes of a cache line: a vector of AVX-512 that crosses two is read twice


def get_num_threads():
    """Number of threads that the NumPy kernels use (default: the cores this process may run on, at most 8)."""
    return _num_threads


def set_num_threads(n):
    """Let the NumPy kernels of this process use ``n`` threads each; ValueError unless n is an integer >= 1."""
    global _num_threads
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"set_num_threads expects an integer >= 1, got {n!r}")
    _num_threads = n


def threads_for(work):
    """Number of threads for so many multiplications (an element that is only read and written counts for 128).

    One for little: waking another takes up to 0.1 ms, and when both call NumPy every few microseconds, each call may
    have to wait for Python's lock.
    """
    return _num_threads if work >= WORTH else 1


def multiplies(kernel):
    """A kernel that multiplies matrices: BLAS uses one thread; outside ``parallel`` it may use as many as we may, if
    they do not keep the cores busy afterwards."""
    @wraps(kernel)
    def run(*args, **options):
        if blas_lets_go() and all([ask() <= _num_threads for ask, _ in blas()]):
            return kernel(*args, **options)
        with one_blas_thread():
            return kernel(*args, **options)

    return run


class one_blas_thread(ContextDecorator):
    """Context in which BLAS uses one thread: the first to enter tells it, the last to leave what held before."""

    inside, before = [], ()  # the threads (more than once, where they enter again); [(set_num_threads, n)]

    def __enter__(self):
        with _lock:
            self.inside.append(threading.get_ident())
            if len(self.inside) == 1:
                one_blas_thread.before = [(tell, n) for ask, tell in blas() if (n := ask()) != 1]
                for tell, _ in self.before:
                    tell(1)

    def __exit__(self, *exc):
        with _lock:
            self.inside.remove(threading.get_ident())
            if not self.inside:
                self.leave()

    def leave(self):
        for tell, n in self.before:
            tell(n)
        one_blas_thread.before = ()


@cache
def libraries():
    """The BLAS libraries in this process."""
    from threadpoolctl import ThreadpoolController
    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def blas():
    """Their functions (get_num_threads, set_num_threads)."""
    # threadpoolctl 3.8's own set_num_threads would listen to one thread alone
    return [(lib.get_num_threads, getattr(lib, "_real_set_num_threads", lib.set_num_threads)) for lib in libraries()]


@cache
def blas_lets_go():
    """Whether their threads sleep soon after a product: OpenBLAS's own do, if it was told."""
    return blas_threads_sleep and all(lib.internal_api == "openblas" and lib.threading_layer == "pthreads"
                                      for lib in libraries())


def parallel(function, n, threads=None):
    """Call ``function(start, stop)`` on contiguous slices of range(n), one for each thread, and return the results.

    The calling thread works too, and takes the slices that no other has begun. The slices depend only on n and the
    number of threads, and the results come in their order: sums over them are the same bits every time. The first
    error is raised once nobody writes into the arrays any more.
    """
    parts = min(threads or _num_threads, n)
    if parts <= 1:
        return [function(0, n)]
    results, finished = [None] * parts, queue.SimpleQueue()
    slices = iter([(i, n * i // parts, n * (i + 1) // parts) for i in range(parts)])

    def work():
        for i, start, stop in slices:  # next() of a list's iterator is atomic
            try:
                results[i] = function(start, stop)
                finished.put(None)
            except BaseException as error:
                finished.put(error)

    _hire(parts - 1)
    with one_blas_thread():
        for _ in range(parts - 1):
            _tasks.put(partial(copy_context().run, work))  # NumPy's errstate, and all else that is this thread's own
        with _on_core(0):
            work()
        errors = [finished.get() for _ in range(parts)]
    for error in errors:
        if error is not None:
            raise error
    return results


@contextmanager
def _on_core(i):
    """Keep this thread on the i-th core, if our threads use all cores of the process: one each.

    Left alone, Linux may wake a worker on the core of the thread that woke it, beside an idle one, and take a hundred
    milliseconds to notice (seen on virtual machines: a kernel at half its speed after every pause).
    """
    alone = len(_cores) != _num_threads or os.sched_getaffinity(0) != set(_cores)
    if not alone:
        os.sched_setaffinity(0, {_cores[i]})
    try:
        yield
    finally:
        if not alone:
            os.sched_setaffinity(0, _cores)


def _hire(n):
    """Have at least n workers. A queue wakes them in 5 microseconds, a concurrent.futures pool would take 16."""
    global _workers
    with _lock:
        while _workers < n:
            _workers += 1
            threading.Thread(target=_work, args=(_workers,), name=f"npdiffusion-{_workers}", daemon=True).start()


def _work(i):
    with _on_core(i):
        while True:
            task = _tasks.get()
            task()
            del task  # hold on to no arrays while waiting


def _in_child():
    """Of a fork, which has only the thread that forked: no workers, and nobody else in a kernel."""
    global _tasks, _workers
    _tasks, _workers = queue.SimpleQueue(), 0
    one_blas_thread.inside[:] = [thread for thread in one_blas_thread.inside if thread == threading.get_ident()]
    if not one_blas_thread.inside:
        one_blas_thread().leave()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)


def scratch(name, shape, dtype):
    """An uninitialised array in a buffer that this thread keeps under ``name`` and uses again; it begins a cache line.

    Reused memory stays in cache and costs no page faults. Its content lasts until the same thread asks for the same
    name again, so it must never leave the kernel that asked.
    """
    buffers = _local.__dict__
    size = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = buffers.get(name)
    if buffer is None or buffer.nbytes < size:
        buffer = np.empty(size + LINE, np.uint8)
        buffer = buffers[name] = buffer[-buffer.ctypes.data % LINE:][:size]
    return buffer[:size].view(dtype).reshape(shape)
