"""The whole library on a GPU, or as if on one: on machines without, a stand-in for CuPy takes its place."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import standin_cupy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_devices import REAL, bits, host, not_waiting, real_cupy, small_unet
from strategies import CASES, cases

import npdiffusion
from npdiffusion import Tensor, device as devices, functional as F, nn, optim, to_device
from npdiffusion.checkpoint import load_file, save_file
from npdiffusion.cuda_graph import captured
from npdiffusion.data import SyntheticDigits, SyntheticMicrographs
from npdiffusion.diffusion import (
    AveragePool, Blur, DDIMScheduler, DDPMScheduler, Gray, Inpaint, denoise, generate, restore, variational_bound,
)
from npdiffusion.models import VAE, Classifier, NoiseLevelNet, UNet, laplace_nll, load_model, save_model, vae_loss
from npdiffusion.training import Training

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not REAL, reason="no CuPy" if real_cupy is None else "CuPy finds no GPU: the stand-in alone")
def test_there_is_a_gpu():
    assert npdiffusion.cuda_is_available() and Tensor(1.0, device="cuda").device == "cuda:0"


def on(device, x):
    """x, or the Tensors and arrays in it, on a device."""
    if isinstance(x, (list, tuple)):
        return type(x)(on(device, part) for part in x)
    return x.to(device) if isinstance(x, Tensor) else x


def close(a, b, tolerance):
    a, b = host(a), host(b)
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max(initial=0)))


# Every op


def many(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", sorted(CASES))
@many(12)
@given(data=st.data())
def test_ops(cupy, name, data):
    """Results and gradients as on the CPU; nothing waits for the GPU but masks and what is documented to."""
    dtype, tolerance = data.draw(st.sampled_from([(np.float64, 1e-10), (np.float32, 1e-5)]), label="dtype")
    case = data.draw(cases(name, dtype), label=name)
    results, inputs, options = [], case.inputs, case.options
    for device in ("cpu", "cuda"):
        leaves = [Tensor(a, requires_grad=True) for a in case.arrays()]
        moved = [x.to(device) for x in leaves]
        case.options = {k: on(device, v) for k, v in options.items()}
        case.inputs = tuple(Tensor(x).to(device) if isinstance(x, np.ndarray) and x.dtype.kind == "b" else x
                            for x in inputs)  # masks belong on the device; integers may come from the CPU
        outputs = case(*moved)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        y = outputs[0]
        assert y.device == ("cpu" if device == "cpu" else "cuda:0")
        upstream = np.random.default_rng(0).standard_normal(y.shape)
        y.backward(to_device(np.asarray(upstream, dtype), device))
        assert all(x.grad is None or isinstance(x.grad, np.ndarray) for x in leaves)
        results.append([*map(host, outputs), *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(b, a, tolerance)


@pytest.mark.parametrize("op", [
    lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a < b, lambda a, b: a @ b, lambda a, b: F.cat([a, b]),
    lambda a, b: F.linear(a, b), lambda a, b: F.mse_loss(a, b), lambda a, b: F.where(a > 0, b, b),
    lambda a, b: F.layer_norm(a, 2, b[0]), lambda a, b: F.scaled_dot_product_attention(a, a, b),
    lambda a, b: F.conv2d(a[None, None], b[None, None]), lambda a, b: F.group_norm(a, 1, b[0])])
def test_mixed_devices_are_named(cupy, op):
    here, there = Tensor(np.ones((2, 2), np.float32)), Tensor(np.ones((2, 2), np.float32), device="cuda")
    for pair, said in (((there, here), "cuda:0.*cpu"), ((here, there), "cpu.*cuda:0|cuda:0.*cpu")):
        with pytest.raises(TypeError, match=said):
            op(*pair)


def test_tensors_move(cupy):
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    y = x.cuda()
    assert (x.device, y.device, y.to("cuda") is y, x.cpu() is x) == ("cpu", "cuda:0", True, True)
    assert "device='cuda:0'" in repr(y) and "device" not in repr(x)
    ((y * y).cpu() * Tensor(np.full((2, 3), 3.0))).sum().backward()
    assert np.array_equal(x.grad, 6 * x.data)
    assert float((y * y).sum()) == 55 and np.array_equal(y.detach().cpu().numpy(), x.data)
    with pytest.raises(RuntimeError, match=r"on cuda:0; call .cpu\(\).numpy\(\)"):
        y.detach().numpy()
    with pytest.raises(TypeError, match="a gradient on cuda:0, got one on cpu"):
        y.backward(np.ones((2, 3)))
    assert Tensor([1.0, 2.0], device="cuda").device == "cuda:0"
    assert (2.5 - y).device == "cuda:0" and np.array_equal(host(Tensor(2.0, requires_grad=False) ** (y - 1)), 2 ** (
        x.data - 1).astype(np.float64))
    for wrong in ("gpu", "cuda:x", "cpu:1", "cuda:"):
        with pytest.raises(ValueError, match="device must be|data type"):
            to_device(x.data, wrong)
    with pytest.raises(RuntimeError, match="there is no device 'cuda:99'"):
        to_device(x.data, "cuda:99")


def test_tf32_is_an_option(cupy, request):
    request.addfinalizer(lambda: npdiffusion.allow_tf32(False))
    rng, results = np.random.default_rng(0), []
    x, w = rng.standard_normal((2, 16, 6, 6)), rng.standard_normal((16, 16, 3, 3))
    for dtype in (np.float64, np.float32):
        for allow in (False, True):
            npdiffusion.allow_tf32(allow)
            assert devices.tf32_allowed() is allow
            results.append(host(F.conv2d(*(Tensor(a.astype(dtype), device="cuda") for a in (x, w)), padding=1)))
    exact, same, single, rounded = results
    assert np.array_equal(exact, same)
    errors = [abs(y - exact).max() / abs(exact).max() for y in (single, rounded)]
    assert errors[0] < 1e-6 < 1e-5 < errors[1] < 1e-2


def test_integers_may_be_on_another_device(cupy):
    x, table = (np.random.default_rng(0).standard_normal(s) for s in ((4, 3), (5, 2)))
    index = np.array([2, 0, -100, 1])
    values = []
    for device in ("cpu", "cuda"):
        for labels in (index, to_device(index, "cuda")):
            values.append((F.cross_entropy(Tensor(x, device=device), labels),
                           F.embedding(labels % 5, Tensor(table, device=device)), Tensor(x, device=device)[labels % 4]))
    for others in values[1:]:
        for a, b in zip(values[0], others):
            close(b, a, 1e-12)
    for wrong in (lambda: F.cross_entropy(Tensor(x, device="cuda"), index + 2), lambda: F.embedding(
            index, Tensor(table, device="cuda"))):
        with pytest.raises(ValueError, match="expects (class numbers|indices) from 0"):
            wrong()


# Without a GPU


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_is_said_without_cupy():
    code = "import sys; sys.modules['cupy'] = None; import npdiffusion as nd\n"
    assert python(code + "print(nd.cuda_is_available())").strip() == "False"
    for use in ("nd.Tensor([1.0]).to('cuda')", "nd.nn.Linear(2, 2).cuda()", "nd.default_generator('cuda')",
                "nd.Tensor(0.0, device='cuda:0')"):
        said = python(code + f"try: {use}\nexcept RuntimeError as error: print(error)")
        assert "pip install 'npdiffusion[cuda]'" in said


@pytest.mark.skipif(real_cupy is None or REAL, reason="needs CuPy on a machine without a GPU")
def test_what_is_said_without_a_gpu():
    said = python("import npdiffusion as nd\ntry: nd.Tensor([1.0]).to('cuda')\nexcept RuntimeError as e: print(e)")
    assert "GPU" in said and "npdiffusion[cuda]" in said


# Random numbers


def test_generators(cupy):
    def draws():
        rng = npdiffusion.default_generator("cuda")
        return [host(a) for a in (rng.random(1001, np.float32), rng.random((3, 500)), rng.standard_normal(1001),
                                  rng.standard_normal((20, 50), np.float32), rng.integers(-3, 4, 999),
                                  rng.integers(5, size=(2, 2)))]

    npdiffusion.manual_seed(7)
    first, second = draws(), draws()
    state = npdiffusion.default_generator("cuda:0").bit_generator.state
    third = draws()
    npdiffusion.manual_seed(7)
    for a, b, c in zip(first, draws(), second):
        assert np.array_equal(a, b) and not np.array_equal(a, c)
    npdiffusion.default_generator("cuda").bit_generator.state = state
    assert all(np.array_equal(a, b) for a, b in zip(third, draws()))
    u, d, n, m, i, j = first
    assert [a.dtype for a in first] == [np.float32, np.float64, np.float64, np.float32, np.int64, np.int64]
    for a in (u, d):
        assert 0 <= a.min() and a.max() < 1 and abs(a.mean() - 0.5) < 0.05 and abs(a.std() - 12**-0.5) < 0.03
    for a in (n, m):
        assert abs(a.mean()) < 0.1 and abs(a.std() - 1) < 0.1 and 2.5 < abs(a).max() < 6
        assert abs(np.corrcoef(a.ravel()[:-1], a.ravel()[1:])[0, 1]) < 0.1
    assert sorted(set(i.tolist())) == [*range(-3, 4)] and set(j.ravel().tolist()) <= set(range(5))
    with pytest.raises(ValueError, match="Philox4x32"):
        npdiffusion.default_generator("cuda").bit_generator.state = np.random.default_rng(0).bit_generator.state


def test_philox_is_the_papers(cupy):
    """The known answer for an all-zero key and counter (Salmon et al. 2011's code, kat_vectors)."""
    rng = npdiffusion.default_generator("cuda")
    rng.bit_generator.state = {"bit_generator": "Philox4x32", "key": 0, "counter": 0}
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert host(rng.integers(0, 2**32, 4)).tolist() == words
    rng.bit_generator.state = {"bit_generator": "Philox4x32", "key": 0, "counter": 0}
    assert host(rng.random(4, np.float32)).tolist() == [(w >> 8) / 2**24 for w in words]


# Networks


def test_modules_move(cupy):
    model = small_unet()
    state = {k: v.copy() for k, v in model.state_dict().items()}
    assert model.device == "cpu" and model.cuda() is model and model.device == "cuda:0"
    arrays = [p.data for p in model.parameters()]
    assert all(a.transpose(0, 2, 3, 1).flags.c_contiguous for a in arrays if a.ndim == 4)  # as the kernels want them
    assert all(a is p.data for a, p in zip(arrays, model.to("cuda").parameters()))
    for name, a in model.state_dict().items():
        assert np.array_equal(host(a), state[name])
    model.load_state_dict({k: v + 1 for k, v in state.items()})
    assert all(a is p.data for a, p in zip(arrays, model.parameters()))
    other = small_unet()
    other.load_state_dict(model.state_dict())  # from the GPU to the CPU
    model.cpu()
    for name, a in model.state_dict().items():
        assert np.array_equal(a, state[name] + 1) and np.array_equal(a, other.state_dict()[name])


def batches(model, n=2, size=4):
    """A loss for Training that draws on the CPU, and so is the same on every device."""
    scheduler, images = DDPMScheduler(), np.random.default_rng(3).standard_normal((8, 1, size, size))

    def loss(index):
        rng = npdiffusion.default_generator()
        dtype = next(model.parameters()).dtype
        x0, noise = (to_device(a.astype(dtype), model.device) for a in (images[index], rng.standard_normal(
            (n, 1, size, size))))
        t, labels = rng.integers(0, 1024, n), rng.integers(0, 4, n)
        return F.mse_loss(model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels), Tensor(noise))

    return loss


