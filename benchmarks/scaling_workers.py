"""The contenders of scaling.py: processes that stay, and do what they are told, in turn.

Those that are not at work cost no core anything: each rank sleeps in a read of a socket of its own, where its next
command comes, and never in a collective of MPI or gloo, which would spin. The socket ends with the program that started
the worker, and the worker with it.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from multiprocessing.connection import Client, Connection
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from train_step import in_layout, inputs, numpy_unet, torch, torch_runs

from npdiffusion import Tensor, distributed, functional as F, no_grad
from npdiffusion.training import Training

LR, EMA, CLIP = 1e-4, 0.999, 1.0
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class Ours:
    """What a worker can do: npdiffusion, as one process or as a rank."""

    @cache
    def training(self, batch, alone):
        model, data = numpy_unet(), inputs(batch)
        run = Training(model, batch, {}, steps=1, batch_size=batch, lr=LR, ema=EMA, clip=CLIP)

        def loss(index):
            x, t, labels, noise = (a[index] for a in data)
            return F.mse_loss(model(Tensor(x), t, labels), Tensor(noise))

        return run, data[:3], run.descent(loss)

    def step(self, batch, alone=False):
        with distributed.alone() if alone else nullcontext():
            return float(self.training(batch, alone)[2](np.arange(batch)))

    def gradients(self, batch):
        return {name: p.grad for name, p in self.training(batch, False)[0].model.named_parameters()}

    def forward(self, batch, result=False):
        run, data, _ = self.training(batch, False)
        with no_grad(), run.model.evaluating():
            y = distributed.over_ranks(lambda x, t, labels: run.model(Tensor(x), t, labels).data, *data)
        return y if result else None

    def all_reduce(self, batch, repeats):
        """The gradients' Allreduce, that of one message as long, that of one number."""
        grads = [*self.gradients(batch).values()]
        flat, one = np.zeros(sum(g.size for g in grads), np.float32), np.zeros(1, np.float32)
        return {"bytes": flat.nbytes, "ms": median_ms(lambda: distributed.all_reduce_coalesced(grads), repeats),
                "flat_ms": median_ms(lambda: distributed._add_up(flat), repeats),
                "one_ms": median_ms(lambda: distributed._add_up(one), repeats)}

    def costs(self, batch, repeats):
        """What the model needs besides: adding gradients to others, and drawing a batch of noise."""
        rng, a = np.random.default_rng(0), np.zeros(sum(g.size for g in self.gradients(batch).values()), np.float32)
        b = a.copy()
        return {"bytes": a.nbytes, "add_ms": median_ms(lambda: np.add(a, b, a), repeats),
                "draw_ms": median_ms(lambda: rng.standard_normal((batch, 1, 32, 32), np.float32), repeats)}


