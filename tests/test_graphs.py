"""Work recorded as a CUDA graph and replayed computes what it computes otherwise, bit for bit."""

import numpy as np
import pytest
import standin_cupy
from on_devices import bits, host, not_waiting, real_cupy, small_unet
from test_training import stopping_after

import npdiffusion
from npdiffusion import Tensor, functional as F, nn, to_device
from npdiffusion.checkpoint import load_file
from npdiffusion.cuda_graph import captured
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate
from npdiffusion.device import cupy as cupy_module
from npdiffusion.models import VAE, Classifier, NoiseLevelNet, UNet
from npdiffusion.random import default_generator
from npdiffusion.training import Training


def network(**changes):
    return small_unet(attention=(), **changes)


def on_gpu(*values):
    return to_device(np.array(values, np.float32), "cuda")


# The primitive


def test_replays_see_new_arguments(cupy):
    model, calls, kept = nn.Linear(2, 2).to("cuda"), [], []

    def function(x, y, scale, nothing):
        calls.append(nothing)
        return [x * y.data + scale, None, Tensor(x)]

    run = captured(function, model)
    for i in range(5):
        x, y = on_gpu(i, 1.0), Tensor(np.array([2.0, i], np.float32))  # one of the CPU
        z, none, same = run(x, y, 3, None)
        assert none is None and isinstance(same, Tensor) and host(same).tolist() == [i, 1]
        kept.append(z)
    assert calls == [None] * 3 and len({a.data.ptr for a in kept}) == 5
    assert [host(z).tolist() for z in kept] == [[2 * i + 3, i + 3] for i in range(5)]
    assert host(run(x, y, 4, None)[0]).tolist() == [12, 8] and len(calls) == 4  # another number
    assert host(run(on_gpu(1.0), Tensor([2.0]), 3, None)[0]).tolist() == [5] and len(calls) == 5  # another shape


def test_replays_draw_new_numbers_and_change_what_lies_on_the_gpu(cupy):
    results = []
    for capture in (False, True):
        npdiffusion.manual_seed(3)
        total, model = on_gpu(0.0, 0.0, 0.0), nn.Linear(2, 2).to("cuda")

        def function():
            noise = default_generator("cuda").standard_normal(3, dtype=np.float32)
            total[1:] += noise[1:]
            return noise

        run = captured(function, model) if capture else function
        results.append([*(host(run()).tolist() for _ in range(6)), host(total).tolist()])
    assert results[0] == results[1] and len({tuple(a) for a in results[0]}) == 7


def test_a_captured_model_is_the_model(cupy):
    model = network(dropout=0.5).to("cuda")
    fast, x = captured(model), Tensor(np.ones((2, 1, 4, 4), np.float32), device="cuda")
    t, labels = np.array([3, 5]), np.array([0, 2])
    assert (fast.num_classes, fast.device, fast.config, fast.training) == (3, "cuda:0", model.config, True)

    def check():
        for _ in range(4):
            npdiffusion.default_generator("cuda").bit_generator.state = {
                "bit_generator": "Philox4x32", "key": 1, "counter": 2}
            expected = model(x, t, labels)
            npdiffusion.default_generator("cuda").bit_generator.state = {
                "bit_generator": "Philox4x32", "key": 1, "counter": 2}
            y = fast(x, t, labels)
            assert np.array_equal(host(y), host(expected)) and not y.requires_grad
        return host(y)

    with_dropout = check()
    fast.eval()
    assert not model.training and not np.array_equal(check(), with_dropout)
    for move in (lambda: None, lambda: model.to("cpu").to("cuda")):  # the second time the recording's weights are gone
        move()
        for p in model.parameters():
            p.data *= 1.5  # in place: the recording reads the new weights
        changed = check()
    npdiffusion.allow_tf32()
    try:
        assert not np.array_equal(check(), changed)
    finally:
        npdiffusion.allow_tf32(False)