def trained(device, steps, tmp_path=None, make=batches, **changes):
    """A Training of so many steps on a device, in float64; the losses are in ``.seen``."""
    model = small_unet(**changes).to("float64").to(device)
    run = Training(model, 8, {}, steps=6, batch_size=2, lr=1e-2, ema=0.9, weight_decay=0.01, clip=0.5)
    if tmp_path:
        run.load(tmp_path)
    descend = run.descent(make(model))
    run.seen = [run.train_step(descend) for _ in range(steps)]
    return run


def test_training_as_on_the_cpu(cupy):
    here, there = trained("cpu", 3), trained("cuda", 3)
    assert there.model.device == "cuda:0" and there.ema.weights["conv_in.weight"] is not here.ema.weights
    for a, b in zip(here.seen, there.seen):
        close(b, a, 1e-9)
    for mine, other in ((here.model.state_dict(), there.model.state_dict()), (here.ema.weights, there.ema.weights)):
        for name in mine:
            close(other[name], mine[name], 1e-7)


def test_a_training_step_waits_for_nothing(cupy):
    run = trained("cuda", 2)
    descend, before = run.descent(batches(run.model)), standin_cupy.counts.copy()
    with not_waiting(cupy):
        losses = [run.train_step(descend) for _ in range(2)]
    copies = standin_cupy.counts["copies"] - before["copies"]
    assert copies in (0, 2 * 5)  # x_0, ε, ᾱ_t, t and labels: what a batch of the CPU brings
    assert all(array.shape == () for array in losses)


