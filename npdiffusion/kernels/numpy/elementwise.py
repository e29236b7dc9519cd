"""Sums and concatenation, bound by memory; still, where an array is large the batch is split over threads."""

import numpy as np

from ...threads import parallel, threads_for

MOVED = 128  # multiplications that take as long as reading and writing an element


def add(a, b, out=None):
    """a + b with broadcasting, in the memory order of the inputs."""
    threads = threads_for(MOVED * a.size)
    if a.shape != b.shape or a.ndim < 2 or threads == 1:
        return np.asarray(np.add(a, b, out=out))  # an array () too, not one of NumPy's scalars
    if out is None:
        out = np.empty_like(b if a.strides[-1] == 0 else a, dtype=np.result_type(a, b))
    parallel(lambda start, stop: np.add(a[start:stop], b[start:stop], out=out[start:stop]), len(a), threads)
    return out


def cat(arrays, axis):
    """The arrays one after the other along ``axis``; NCHW arrays come out in channels-last memory."""
    threads = threads_for(MOVED * sum(a.size for a in arrays))
    if arrays[0].ndim != 4 or axis != 1 or threads == 1:
        return np.concatenate(arrays, axis)
    n, _, h, w = arrays[0].shape
    edges = np.cumsum([0] + [a.shape[1] for a in arrays]).tolist()
    out = np.empty((n, h, w, edges[-1]), np.result_type(*arrays)).transpose(0, 3, 1, 2)

    def copy(start, stop):
        for a, first, last in zip(arrays, edges, edges[1:]):
            out[start:stop, first:last] = a[start:stop]

    parallel(copy, n, threads)
    return out
