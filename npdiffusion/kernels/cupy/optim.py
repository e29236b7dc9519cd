"""Steps of optimisers over lists of arrays, one for each parameter: a launch takes many of them (optim.cu).

Counts and the learning rate are arrays () on the device, so that a captured CUDA graph of a step can be replayed.
"""

from contextlib import contextmanager
from functools import cache
from itertools import groupby

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch, struct
from .layout import contiguous

ADAM = np.dtype([*((name, "f8") for name in ("beta1", "beta2", "eps", "weight_decay")), ("decoupled", "i8")])
CHUNK = 1024  # elements of a block


def sgd(params, grads, velocities, lr, momentum, weight_decay):
    with walkable(params, velocities, read=[grads]) as rows:
        launch_rows("sgd", rows, lr, float(momentum), float(weight_decay))


def adam(params, grads, ms, vs, steps, lr, beta1, beta2, eps, weight_decay, decoupled):
    launch_rows("count", [(k,) for k in steps])
    with walkable(params, ms, vs, read=[grads]) as rows:
        rows = [(*row, k) for row, k in zip(rows, steps)]
        launch_rows("adam", rows, lr, struct(ADAM, beta1, beta2, eps, weight_decay, decoupled))


def ema(averages, params, updates, decay):
    cupy().add(updates, 1, out=updates)
    with walkable(averages, read=[params]) as rows:
        launch_rows("ema", rows, updates, float(decay))


def clip_grad_norm(grads, max_norm):
    """See ``plain.clip_grad_norm``; the norm is an array (): nothing waits. Sums in float64, in a fixed order."""
    xp = cupy()
    norm, factor = xp.empty((), grads[0].dtype), xp.empty((), np.float64)
    with walkable(grads) as rows:
        parts = xp.empty(sum(ceil_div(g.size, CHUNK) for g, in rows), np.float64)
        launch_rows("squares", rows, parts)
        args = parts, parts.size, float(max_norm), norm, factor
        launch(kernel("clip_factor", "optim", norm.dtype), (1,), (256,), args)
        launch_rows("scale", rows, factor)
    return norm


@contextmanager
def walkable(*written, read=()):
    """Rows of arrays, one from each list, for a kernel that walks through their memory from end to end.

    They lie without gaps, and in the axis order of the row's first array; what does not is copied, and copies of arrays
    from the lists ``written`` are written back in the end.
    """
    rows, copies = [], []
    for row in zip(*written, *read):
        w = row[0]
        if not all(a.flags.c_contiguous and a.dtype == w.dtype for a in row):
            order = sorted(range(w.ndim), key=lambda axis: -w.strides[axis])
            views = [a.transpose(order) for a in row]
            row = [contiguous(view.astype(w.dtype, copy=False)) for view in views]
            copies += [(view, a) for view, a in zip(views[:len(written)], row) if a is not view]
        rows.append(row)
    yield rows
    for view, a in copies:
        view[...] = a


def launch_rows(name, rows, *args):
    """Run the kernel ``name`` of optim.cu on rows of arrays: in a launch as many of one dtype as a table holds."""
    before = 0
    for dtype, same in groupby(rows, lambda row: row[0].dtype):
        same = list(same)
        many, layout = table(len(same[0]))
        real = "float32" if dtype == np.int64 else dtype  # counts: their kernel has no real
        for some in (same[i:i + many] for i in range(0, len(same), many)):
            t, sizes = np.zeros((), layout), np.array([row[0].size for row in some])
            counts = ceil_div(sizes, CHUNK)
            ends = np.cumsum(counts)
            t["blocks"], t["size"][:len(some)] = before, sizes
            t["block"][...] = ends[-1]
            t["block"][:len(some)] = ends - counts
            t["array"][:len(some)] = [[a.data.ptr for a in row] for row in some]
            launch(kernel(name, "optim", real), (int(ends[-1]),), (256,), (t[()], *args))
            before += int(ends[-1])


@cache
def table(arrays):
    """How many rows of so many arrays struct Table holds, and its dtype."""
    rows = 3984 // (12 + 8 * arrays)
    fields = ("blocks", "i8"), ("array", "u8", (rows, arrays)), ("size", "i8", rows), ("block", "i4", rows)
    return rows, np.dtype([*fields], align=True)