def noisy_batches(model):
    """A loss whose noise and dropout are drawn on the model's device."""
    def loss(index):
        rng = npdiffusion.default_generator(model.device)
        noise = rng.standard_normal((len(index), 1, 4, 4), dtype=np.float64)
        return F.mse_loss(model(Tensor(noise), np.asarray(index), None), Tensor(noise))

    return loss


def test_training_goes_on_bit_for_bit(cupy, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    whole = trained("cuda", 3, make=noisy_batches, dropout=0.2)
    trained("cuda", 2, make=noisy_batches, dropout=0.2).save(path)
    resumed = trained("cuda", 1, path, make=noisy_batches, dropout=0.2)
    resumed.seen = whole.seen[:2] + resumed.seen
    assert resumed.step == 3 and all(np.array_equal(a, b) for a, b in zip(bits(whole), bits(resumed)))
    assert load_file(path)[1]["device_generator"]["bit_generator"] == "Philox4x32"


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_training_goes_on_on_another_device(cupy, tmp_path, devices):
    path = tmp_path / "checkpoint.safetensors"
    run = trained(devices[0], 2)
    run.losses = list(run.seen)
    run.save(path)
    other = trained(devices[1], 1, path)
    expected = trained("cpu", 3)
    assert other.model.device.startswith(devices[1]) and np.allclose(other.losses, [float(x) for x in run.seen])
    for a, b in zip(bits(expected)[:-1], bits(other)[:-1]):
        close(b, a, 1e-7)


def test_fit_on_the_gpu(cupy, tmp_path):
    model = small_unet().to("float64").to("cuda")
    seen = []
    run = Training(model, 8, {}, steps=3, batch_size=2, lr=1e-2)
    run.fit(batches(model), tmp_path, report=lambda run: seen.append(run.model.device))
    assert seen == ["cuda:0"] and run.log[-1][0] == 3 and isinstance(run.log[-1][2], float) and not run.losses
    best = load_model(tmp_path / "model.safetensors")
    for name, a in run.ema.weights.items():
        np.testing.assert_allclose(best.state_dict()[name], host(a), rtol=1e-6)


def test_files_from_the_gpu(cupy, tmp_path):
    model = small_unet().to("cuda")
    for dtype in (None, "float16"):
        save_model(tmp_path / "m", model, dtype)
        for name, a in load_model(tmp_path / "m").state_dict().items():
            np.testing.assert_allclose(a, host(model.state_dict()[name]), rtol=1e-3, atol=1e-6)
    save_file(tmp_path / "a", {"a": to_device(np.arange(6).reshape(2, 3).T, "cuda")})
    assert np.array_equal(load_file(tmp_path / "a")[0]["a"], np.arange(6).reshape(2, 3).T)


# Optimisers


def line(device, make, late=False, frozen=False, gaps=False):
    """The weights after three steps of an optimiser; late: the model moves after it was built; gaps: parameters that
    do not fill their memory."""
    npdiffusion.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, (2, 3)), nn.Flatten(), nn.Linear(3, 2)).to("float64")
    model = model if late or gaps else model.to(device)
    optimizer, ema = make(model.parameters()), optim.EMA(model, 0.5)
    if gaps:
        for p, stride in zip(model.parameters(), (1, 1, 2, 2)):
            p.data = to_device(np.repeat(p.data, stride, -1), device)[..., ::stride]
    else:
        model.to(device)
    if frozen:
        model[2].bias.requires_grad = False
    rng, norms = np.random.default_rng(1), []
    for _ in range(3):
        model.zero_grad()
        (model(Tensor(rng.standard_normal((4, 2, 2, 3)), device=device)) ** 2).sum().backward()
        norms.append(optim.clip_grad_norm_(model.parameters(), 2.0))
        optimizer.step()
        ema.update()
    ema.swap()
    averages = [host(a).copy() for a in model.state_dict().values()]
    ema.swap()
    arrays = [a for name in optimizer.buffers for a in getattr(optimizer, name)]
    assert all(devices.device_of(a).startswith(device) for a in [*arrays, *ema.weights.values()])
    return [*map(host, model.state_dict().values()), *averages, np.array([float(n) for n in norms]),
            *map(host, arrays)]


