"""What ``test_distributed.py`` lets mpiexec start: ``python rank_programs.py NAME DIRECTORY ...``."""

import os
import signal
import sys
from pathlib import Path

import npdiffusion
import numpy as np

from npdiffusion import Tensor, distributed, functional as F, nn, training
from npdiffusion.data import PictureFolder, folder
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, denoise, generate, variational_bound
from npdiffusion.files import atomic_write
from npdiffusion.models import UNet
from npdiffusion.tiling import predict_tiled
from npdiffusion.training import Training

OUT = Path(sys.argv[2])
RANK = distributed.get_rank()
IMAGES = np.random.default_rng(7).standard_normal((22, 1, 8, 8), dtype=np.float32)


def network(seed=1):
    npdiffusion.manual_seed(seed)
    model = UNet(channels=(8, 32), blocks=1, attention=(1,), num_classes=3, dropout=0.1)
    model.conv_out.weight.data[...] = 0.1 * npdiffusion.default_generator().standard_normal(model.conv_out.weight.shape)
    return model


def write(**arrays):
    with atomic_write(OUT / f"{distributed.get_world_size()}.npz") as file:
        np.savez(file, **arrays)


def train(steps=50, device="cpu", each_step=lambda run: None, graph=False, batch_size=10, **options):
    """A network with dropout, and a loss with a ratio of sums over the batch, on batches that 3 ranks can't share."""
    model, scheduler = network().to(device), DDPMScheduler()
    run = Training(model, len(IMAGES), {}, steps=steps, batch_size=batch_size, lr=1e-2, ema=0.9)

    def batch(index):
        each_step(run)
        return IMAGES[index], run.rng.integers(0, 1024, len(index)), index % 3

    def loss(x0, t, labels):
        noise = run.device_rng.standard_normal(x0.shape, np.float32)
        error = (model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels) - Tensor(noise)) ** 2
        if graph:
            return error.mean()
        return error.mean() + distributed.all_reduce(error.sum()) / distributed.all_reduce(Tensor(x0 * x0).sum())

    run.fit(loss, OUT, batch=batch, cuda_graph=graph, **options)
    return run


def steps():
    training.LOG_EVERY = 1
    resume, stop = "--resume" in sys.argv, int(sys.argv[3])
    train(resume=resume, each_step=lambda run: run.step == stop and RANK == 1 and signal.raise_signal(signal.SIGTERM))


def sampling():
    model, rng = network(), np.random.default_rng
    labels, x0 = np.arange(7) % 3, np.rint(127 * np.tanh(IMAGES[:7]) + 127) / np.float32(127.5) - 1
    shape, ddpm = (7, 1, 8, 8), DDPMScheduler()
    write(drawn=generate(model, DDPMScheduler(), shape, labels, 2.0, 5, generator=rng(0)),
          one=generate(model, DDIMScheduler(), (1, 1, 8, 8), None, 1.0, 3, generator=rng(0)),
          one_shot=denoise(model, ddpm, x0, t=300), ddim=denoise(model, ddpm, x0, np.arange(7) * 100, "ddim", 4),
          dpm=denoise(model, ddpm, x0, np.arange(7) * 100, "dpm", 4),
          ancestral=denoise(model, ddpm, x0, np.arange(7) * 9, "ancestral", generator=rng(0)),
          after=npdiffusion.default_generator().random(3),
          bound=variational_bound(model, ddpm, x0, groups=4, generator=rng(0), batch_size=4).total,
          tiled=predict_tiled(lambda x: denoise(model, ddpm, x, t=100), x0.reshape(1, 14, 32), tile=8, overlap=4))


def tiles():
    """Into one file, by all ranks; the first time with an error on the last of them."""
    path, picture = OUT / "out", np.random.default_rng(0).standard_normal((1, 90, 40), dtype=np.float32)
    if distributed.get_rank() == 0 and not path.exists():
        np.memmap(path, np.float32, "w+", shape=(90, 40)).flush()
    distributed.barrier()
    out, seen = np.memmap(path, np.float32, "r+", shape=(90, 40)), []

    def predict(x):
        if "fail" in sys.argv and len(seen) == 5 and RANK == 2:
            raise OSError(28, "No space left on device")
        seen.append(x)
        return denoise(network(), DDPMScheduler(), x, t=100)

    predict_tiled(predict, picture, out, tile=16, overlap=4, batch_size=2)
    write(out=out, whole=predict_tiled(predict, picture, tile=16, overlap=4)[0])


def gpu():
    """Training and sampling on the GPU's stand-in, gradients summed by something that looks like NCCL."""
    import ctypes
    import types

    from mpi4py import MPI

    import standin_cupy

    class NcclCommunicator:
        def __init__(self, size, unique_id, rank):
            assert unique_id == ("the", "same") and (size, rank) == (MPI.COMM_WORLD.size, MPI.COMM_WORLD.rank)

        def allReduce(self, source, target, count, kind, op, stream):
            assert source == target and (kind, op) == (7, 0) and not standin_cupy.get_current_stream().is_capturing()
            memory = (ctypes.c_float * count).from_address(source)
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, np.frombuffer(memory, np.float32))

    sys.modules["cupy"] = standin_cupy.module
    standin_cupy.module.cuda.nccl = types.SimpleNamespace(
        NcclCommunicator=NcclCommunicator, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0,
        get_unique_id=lambda: ("the", "same") if RANK == 0 else ("another",))
    graph = "graph" in sys.argv
    assert distributed.own_gpu() == ("cuda:0" if distributed.get_world_size() > 1 else "cuda")
    run = train(6, "cuda", graph=graph)
    rng = np.random.default_rng(0)
    drawn = generate(run.model, DDIMScheduler(), (3, 1, 8, 8), num_inference_steps=2, generator=rng)
    write(loss=np.array([row[2] for row in run.log]), drawn=npdiffusion.to_device(drawn, "cpu"))


def raises():
    def fail(run):
        if run.step == 3 and RANK == 1:
            raise ValueError("this picture is broken")

    train(each_step=fail)


def dies():
    train(each_step=lambda run: run.step == 3 and RANK == 1 and os.kill(os.getpid(), signal.SIGKILL))


def strays():
    training.COMPARE_EVERY = 5

    def change(run):
        if run.step == 3 and RANK == 1:
            run.model.conv_out.bias.data += 1e-7

    train(each_step=change)


def cannot_write():
    def block(run):
        if RANK == 0:
            (OUT / "model.safetensors").mkdir(exist_ok=True)

    train(steps=3, each_step=block)


def too_many():
    train(batch_size=1)


def refuses():
    """What rank 0 alone can see is an error of all."""
    try:
        distributed.broadcast(lambda: (OUT / "nothing").read_text() if RANK == 0 else "there")
    except FileNotFoundError as error:
        distributed.barrier()
        (OUT / f"{RANK}.txt").write_text(str(error))


def pictures():
    """Rank 0 alone decodes, by processes of its own."""
    folder.MANY = 10
    if RANK:
        folder.read_frames = None
    images, labels = PictureFolder(OUT / "pictures", 8, cache=OUT / "cache")[:]
    distributed.check_equal("pictures", [images, labels])
    write(images=images, labels=labels)


def cores():
    (OUT / f"{RANK}.txt").write_text(f"{RANK} {sorted(os.sched_getaffinity(0))} {npdiffusion.get_num_threads()}\n")
    layer = nn.Linear(3, 3)
    print("only once", F.relu(layer(Tensor(np.ones((2, 3), np.float32)))).shape)


globals()[sys.argv[1]]()
