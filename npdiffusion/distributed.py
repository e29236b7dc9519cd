"""Data parallelism: the processes that ``mpiexec -n 4 python ...`` starts ("ranks") share the work.

All run the same program. A training step is the mean over a batch of which each rank computes a part (``Training``);
``generate``, ``denoise`` and ``predict_tiled`` divide their pictures, and all ranks get the whole result. Every rank
has the same random generators and draws from them for the whole batch, so that results do not depend on the number of
ranks, but for the order of summation. Without mpiexec there is one rank, and all of this is nothing.

Only rank 0 writes files and shows progress; see ``_ranks.py`` for errors and for how the cores are shared. Names as in
``torch.distributed``. What all ranks must do together (every function here, but for the first three) waits until all
do.
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
_batch = ContextVar("batch", default=None)  # while a rank computes its part of one: how many are in it, which are its


def get_world_size():
    """Number of ranks that share the work."""
    return 1 if world is None or _alone.get() else world.size


def get_rank():
    """This one's number, from 0."""
    return 0 if world is None or _alone.get() else world.rank


def own_gpu():
    """The device of this rank: the GPUs of a machine are dealt out among its ranks."""
    return f"cuda:{local_rank % cupy().cuda.runtime.getDeviceCount()}" if get_world_size() > 1 else "cuda"


def share():
    """The slice of anything that is this rank's: each takes every ``get_world_size()``-th."""
    return slice(get_rank(), None, get_world_size())


@contextmanager
def _within(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def alone():
    """Context for a rank's own work: in it there are no others."""
    return _within(_alone, True)


def barrier():
    """Wait for all ranks."""
    if get_world_size() > 1:
        world.Barrier()


def broadcast(function):
    """``function()`` of rank 0 alone: all ranks get its result, or raise its error."""
    if get_world_size() == 1:
        return function()
    result = error = None
    if get_rank() == 0:
        try:
            result = function()
        except (Exception, SystemExit) as problem:
            error = problem
    result, error = world.bcast((result, error))
    if error is not None:
        raise error
    return result


def all_reduce(x):
    """The sum over all ranks of an array or a Tensor, elementwise.

    Gradients flow through it: a loss that is no mean over pictures (a ratio of sums, say) sums here what it sums over
    the batch.
    """
    if get_world_size() == 1:
        return x
    if isinstance(x, Tensor):
        return record(all_reduce(x.data), "all_reduce", (x,), lambda g: (all_reduce(g),))
    return _add_up(array_module(x).array(x, order="C"))


def _add_up(total):
    """``all_reduce`` in place."""
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
    """NCCL's communicator of the ranks' GPUs: each rank has one of its own."""
    nccl = cupy().cuda.nccl
    return nccl.NcclCommunicator(world.size, broadcast(nccl.get_unique_id), world.rank)


def all_reduce_coalesced(arrays):
    """``all_reduce`` of some arrays of one device and dtype, in one message; None stays None."""
    given = [a for a in arrays if a is not None]
    ends = np.cumsum([a.size for a in given])
    flat = array_module(given[0]).empty(ends[-1], given[0].dtype)
    sums = [_like(flat[end - a.size:end], a) for a, end in zip(given, ends)]
    for place, a in zip(sums, given):
        place[...] = a
    _add_up(flat)
    rest = iter(sums)
    return [None if a is None else next(rest) for a in arrays]


def _like(flat, a):
    """``flat`` in the shape of ``a``, and with its axes in the same order in memory."""
    axes = sorted(range(a.ndim), key=lambda i: -a.strides[i])
    return flat.reshape([a.shape[i] for i in axes]).transpose(np.argsort(axes))


def all_gather(part, device="cpu"):
    """The whole array on a device, of which this rank has ``part``: whole[share()], or None if that is empty."""
    if get_world_size() == 1:
        return part
    parts = world.allgather(None if part is None else to_device(part, "cpu"))
    some = [a for a in parts if a is not None]
    whole = np.empty((sum(map(len, some)), *some[0].shape[1:]), some[0].dtype)
    for rank, a in enumerate(some):
        whole[rank::len(parts)] = a
    return to_device(whole, device)


def over_ranks(function, *arrays):
    """``function`` of arrays (or None, or numbers), each rank's share of them along the first axis; all gathered."""
    if get_world_size() == 1:
        return function(*arrays)
    mine = [a[share()] if np.ndim(a) else a for a in arrays]
    with batch_of(len(arrays[0])), alone():
        part = function(*mine) if len(mine[0]) else None
    return all_gather(part, arrays[0])


class Generator:
    """A random generator that all ranks have alike; within a batch each draws for all of it, and takes its share."""

    def __init__(self, generator):
        self._generator = generator

    def random(self, size=None, dtype=np.float64):
        return self._share(size, lambda size: self._generator.random(size, dtype))

    def standard_normal(self, size=None, dtype=np.float64):
        return self._share(size, lambda size: self._generator.standard_normal(size, dtype))

    def integers(self, low, high=None, size=None):
        return self._share(size, lambda size: self._generator.integers(low, high, size))

    def __getattr__(self, name):
        if _batch.get() is not None:
            raise ValueError(f"a loss on several ranks draws by random, standard_normal or integers, not by {name}")
        return getattr(self._generator, name)

    def _share(self, size, draw):
        if _batch.get() is None:
            return draw(size)
        (n, mine), size = _batch.get(), (size,) if isinstance(size, int) else tuple(size or ())
        count = len(range(n)[mine])
        if size[:1] != (count,):
            raise ValueError(f"a loss on several ranks draws for each of its examples: expected a shape ({count}, ...), "
                             f"got {size}")
        return draw((n, *size[1:]))[mine]


def same_generator(generator):
    """The generator, as ranks use it."""
    return generator if world is None else Generator(generator)


def batch_of(n):
    """Context in which this rank computes its share of a batch of n."""
    return _within(_batch, (n, share()) if get_world_size() > 1 else None)


def check_equal(what, arrays):
    """RuntimeError unless these arrays are the same on all ranks, bit for bit."""
    if get_world_size() > 1:
        checksum = 0
        for a in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(to_device(a, "cpu")), checksum)
        different = [rank for rank, other in enumerate(world.allgather(checksum)) if other != world.bcast(checksum)]
        if different:
            raise RuntimeError(f"{what} of rank {different[0]} are not those of rank 0 any more: do all draw the same "
                               "numbers, from the library's generators?")


def _check_started_alike():
    """SystemExit if the ranks run different programs; else rank 0 says how many there are."""
    script, package = Path(sys.argv[0]), Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), *([script] if script.is_file() else [])]
    facts = {"options": sys.argv[1:], "code": hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest(),
             "NumPy": np.__version__, "NPDIFFUSION_KERNELS": os.environ.get("NPDIFFUSION_KERNELS"),
             "threads": get_num_threads()}
    everybody = world.allgather(facts)
    for rank, other in enumerate(everybody):
        for name in facts:
            if name != "threads" and other[name] != everybody[0][name]:
                raise SystemExit(f"the ranks have been started differently: {name} of rank {rank}: {other[name]}, of "
                                 f"rank 0: {everybody[0][name]}")
    threads = sorted({other["threads"] for other in everybody})
    print(f"{world.size} ranks, threads of each: {' to '.join(map(str, threads))}", file=sys.stderr)


if world is not None:
    _check_started_alike()