@pytest.mark.parametrize("options", [{}, {"late": True}, {"frozen": True}, {"gaps": True}], ids=str)
@pytest.mark.parametrize("make", [
    lambda p: optim.Adam(p, 0.1), lambda p: optim.Adam(p, 0.1, weight_decay=0.1), lambda p: optim.SGD(p, 0.1),
    lambda p: optim.AdamW(p, 0.1, (0.8, 0.9), weight_decay=0.1), lambda p: optim.SGD(p, 0.1, 0.9, 0.1)])
def test_optimisers(cupy, make, options):
    for a, b in zip(line("cpu", make, **options), line("cuda", make, **options), strict=True):
        close(b, a, 1e-9)


def test_one_launch_updates_all(cupy):
    model = small_unet().to("cuda")
    optimizer, ema = optim.AdamW(model.parameters()), optim.EMA(model)
    x = Tensor(np.ones((1, 1, 8, 8), np.float32), device="cuda")
    model(x, 3).sum().backward()
    before = standin_cupy.counts["launches"]
    norm = optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    ema.update()
    launches = standin_cupy.counts["launches"] - before
    assert norm.shape == () and (cupy is real_cupy or launches <= 8)


def test_gradients_stay_where_they_are(cupy):
    weight = nn.Parameter(np.arange(3.0), device="cuda")
    weight.grad = grad = to_device(np.array([3.0, 0.0, 4.0]), "cuda")
    norm = optim.clip_grad_norm_([weight], 1.0)
    assert weight.grad is grad and float(norm) == 5
    np.testing.assert_allclose(host(grad), [0.6, 0, 0.8], rtol=1e-6)