@pytest.mark.parametrize("wrong, said", [
    (lambda x: x * float(x.sum()), "synchronous|capturing"), (lambda x: 1 / 0, "division by zero"),
    (lambda x: x * to_device(np.ones(2, np.float32), "cuda"), r"an array of the CPU, of shape \(2,\)"),
    (lambda x: cupy_module().matmul(x[:, None] + x, x[:, None] + x)[0], "cuBLAS")])
def test_what_cannot_be_recorded_is_said(cupy, wrong, said):
    calls = []

    def function(x):
        calls.append(x)
        return wrong(x) if len(calls) == 3 else x + 1

    x = on_gpu(1.0, 2.0)
    if "zero" not in said:
        wrong(x)  # is compiled
    run = captured(function, nn.Linear(2, 2).to("cuda"))
    for _ in range(2):
        run(x)
    with pytest.raises(RuntimeError, match=f"cannot be recorded as a CUDA graph: .*({said})"):
        run(x)
    assert host(x + 1).tolist() == [2, 3]  # the GPU goes on
    assert host(run(x)).tolist() == host(run(x)).tolist() == [2, 3]  # so does this


NETWORKS = {"unet": network, "attention": small_unet, "segmenter": lambda: UNet(2, channels=(8, 8), time=False),
            "classifier": lambda: Classifier(channels=(8, 8), dropout=0.2), "noise level": lambda: NoiseLevelNet(
                channels=(4, 4), hidden=4), "vae": lambda: VAE(latent=3, channels=(8,), hidden=8, size=4)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_captured(cupy, name):
    """Forward and backward."""
    results = []
    for capture in (False, True):
        npdiffusion.manual_seed(0)
        model = NETWORKS[name]().to("cuda")
        levels = [np.array([1, 500]), np.array([2, 0])] if getattr(model, "time", False) else []

        def gradients(x, *levels):
            outputs = model(Tensor(x), *levels)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            model.zero_grad()
            F.cat([(y * y).sum().reshape(1) for y in outputs]).sum().backward()
            return [*outputs, *(p.grad for p in model.parameters())]

        run = captured(gradients, model) if capture else gradients
        for seed in range(4):
            x = np.random.default_rng(seed).standard_normal((2, 2 if name == "segmenter" else 1, 4, 4))
            arrays = run(*(to_device(a, "cuda") for a in (x.astype(np.float32), *levels)))
        results.append([host(a) for a in arrays])
    assert all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(*results, strict=True))


def test_on_the_cpu_nothing_is_captured():
    model = network()
    assert captured(model) is model and captured(len, model) is len


# Training


IMAGES = np.random.default_rng(3).standard_normal((8, 1, 4, 4))


def training(device, steps=6, **changes):
    """A Training in float64 with dropout, its loss and its batches."""
    model = network(dropout=0.2, **changes).to("float64").to(device)
    scheduler, run = DDPMScheduler(), Training(model, 8, {}, steps=steps, batch_size=2, lr=1e-2, ema=0.9, clip=0.5)

    def batch(index):
        t = run.rng.integers(0, 1024, len(index))
        return IMAGES[index], t, np.where(run.rng.random(len(index)) < 0.3, 3, index % 3)

    def loss(x0, t, labels):
        noise = run.device_rng.standard_normal(x0.shape, dtype=np.float64)
        return F.mse_loss(model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels), Tensor(noise))

    return run, loss, batch


def test_a_captured_training_is_the_training(cupy):
    runs = []
    for capture in (False, True):
        run, loss, batch = training("cuda")
        descend = run.descent(loss, batch, cuda_graph=capture)
        run.seen = [run.train_step(descend) for _ in range(6)]
        runs.append(run)
    for a, b in zip(bits(runs[0]), bits(runs[1]), strict=True):
        assert np.array_equal(a, b) and np.isfinite(a).all()
    eager, replayed = runs
    assert len({float(x) for x in replayed.seen}) == 6
    assert eager.device_rng.bit_generator.state == replayed.device_rng.bit_generator.state
    assert host(eager.optimizer.steps).tolist() == host(replayed.optimizer.steps).tolist()
    assert (eager.optimizer.lr, int(eager.ema.updates)) == (replayed.optimizer.lr, int(replayed.ema.updates))