class Theirs:
    """PyTorch, eager, or one of some processes of DistributedDataParallel; ``which``: a batch size and a layout."""

    def __init__(self, rank, ranks, address):
        self.mine, self.ranks = slice(rank, None, ranks), ranks
        share = max(1, len(CORES) // ranks)
        if ranks > 1:
            if hasattr(os, "sched_setaffinity"):  # as our ranks do
                os.sched_setaffinity(0, CORES[len(CORES) * rank // ranks:][:share])
            torch.distributed.init_process_group("gloo", f"file://{address}.gloo", rank=rank, world_size=ranks)
        torch.set_num_threads(share if ranks > 1 else npdiffusion.get_num_threads())

    @cache
    def network(self, *which):
        batch, layout = which
        module = torch_runs(1, layout, numpy_unet().state_dict()).model
        parts = [torch.from_numpy(a[self.mine]) for a in inputs(batch)]
        x, t, labels, noise = (in_layout(a, layout) for a in parts)
        model = torch.nn.parallel.DistributedDataParallel(module) if self.ranks > 1 else module
        average = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
        adam = torch.optim.AdamW(module.parameters(), LR, weight_decay=0.0, fused=True)

        def step():
            loss = torch.nn.functional.mse_loss(model(x, t, labels), noise)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
            adam.step()
            average.update_parameters(module)
            return loss.item()

        def forward():
            with torch.no_grad():
                y = module(x, t, labels).contiguous()
                if self.ranks == 1:
                    return y
                whole = y.new_empty(batch, *y.shape[1:])
                pieces = [torch.empty_like(y) for _ in range(self.ranks)]
                torch.distributed.all_gather(pieces, y)
                for rank, piece in enumerate(pieces):
                    whole[rank::self.ranks] = piece
                return whole

        return module, step, forward

    def step(self, *which):
        return self.network(*which)[1]()

    def gradients(self, *which):
        return {name: p.grad.contiguous().numpy() for name, p in self.network(*which)[0].named_parameters()}

    def forward(self, *which, result=False):
        y = self.network(*which)[2]()
        return y.numpy() if result else None


def median_ms(function, repeats):
    """Of a function that all ranks begin together; the first call does not count."""
    times = []
    for _ in range(repeats + 1):
        distributed.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def work(kind, address, rank, ranks):
    """A worker: does what its socket says until that ends, asleep between."""
    does = Ours() if kind == "ours" else Theirs(rank, ranks, address)
    try:
        with Client(address) as connection:
            connection.send(rank if kind == "theirs" else distributed.get_rank())
            while True:
                name, args, options = connection.recv()
                connection.send(getattr(does, name)(*args, **options))
    except (EOFError, OSError):
        return  # the driver has ended


class Workers:
    """The processes of one contender; ``ask`` lets each of them, or the first ones only, do something."""

    def __init__(self, kind, ranks, folder):
        self.name, address = f"{kind} × {ranks}", f"{folder}/{kind}{ranks}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(ranks)
        start = [sys.executable, __file__, kind, address]
        commands = [[*start, str(rank), str(ranks)] for rank in range(ranks if kind == "theirs" else 1)]
        if kind == "ours" and ranks > 1:
            commands = [[mpiexec(), "-n", str(ranks), *start, "0", str(ranks)]]
        # OPENBLAS_CORETYPE might hold NumPy at older instructions than PyTorch uses
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
        self.processes = [subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                           stdout=subprocess.DEVNULL, start_new_session=True) for command in commands]
        self.count, self.connections = ranks, {}

    def join(self):
        self.listener.settimeout(0.2)
        while len(self.connections) < self.count:
            try:
                connection = self.listener.accept()[0]
            except TimeoutError:
                if any(process.poll() is not None for process in self.processes):
                    self.fail()
                continue
            connection.setblocking(True)
            connection = Connection(connection.detach())
            self.connections[self.listening(connection.recv)] = connection

    def ask(self, name, *args, only=None, **options):
        some = [self.connections[rank] for rank in range(only or self.count)]
        for connection in some:
            self.listening(partial(connection.send, (name, args, options)))
        return [self.listening(connection.recv) for connection in some]

    def listening(self, function):
        try:
            return function()
        except (EOFError, ConnectionError):
            self.fail()

    def fail(self):
        raise SystemExit(f"a worker has ended ({self.name}): its error is above")

    def end(self):
        for end in (self.listener, *self.connections.values()):
            end.close()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.terminate()  # mpiexec ends its ranks
                process.wait()


def mpiexec():
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found or not importlib.util.find_spec("mpi4py"):
        raise SystemExit("ranks need MPI: pip install mpi4py mpich (or --ranks 1)")
    return found


@contextmanager
def contenders(ranks):
    """{(kind, ranks): Workers}"""
    workers = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for key in [("ours", n) for n in ranks] + [("theirs", n) for n in ranks if torch]:
                workers[key] = Workers(*key, folder)
            for each in workers.values():
                each.join()
            yield workers
        finally:
            for each in workers.values():
                each.end()


def assert_agreement(runs, tolerance=1e-4):
    """Losses of three steps, gradients of the first, and outputs; runs: {name: (Workers, arguments)}."""
    results = {}
    for name, (workers, which) in runs.items():
        outputs = workers.ask("forward", *which, result=True)
        losses = [np.mean(workers.ask("step", *which))]
        gradients = workers.ask("gradients", *which)
        losses += [np.mean(workers.ask("step", *which)) for _ in range(2)]
        results[name] = np.array(losses), outputs, gradients
    losses, (y, *_), (grads, *_) = next(iter(results.values()))
    scale = max(float(abs(g).max()) for g in grads.values())
    for name, (others_losses, outputs, others_grads) in results.items():
        pairs = [("loss", losses, others_losses, 0.0), *(("output", y, other, 0.0) for other in outputs)]
        # where the gradient is zero by nature (the bias of attention's keys) only rounding is left: hence scale
        pairs += [(f"gradient of {p}", grads[p], other[p], 1e-2 * scale) for other in others_grads for p in grads]
        for what, a, b, floor in pairs:
            error = float(abs(a - b).max()) / max(float(abs(a).max()), floor)
            assert error < tolerance, f"{name}: {what} differs from one process's by {error:.1e}"


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