def test_a_step_counts_on_the_gpu(cupy):
    """What changes from step to step lies there: a recorded step reads it when it is replayed."""
    results = []
    for record in (False, True):
        weight, grad = nn.Parameter(np.arange(3.0), device="cuda"), to_device(np.array([1.0, -2.0, 3.0]), "cuda")
        model = nn.Module()
        model.weight = weight
        adam, ema = optim.AdamW([weight], 0.1), optim.EMA(model)

        def step():
            weight.grad = grad
            adam.step()
            ema.update()

        run = captured(step, model) if record else step
        for k in range(6):
            adam.lr = 0.1 / (k + 1)
            run()
        results.append((host(adam.steps).tolist(), int(ema.updates), host(weight).tolist(),
                        host(ema.weights["weight"]).tolist()))
    assert results[0] == results[1] and results[0][:2] == ([6], 6)


# Diffusion


@pytest.fixture(params=[
    (DDPMScheduler, {}), (DDIMScheduler, {}),
    (DDPMScheduler, {"prediction_type": "v_prediction", "variance_type": "fixed_large", "clip_sample": False}),
    (DDIMScheduler, {"eta": 0.5, "prediction_type": "sample", "set_alpha_to_one": False})],
    ids=lambda x: f"{x[0].__name__}-{x[1].get('prediction_type', 'epsilon')}")
def scheduler(request):
    kind, options = request.param
    return kind(5, **options)


def test_generate(cupy, scheduler):
    """The CPU's generator gives all devices the same noise; guided."""
    results = []
    for device in ("cpu", "cuda"):
        model = small_unet().to("float64").to(device)
        for labels, scale in ((None, 1.0), (np.array([0, 2]), 2.5)):
            x = generate(model, scheduler, (2, 1, 4, 4), labels, scale, dtype=np.float64,
                         generator=np.random.default_rng(0))
            assert devices.device_of(x) == model.device
            results.append(x)
    for a, b in zip(results[:2], results[2:]):
        close(b, a, 1e-9)


@pytest.mark.slow
def test_sampling_waits_for_nothing_and_copies_nothing(cupy, scheduler):
    model = small_unet().to("cuda")
    labels = to_device(np.array([0, 1]), "cuda")
    npdiffusion.manual_seed(2)
    first = host(generate(model, scheduler, (2, 1, 4, 4), labels, 2.0))
    npdiffusion.manual_seed(2)
    before = standin_cupy.counts["copies"]
    with not_waiting(cupy):
        x = generate(model, scheduler, (2, 1, 4, 4), 1, 2.0)
        y = generate(model, scheduler, (2, 1, 4, 4))
    # the generator's seed, the label, the class "none", and for each loop all its levels and their ᾱ at once
    assert standin_cupy.counts["copies"] - before <= 3 + 2 * 2
    npdiffusion.manual_seed(2)
    assert np.array_equal(first, host(generate(model, scheduler, (2, 1, 4, 4), labels, 2.0)))
    assert x.shape == y.shape and np.isfinite(host(x)).all() and not np.array_equal(host(x), host(y))