def test_a_replay_waits_for_nothing(cupy, monkeypatch):
    run, loss, batch = training("cuda", steps=20)
    descend = run.descent(loss, batch, cuda_graph=True)
    for _ in range(3):
        run.train_step(descend)
    before = standin_cupy.counts.copy()
    launches, launch = [], standin_cupy.Graph.launch
    monkeypatch.setattr(standin_cupy.Graph, "launch", lambda graph: (launches.append(graph), launch(graph)))
    with not_waiting(cupy):
        losses = [run.train_step(descend) for _ in range(2)]
    assert all(array.shape == () for array in losses)
    if cupy is not real_cupy:
        assert len(launches) == 2 and standin_cupy.counts["copies"] - before["copies"] == 2 * 3  # the batch


@pytest.mark.slow
def test_a_captured_training_goes_on_bit_for_bit(cupy, tmp_path):
    files = []
    for graph in (False, True):
        run, loss, batch = training("cuda", steps=9)
        run.fit(loss, tmp_path / f"whole{graph}", batch=batch, cuda_graph=graph)
        files.append(tmp_path / f"whole{graph}")
    run, loss, batch = training("cuda", steps=9)
    with pytest.raises(SystemExit, match="stopped at step 5 of 9"):
        run.fit(loss, tmp_path / "parts", batch=stopping_after(run, 5, batch), cuda_graph=True)
    run, loss, batch = training("cuda", steps=9)
    reports = []
    run.fit(loss, tmp_path / "parts", batch=batch, cuda_graph=True, resume=True, save_minutes=0,
            report=lambda run: reports.append(run.step))  # the average is swapped in and out between replays
    assert reports == [6, 7, 8, 9]
    (a, meta), *others = (load_file(path / "checkpoint.safetensors") for path in [*files, tmp_path / "parts"])
    for b, other in others:
        assert all(np.array_equal(a[name], b[name]) for name in set(a) - {"log"})
        assert all(meta[name] == other[name] for name in ("step", "generator", "device_generator", "ema_updates"))


def test_a_captured_training_needs_batches(cupy, tmp_path):
    run, loss, _ = training("cuda")
    with pytest.raises(ValueError, match="needs batch="):
        run.fit(lambda index: loss(IMAGES[index], index, index), tmp_path, cuda_graph=True)


def test_on_the_cpu_graph_changes_nothing(tmp_path):
    files = []
    for graph in (False, True):
        run, loss, batch = training("cpu")
        run.fit(loss, tmp_path / str(graph), batch=batch, cuda_graph=graph)
        files.append(load_file(tmp_path / str(graph) / "checkpoint.safetensors")[0])
    assert all(np.array_equal(files[0][name], files[1][name]) for name in set(files[0]) - {"log"})


# Sampling


@pytest.mark.parametrize("labels, scale", [(None, 1.0), (1, 1.0), (np.array([0, 2]), 2.5)])
@pytest.mark.parametrize("kind, options", [pytest.param(DDPMScheduler, {}, marks=pytest.mark.slow),
                                           pytest.param(DDIMScheduler, {"eta": 0.5}, marks=pytest.mark.slow),
                                           (DPMSolverMultistepScheduler, {})], ids=["ddpm", "ddim", "dpm"])
def test_captured_sampling(cupy, kind, options, labels, scale):
    model, scheduler = network().to("cuda"), kind(6, **options)
    fast = captured(model)
    for seed in range(2):
        results = []
        for net in (model, fast):
            npdiffusion.manual_seed(seed)
            with not_waiting(cupy):
                x = generate(net, scheduler, (2, 1, 4, 4), labels, scale)
            results.append(host(x))
        assert np.array_equal(*results) and np.isfinite(results[0]).all()
    assert len(fast._recordings) == 1 and model.training  # of a pass with the scheduler's step, for all calls


