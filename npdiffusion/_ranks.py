"""The processes ("ranks") that mpiexec has started, joined before NumPy is imported: they share the cores.

Without mpiexec nothing is imported, and nothing changes.

- Ranks that may run on the same cores take a part of them each; BLAS and our own threads then count those alone.
- Rank 0 speaks for all: the others are silent, but for an error of their own.
- An error that nobody catches ends all ranks, with one message. Else nobody leaves before the others.
"""

import atexit
import os
import sys
from functools import partial
from pathlib import Path
from time import sleep

LAUNCHERS = "PMI_", "OMPI_COMM_WORLD_"  # what their variables begin with: MPICH, Intel MPI and Slurm; Open MPI


def join():
    """The communicator of all ranks, None without mpiexec; SystemExit if they cannot find each other."""
    size, rank = (max(int(os.environ.get(launcher + what, least)) for launcher in LAUNCHERS)
                  for what, least in (("SIZE", 1), ("RANK", 0)))
    if size == 1:
        return None
    try:
        from mpi4py import MPI
        library = " ".join(MPI.Get_library_version().split()[:3])
        problem = None if MPI.COMM_WORLD.size == size else f"are of another MPI than mpi4py's ({library})"
    except (ImportError, RuntimeError) as error:
        problem = f"cannot use mpi4py: {error}"
    if problem:  # each would do all the work, and write over what the others write
        raise SystemExit(1 if rank else f"mpiexec has started {size} processes, which {problem}.\nInstall both, pip "
                         f"install 'npdiffusion[mpi]', and start with {Path(sys.executable).parent / 'mpiexec'}")
    for launcher in LAUNCHERS:
        os.environ.pop(launcher + "SIZE", None)  # what this process starts is no rank
    return MPI.COMM_WORLD


def on_this_machine():
    """This rank's number on its machine, and how many may run on the same cores; it keeps to its part of these."""
    from mpi4py.MPI import COMM_TYPE_SHARED
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    here = world.Split_type(COMM_TYPE_SHARED)
    sharing = [rank for rank, cores in enumerate(here.allgather(allowed)) if cores == allowed]
    i, n = sharing.index(here.rank), len(sharing)
    if allowed:
        os.sched_setaffinity(0, allowed[len(allowed) * i // n:][:max(1, len(allowed) // n)])
    return here.rank, n


def end_all(tell, *error):
    """An excepthook: ``tell(*error)``, and all ranks end."""
    sleep(min(world.rank, 1))  # where all fail alike, rank 0 says so, and ends the others meanwhile
    sys.stderr = sys.__stderr__
    try:
        print(f"rank {world.rank}: ", end="", file=sys.stderr)
        tell(*error)
    finally:
        sys.stderr.flush()
        sleep(0.5)  # until mpiexec has read it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI would say it again
        world.Abort(1)


def leave_together():
    """Wait for all ranks, without keeping a core busy."""
    barrier = world.Ibarrier()
    while not barrier.Test():
        sleep(0.02)


world, local_rank, sharing = join(), 0, 1
if world:
    local_rank, sharing = on_this_machine()
    sys.excepthook = partial(end_all, sys.excepthook)
    atexit.register(leave_together)
    if world.rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")