@pytest.mark.parametrize("method", ["one-shot", "dpm", pytest.param("ddim", marks=pytest.mark.slow),
                                    pytest.param("ancestral", marks=pytest.mark.slow)])
def test_denoise(cupy, method):
    noisy = np.random.default_rng(0).standard_normal((3, 1, 4, 4))
    scheduler, results = DDPMScheduler(40), []
    for device in ("cpu", "cuda"):
        model = small_unet().to("float64").to(device)
        for t in (2, np.array([1, 3, 1])):
            options = dict(method=method, labels=np.array([0, 1, 2]), guidance_scale=2.0)
            given = to_device(noisy, device)
            results.append(denoise(model, scheduler, given, t, generator=np.random.default_rng(1), **options))
            assert devices.device_of(results[-1]) == model.device
            back = denoise(model, scheduler, noisy, t, generator=np.random.default_rng(1), **options)
            assert isinstance(back, np.ndarray) and np.array_equal(back, host(results[-1]))
    for a, b in zip(results[:2], results[2:]):
        close(b, a, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Inpaint(np.arange(16).reshape(4, 4) % 3 > 0), AveragePool(2), Gray([0.5]),
                                      Blur([[0.5, 0.3, 0.1]])])
def test_restore(cupy, operator):
    scheduler, results = DDPMScheduler(40), []
    y = operator.forward(0.3 * np.random.default_rng(0).standard_normal((2, 1, 4, 4)))
    for device in ("cpu", "cuda"):
        model = small_unet().to("float64").to(device)
        model = captured(model) if device == "cuda" else model
        for sigma in (0.0, 0.2):
            options = dict(labels=np.array([0, 1]), guidance_scale=2.0, num_inference_steps=3, num_samples=2)
            results.append(restore(model, scheduler, to_device(y, device), operator, sigma,
                                   generator=np.random.default_rng(1), **options))
            assert devices.device_of(results[-1]) == model.device
    for a, b in zip(results[:2], results[2:]):
        close(b, a, 1e-8)


def test_waiting_does_not_grow_with_the_steps(cupy):
    model, waits = small_unet().to("cuda"), []
    noisy = to_device(np.ones((2, 1, 4, 4), np.float32), "cuda")
    for steps in (2, 4):
        before = standin_cupy.counts["waits"]
        denoise(model, DDPMScheduler(40), noisy, 20, "ddim", num_inference_steps=steps)
        waits.append(standin_cupy.counts["waits"] - before)
    assert waits[0] == waits[1] <= 3  # whether the input is finite, before the first step


def test_scheduler_steps(cupy, scheduler):
    rng, results = np.random.default_rng(0), []
    arrays = [rng.standard_normal((3, 1, 4, 4)) for _ in range(3)]
    levels = np.array([0, 3, 4])
    for device in ("cpu", "cuda"):
        x, output, noise = (to_device(a, device) for a in arrays)
        for t in (levels, to_device(levels, device), 2):
            results += [scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t),
                        scheduler.predict_original_sample(output, t, x)]
        for t in (4, 1, 0):
            results += scheduler.step(output, t, x, noise=noise)
    half = len(results) // 2
    for a, b in zip(results[:half], results[half:]):
        close(b, a, 1e-12)
    with pytest.raises(TypeError, match="noise: expected an array on cuda:0 as the sample, got one on cpu"):
        scheduler.add_noise(x, arrays[1], 1)


# Other networks


def devices_agree(compute, tolerance=1e-9):
    """compute(device) returns arrays, which must be the same from both."""
    for a, b in zip(compute("cpu"), compute("cuda"), strict=True):
        close(b, a, tolerance)


def test_vae(cupy):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 1, 4, 4))

    def compute(device):
        npdiffusion.manual_seed(0)
        model = VAE(latent=3, channels=(8,), hidden=8, size=4).to("float64").to(device)
        y = Tensor(x, device=device)
        logits, mean, logvar = model(y, np.random.default_rng(1))
        before = npdiffusion.default_generator().bit_generator.state
        with not_waiting(cupy):
            model(y)
            loss = vae_loss(logits, y, mean, logvar)
        drawn_on_the_cpu = npdiffusion.default_generator().bit_generator.state != before
        assert drawn_on_the_cpu == (device == "cpu") and isinstance(model.reconstruct(x), np.ndarray)
        assert devices.device_of(model.pictures(mean.data)) == model.device
        return (logits, loss, model.pictures(mean.detach().cpu().data), model.reconstruct(x),
                model.reconstruct(y.data))

    devices_agree(compute)