@pytest.mark.parametrize("method", ["one-shot", pytest.param("dpm", marks=pytest.mark.slow),
                                    pytest.param("ddim", marks=pytest.mark.slow), "ancestral"])
def test_captured_denoising(cupy, method):
    model, noisy = network().to("cuda"), np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    fast = captured(model)
    for t in (6, np.array([3, 7, 5]), 7):
        results = []
        for net in (model, fast):
            npdiffusion.manual_seed(0)
            results.append(denoise(net, DDPMScheduler(40), noisy, t, method))
        assert np.array_equal(*results)


# The stand-in


def capture(function, private=True):
    cuda = standin_cupy.module.cuda
    pool, stream = cuda.MemoryPool(), cuda.Stream(non_blocking=True)
    with stream, cuda.using_allocator(pool.malloc if private else None):
        stream.begin_capture()
        try:
            result = function()
        finally:
            graph = stream.end_capture()
    return graph, result, pool


def test_the_stand_in_executes_when_it_launches():
    xp = standin_cupy.module
    x, index = xp.asarray(np.arange(4.0)), xp.asarray(np.array([3, 0]))
    y = xp.zeros(4)

    def function():
        z = xp.full(4, 2.0)
        z[1:3] = x[index]
        y[...] = 9
        y.T.fill(7)
        xp.add(z, x, out=y[:4])
        z *= 3
        return z.sum()

    expected, after = float(function()), y.get().tolist()
    y.fill(0)
    graph, total, pool = capture(function)
    assert y.get().tolist() == [0, 0, 0, 0] and np.isnan(total.get())
    for _ in range(2):
        graph.launch()
        assert (float(total), y.get().tolist()) == (expected, after)
    x[...] = xp.asarray(np.array([3.0, 0, 0, 1]))
    graph.launch()
    assert float(total) == 3 * (2 + 1 + 3 + 2) and y.get().tolist() == [5, 1, 3, 3]
    del pool
    with pytest.raises(RuntimeError, match="memory was freed"):
        graph.launch()


def test_the_stand_in_knows_freed_memory():
    held = [standin_cupy.module.asarray(np.arange(4.0))]
    held[0][1:].fill(2)  # compiled
    graph, _, pool = capture(lambda: held[0][1:].fill(2))
    graph.launch()
    held.clear()
    with pytest.raises(RuntimeError, match="memory was freed"):
        graph.launch()


@pytest.mark.parametrize("use, error", [
    (lambda xp, x: x.get(), RuntimeError), (lambda xp, x: xp.asarray(np.ones(3)), AssertionError),
    (lambda xp, x: x.set(np.ones(3)), RuntimeError), (lambda xp, x: x[x > 0], RuntimeError),
    (lambda xp, x: xp.matmul(x, x), NotImplementedError), (lambda xp, x: xp.RawModule(code=""), RuntimeError),
    (lambda xp, x: xp.logaddexp(x.astype("i2"), x.astype("i2")), RuntimeError),
    (lambda xp, x: xp.concatenate([x] * 9), AssertionError)])
def test_the_stand_in_refuses_while_capturing(use, error):
    xp = standin_cupy.module
    x = xp.asarray(np.ones(3))
    x > 0, x + x, xp.matmul(x, x), xp.concatenate([x, x]), x.astype("i2")  # compiled
    with pytest.raises(error):
        capture(lambda: use(xp, x))
    with pytest.raises(RuntimeError, match="common pool"):
        capture(lambda: x + x, private=False)
    with pytest.raises(RuntimeError, match="default"):
        xp.cuda.get_current_stream().begin_capture()
    assert (x + x).get().tolist() == [2, 2, 2]
