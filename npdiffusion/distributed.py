"""Data parallelism: the processes that ``mpiexec -n 4 python ...`` starts ("ranks") share the work.

All run the same program. Of a training's batch each rank computes a part (``Training``); ``generate``, ``denoise`` and
``predict_tiled`` divide their pictures, and all ranks get the whole result. All have the same random generators, and
draw from them for the whole batch: results do not depend on the number of ranks, but for the order of summation.

Without mpiexec there is one rank, and nothing here does anything. ``_ranks.py`` says how ranks share cores, and end.
Names are those of ``torch.distributed``; what sends anything waits until all ranks call it.
"""

import hashlib
import os
import sys
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import numpy as np

from ._ranks import local_rank, world
from .device import array_module, cupy, to_device
from .tensor import Tensor, record
from .threads import get_num_threads

_alone = ContextVar("alone", default=False)
_batch = ContextVar("batch", default=None)  # while a rank computes its part of one: (number in all, its slice)


@contextmanager
def _set(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def alone():
    """Context in which this rank works for itself, as if there were no others."""
    return _set(_alone, True)


def batch_of(n):
    """Context in which this rank computes its share of n examples: the library's generators draw for all of them."""
    return _set(_batch, (n, share()) if get_world_size() > 1 else None)


def get_world_size():
    """Number of ranks that share the work."""
    return 1 if world is None or _alone.get() else world.size


def get_rank():
    """This rank's number, from 0."""
    return 0 if world is None or _alone.get() else world.rank


def share():
    """The slice of examples that is this rank's: every ``get_world_size()``-th."""
    return slice(get_rank(), None, get_world_size())


def own_gpu():
    """The device of this rank: a machine's GPUs are dealt out among its ranks."""
    return f"cuda:{local_rank % cupy().cuda.runtime.getDeviceCount()}" if get_world_size() > 1 else "cuda"


def barrier():
    """Wait for all ranks."""
    if get_world_size() > 1:
        world.Barrier()


def broadcast(function):
    """``function()`` as rank 0 computes it: all ranks get its result, or raise its error."""
    if get_world_size() == 1:
        return function()
    result = error = None
    if get_rank() == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = world.bcast((result, error))
    if error is not None:
        raise error
    return result


def all_reduce(x):
    """The sum of an array or a Tensor over all ranks, elementwise.

    Gradients flow through it. A loss that is no mean over examples, but say a ratio of sums, needs it for those sums.
    """
    if get_world_size() == 1:
        return x
    if isinstance(x, Tensor):
        return record(all_reduce(x.data), "all_reduce", (x,), lambda g: (all_reduce(g),))
    return _add_up(array_module(x).array(x, order="C"))


def all_reduce_coalesced(arrays):
    """``all_reduce`` of arrays of one device, in one message, in the dtype of the first; None stays None."""
    if get_world_size() == 1:
        return arrays
    given = [a for a in arrays if a is not None]
    ends = np.cumsum([a.size for a in given])
    flat = array_module(given[0]).empty(ends[-1], given[0].dtype)
    sums = []
    for a, end in zip(given, ends):
        axes = sorted(range(a.ndim), key=lambda i: -a.strides[i])  # as they lie in memory
        sums.append(flat[end - a.size:end].reshape([a.shape[i] for i in axes]).transpose(np.argsort(axes)))
        sums[-1][...] = a
    _add_up(flat)
    rest = iter(sums)
    return [None if a is None else next(rest) for a in arrays]


def _add_up(total):
    """``all_reduce`` in place: by MPI, from GPU to GPU by NCCL."""
    if array_module(total) is np:
        from mpi4py.MPI import IN_PLACE
        world.Allreduce(IN_PLACE, total)
    else:
        nccl = cupy().cuda.nccl
        kind = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}[total.dtype.name]
        _nccl().allReduce(total.data.ptr, total.data.ptr, total.size, kind, nccl.NCCL_SUM,
                          cupy().cuda.get_current_stream().ptr)
    return total


@cache
def _nccl():
    """NCCL's communicator of the ranks' GPUs."""
    nccl = cupy().cuda.nccl
    return nccl.NcclCommunicator(world.size, broadcast(nccl.get_unique_id), world.rank)


def all_gather(part, device="cpu"):
    """The whole array on a device, of which this rank has ``part``: whole[share()], or None if that is empty."""
    if get_world_size() == 1:
        return part
    parts = [a for a in world.allgather(None if part is None else to_device(part, "cpu")) if a is not None]
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for rank, a in enumerate(parts):
        whole[rank::get_world_size()] = a
    return to_device(whole, device)


def over_ranks(function, *arrays):
    """``function(*arrays)``, where each rank computes its share of the examples, their first axis.

    It must treat each example for itself. Numbers and None among the arrays are for all.
    """
    if get_world_size() == 1:
        return function(*arrays)
    mine = [a[share()] if np.ndim(a) else a for a in arrays]
    with batch_of(len(arrays[0])), alone():
        part = function(*mine) if len(mine[0]) else None
    return all_gather(part, arrays[0])


class Generator:
    """A random generator that all ranks have alike. In ``batch_of`` each draws for all, and takes its share."""

    def __init__(self, generator):
        self._generator = generator

    def random(self, size=None, dtype=np.float64):
        return self._drawn(lambda size: self._generator.random(size, dtype), size)

    def standard_normal(self, size=None, dtype=np.float64):
        return self._drawn(lambda size: self._generator.standard_normal(size, dtype), size)

    def integers(self, low, high=None, size=None):
        return self._drawn(lambda size: self._generator.integers(low, high, size), size)

    def _drawn(self, draw, size):
        if _batch.get() is None:
            return draw(size)
        (n, mine), shape = _batch.get(), (size,) if isinstance(size, int) else tuple(size or ())
        if shape[:1] != (count := len(range(n)[mine]),):
            raise ValueError(f"draws on several ranks must be for each example: expected a shape ({count}, ...), "
                             f"got {shape}")
        return draw((n, *shape[1:]))[mine]

    def __getattr__(self, name):
        if _batch.get() is not None:
            raise ValueError(f"draw by random, standard_normal or integers on several ranks, not by {name}")
        return getattr(self._generator, name)


def check_equal(what, arrays):
    """RuntimeError unless these arrays are the same on all ranks, bit for bit."""
    if get_world_size() == 1:
        return
    checksum = 0
    for a in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(to_device(a, "cpu")), checksum)
    checksums = world.allgather(checksum)
    for rank, other in enumerate(checksums):
        if other != checksums[0]:
            raise RuntimeError(f"{what} of rank {rank} are not those of rank 0 any more: do all read the same data, "
                               "and draw from the library's generators?")


def check_started_alike():
    """SystemExit unless all ranks run the same program; rank 0 says how many there are."""
    files = [path for path in (*sorted(Path(__file__).parent.rglob("*.py")), Path(sys.argv[0])) if path.is_file()]
    mine = {"options": sys.argv[1:], "code": hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest(),
            "NumPy": np.__version__, "NPDIFFUSION_KERNELS": os.environ.get("NPDIFFUSION_KERNELS")}
    everyone = world.allgather(mine)
    for rank, other in enumerate(everyone):
        for name in mine:
            if other[name] != everyone[0][name]:
                raise SystemExit(f"the ranks have been started differently: {name} of rank {rank} {other[name]}, of "
                                 f"rank 0 {everyone[0][name]}")
    print(f"{world.size} ranks, threads of each: {get_num_threads()}", file=sys.stderr)


if world is not None:
    check_started_alike()