def test_noise_level(cupy):
    x, log_snr = np.random.default_rng(0).standard_normal((3, 1, 4, 4)), np.array([1.0, -2.0, 3.0])

    def compute(device):
        npdiffusion.manual_seed(0)
        net = NoiseLevelNet(channels=(4,), hidden=4).to(device)
        y = to_device(x.astype(np.float32), device)
        with not_waiting(cupy):
            loss = laplace_nll(net(Tensor(y)), log_snr)
        model = small_unet(num_classes=None).to(device)
        return (loss, *net.log_snr(x, batch_size=2), *net.log_snr(y),
                *(denoise(model, DDPMScheduler(), y, noise_level=net.to(where)) for where in (device, "cpu")))

    devices_agree(compute, 1e-4)


def test_variational_bound(cupy):
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4)).astype(np.float32) / 127.5 - 1

    def compute(device):
        model = small_unet().to(device)
        for y, labels in ((images, None), (to_device(images, device), np.array([0, 2, 1]))):
            yield from variational_bound(model, DDPMScheduler(10), y, labels, groups=3, batch_size=2,
                                         generator=np.random.default_rng(1))

    devices_agree(compute, 1e-4)


# Examples


@pytest.fixture
def example(cupy, monkeypatch, tmp_path):
    """Runs an example's main() in this process, with little data, tiny networks and without sampling. No training step
    may wait for the GPU."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    step = Training.train_step

    def train_step(run, *args):
        with not_waiting(cupy):
            return step(run, *args)

    monkeypatch.setattr(Training, "train_step", train_step)

    def pretrained(name):
        return {"mnist-ddpm": UNet(channels=(8,), num_classes=10), "mnist-classifier": Classifier(channels=(8,)),
                "sstem-mitochondria": UNet(16, 16, channels=(8,), time=False)}[name]

    monkeypatch.setattr(importlib.import_module("command_line"), "pretrained", pretrained)

    def denoise(model, scheduler, noisy, *_, **__):
        assert model.device == "cuda:0"
        return noisy

    def generate(model, scheduler, shape, *_, **__):
        return to_device(np.zeros(shape, np.float32), model.device)

    def run(name, *arguments, digits=8, **changes):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, "--device", "cuda", "--out", str(tmp_path), *arguments])
        instead = {"denoise": denoise, "generate": generate, "pretrained": pretrained,
                   "load_digits": lambda data, split: SyntheticDigits(digits),
                   "load_micrographs": lambda data: [SyntheticMicrographs(1, (224, 224))] * 2, **changes}
        if hasattr(module, "SCHEDULER"):  # which keeps arrays on the GPU, of this CuPy
            instead["SCHEDULER"] = module.SCHEDULER.from_config(module.SCHEDULER.config)
        for place in map(importlib.import_module, (name, "command_line", "quickstart")):
            for function in instead.keys() & vars(place).keys():
                monkeypatch.setattr(place, function, instead[function])
        module.main()
        return sorted(path.name for path in tmp_path.iterdir())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name, figure, channels", [("train_diffusion", "samples-000004.png", ["8", "32"]),
                                                    ("train_classifier", "mistakes.png", ["8"])])
def test_trainings_on_the_gpu(example, name, figure, channels):
    written = example(name, "--data", "synthetic", "--steps", "4", "--cuda-graph", "--batch-size", "1", "--channels",
                      *channels, digits=4)
    assert figure in written and "metrics.json" in written


TINY = ["--data", "synthetic", "--steps", "4", "--cuda-graph", "--batch-size", "1", "--channels", "8"]


@pytest.mark.slow
def test_vae_on_the_gpu(example):
    vae = importlib.import_module("train_vae")
    in_batches, travel = vae.in_batches, vae.travel_figure
    written = example("train_vae", *TINY, "--test", "8", "--noisy", "8",
                      in_batches=lambda f, images: in_batches(f, images[:1]).repeat(len(images), 0),  # less to wait for
                      travel_figure=lambda model, codes: travel(model, codes, columns=2))
    assert {"rows.png", "latent.png", "against_ddpm.png", "metrics.json"} <= set(written)


@pytest.mark.slow
def test_noise_level_on_the_gpu(example):
    written = example("train_noise_level", *TINY, "--test", "8", "--pictures", "1", "--grid", "2")
    assert {"levels.png", "wrong_levels.png", "metrics.json"} <= set(written)


@pytest.mark.slow
def test_segmentation_on_the_gpu(example):
    small = dict(TILE=128, OVERLAP=16)
    assert "curve.png" in example("segment_mitochondria", *TINY, "--patch", "32", "--no-tta", **small)


@pytest.mark.slow
def test_guided_denoising_on_the_gpu(example):
    sizes = ("--digits", "--ancestral", "--generated", "--sweep", "--known")
    written = example("guided_denoising", "--data", "synthetic", *(x for size in sizes for x in (size, "1")),
                      "--digit", str(SyntheticDigits(8).labels[0]))
    assert {"eights.png", "forced.png", "samples.png", "metrics.json"} <= set(written)


@pytest.mark.slow
def test_micrographs_on_the_gpu(example, monkeypatch):
    monkeypatch.setattr(importlib.import_module("segment_mitochondria"), "TILE", 256)
    written = example("denoise_micrographs", *TINY, "--sigmas", "50", "--draw", "1", PATCH=32, LARGE=112,
                      baselines=dict)
    assert {"curves.png", "section.png", "drawn-large.png", "metrics.json"} <= set(written)


@pytest.mark.slow
def test_quickstart_on_the_gpu(example):
    assert example("quickstart", "--data", "synthetic") == ["denoised.png", "generated.png"]


@pytest.mark.slow
def test_quality_on_the_gpu(cupy, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    quality = importlib.import_module("quality")
    nets = {"mnist-ddpm": UNet(channels=(8,), num_classes=10), "mnist-classifier": Classifier(channels=(8,))}
    monkeypatch.setattr(quality, "load_digits", lambda name, split: SyntheticDigits(12))
    monkeypatch.setattr(quality, "pretrained", nets.__getitem__)
    monkeypatch.setattr(quality, "variational_bound", lambda *args, **_: variational_bound(*args, groups=2))
    monkeypatch.setattr(quality, "LEVELS", (4,))
    sizes = [x for size in ("digits", "ancestral-digits", "steps") for x in (f"--{size}", "1")]
    monkeypatch.setattr(sys, "argv", ["quality.py", "--device", "cuda", "--data", "synthetic", *sizes, "--samples", "2",
                                      "--real", "2", "--json", str(tmp_path / "quality.json"), "--parts", "noisy",
                                      "one-shot", "wiener", "posterior", "samples", "bound"])
    quality.main()
    assert {net.device for net in nets.values()} == {"cuda:0"} and (tmp_path / "quality.json").stat().st_size > 100


def test_examples_say_what_is_missing():
    if npdiffusion.cuda_is_available():
        pytest.skip("there is a GPU")
    for device, said in (("cuda", "npdiffusion[cuda]"), ("tpu", "device must be")):
        result = subprocess.run([sys.executable, ROOT / "examples" / "train_diffusion.py", "--device", device],
                                capture_output=True, text=True)
        assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


# The stand-in itself


def test_the_stand_in_has_nothing_that_cupy_has_not():
    if real_cupy is None:
        pytest.skip("no CuPy to compare with")
    for name in sorted(standin_cupy.names()):
        there, here = real_cupy, standin_cupy.module
        for part in name.split("."):
            assert hasattr(there, part), f"CuPy has no {name}"
            there, here = getattr(there, part), getattr(here, part)
        try:
            theirs, ours = list(inspect.signature(there).parameters), list(inspect.signature(here).parameters)
        except (TypeError, ValueError):  # built-in
            continue
        if "__" not in name and "args" not in theirs and "args" not in ours:
            assert ours == [p for p in theirs if p in ours], f"{name}{tuple(ours)}: CuPy's parameters are {theirs}"


@pytest.mark.parametrize("use", [
    lambda x: x + np.ones(2), lambda x: np.ones(2) + x, lambda x: np.exp(x), lambda x: np.asarray(x), lambda x: x[[0]],
    lambda x: x.__setitem__(0, np.ones(())), lambda x: np.concatenate([x, x]), lambda x: x.flags.writeable,
    lambda x: standin_cupy.module.add(x, [1, 2]), lambda x: standin_cupy.module.stack([x, np.ones(2)])])
def test_the_stand_in_is_strict(use):
    x = standin_cupy.module.asarray(np.ones(2))
    with pytest.raises((TypeError, AttributeError)):
        use(x)
    assert isinstance((np.float32(2) * x)[0], standin_cupy.ndarray) and (x * 2.5).dtype == np.float64
