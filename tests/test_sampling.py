"""Sampling and denoising with models that are perfect by construction, so that the right answer is known.

For data from N(μ, s²) the posterior mean is E[x_0 | x_t] = μ + s² √ᾱ / (s² ᾱ + 1 - ᾱ) (x_t - √ᾱ μ), and the
posterior variance s² (1 - ᾱ) / (s² ᾱ + 1 - ᾱ).
"""

import numpy as np
import pytest

import npdiffusion
from npdiffusion import nn
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, denoise, generate, variational_bound
from npdiffusion.models import UNet, pretrained
from npdiffusion.tensor import Tensor, no_grad

S = 0.25  # standard deviation of each class; its mean is CLASS_MEANS[label], for no label UNLABELLED
CLASS_MEANS, UNLABELLED = np.array([-0.3, 0.1, 0.4]), 0.2


class Perfect(nn.Module):
    """The perfect model of Gaussian data, and a record of its calls."""

    def __init__(self, scheduler, num_classes=len(CLASS_MEANS)):
        self.scheduler, self.num_classes = scheduler, num_classes
        self.calls = []

    def __call__(self, x, t, labels=None):
        assert isinstance(x, Tensor) and not self.training
        assert not (Tensor(np.ones(1), requires_grad=True) * 2).requires_grad  # nothing is recorded
        assert t.shape == (len(x),) and t.dtype == np.int64
        self.calls.append((len(x), t.tolist(), None if labels is None else labels.tolist()))
        means = np.append(CLASS_MEANS, UNLABELLED)
        mean = UNLABELLED if labels is None else means[labels].reshape(-1, 1, 1, 1)
        alpha_bar = self.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        x0 = mean + S**2 * alpha_bar**0.5 / variance(alpha_bar) * (x.data - alpha_bar**0.5 * mean)
        epsilon = (x.data - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
        v = alpha_bar**0.5 * epsilon - (1 - alpha_bar) ** 0.5 * x0
        output = {"epsilon": epsilon, "sample": x0, "v_prediction": v}[self.scheduler.prediction_type]
        return Tensor(output.astype(x.data.dtype))


def variance(alpha_bar):
    """Of x_t, for data of variance S²."""
    return S**2 * alpha_bar + 1 - alpha_bar


def data(seed, n, mean=UNLABELLED, size=8, dtype=np.float32):
    """n clean pictures, and as many of noise."""
    x0, epsilon = np.random.default_rng(seed).standard_normal((2, n, 1, size, size), dtype=dtype)
    return mean + S * x0, epsilon


def rng():
    return np.random.default_rng(7)


# generate


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind, options, steps", [
    (DDPMScheduler, {}, None),
    (DDPMScheduler, {"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"}, None),
    (DDIMScheduler, {"eta": 1.0, "beta_schedule": "sigmoid"}, 256),
    (DDIMScheduler, {"beta_schedule": "scaled_linear"}, 256),
])
def test_generated_pictures_have_the_data_s_distribution(kind, options, steps, prediction_type):
    scheduler = kind(prediction_type=prediction_type, clip_sample=False, **options)
    x = generate(Perfect(scheduler), scheduler, (64, 1, 8, 8), num_inference_steps=steps, generator=rng())
    assert x.shape == (64, 1, 8, 8) and x.dtype == np.float32
    assert abs(x.mean() - UNLABELLED) < 4 * S / 64  # 64² values: standard error S / 64
    assert abs(x.std() / S - 1) < 0.06  # standard error 1.1 %, and what the finite steps cost


def test_generate_is_the_written_out_loop():
    scheduler = DDIMScheduler(eta=0.5)
    model, noise = Perfect(scheduler), rng()
    x = generate(model, scheduler, (3, 1, 4, 4), 1, num_inference_steps=10, generator=noise, dtype=np.float64)
    assert scheduler.num_inference_steps is None and len(scheduler.timesteps) == 1024
    assert model.training and model.calls == [(3, [t] * 3, [1] * 3) for t in range(918, -1, -102)]

    scheduler.set_timesteps(10)
    model.eval()
    noise = rng()
    y = noise.standard_normal((3, 1, 4, 4))
    for t in scheduler.timesteps:
        with no_grad():
            output = model(Tensor(y), np.full(3, t), np.array([1, 1, 1])).data
        y = scheduler.step(output, t, y, noise=noise.standard_normal(y.shape)).prev_sample
    np.testing.assert_array_equal(x, y)
    # without num_inference_steps: the scheduler's own timesteps
    z = generate(model, scheduler, (3, 1, 4, 4), [1, 1, 1], generator=rng(), dtype=np.float64)
    np.testing.assert_array_equal(z, x)
    assert not model.training  # as it was found


@pytest.mark.parametrize("options", [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"},
                                     {"steps_offset": 90}])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_generate_steps_from_level_to_level(n, options):
    """DDIM by hand (Song et al. 2021, eq. 12): a pass begins at the level, and with the noise, where the last ended."""
    scheduler = DDIMScheduler(1000, clip_sample=False, **options)
    model, a = Perfect(scheduler), np.append(scheduler.alphas_cumprod, 1.0)  # ᾱ_{-1} = 1
    x = generate(model, scheduler, (2, 1, 4, 4), num_inference_steps=n, generator=rng(), dtype=np.float64)
    levels, y = [t for _, (t, _), _ in model.calls], rng().standard_normal((2, 1, 4, 4))
    assert len(levels) == n
    for t, s in zip(levels, [*levels[1:], -1]):
        mean = UNLABELLED + S**2 * a[t]**0.5 / variance(a[t]) * (y - a[t]**0.5 * UNLABELLED)
        y = a[s]**0.5 * mean + (1 - a[s])**0.5 * (y - a[t]**0.5 * mean) / (1 - a[t])**0.5
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


def test_numpy_s_numbers_are_python_s():
    scheduler = DDIMScheduler(100, eta=1.0)
    model, noisy = Perfect(scheduler), data(0, 2)[0]
    i, f = np.int64, np.float64
    for dtype in (np.float32, np.float64):
        found = generate(model, scheduler, np.array([2, 1, 4, 4]), i(1), f(2), i(5), generator=rng(), dtype=dtype)
        expected = generate(model, scheduler, (2, 1, 4, 4), 1, 2, 5, generator=rng(), dtype=dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)
    for method in ("one-shot", "dpm", "ddim", "ancestral"):
        for t, labels in ((i(60), i(2)), (np.array([7, 60], np.uint8), np.array([2, 0], np.uint8))):
            found = denoise(model, scheduler, noisy, t, method, i(5), labels, f(2), generator=rng())
            expected = denoise(model, scheduler, noisy, np.broadcast_to(t, 2).tolist(), method, 5,
                               np.broadcast_to(labels, 2).tolist(), 2, generator=rng())
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


def test_defaults_are_what_the_docs_say(capsys):
    """Each option left out is the option spelled out; with a label, so that guidance counts. And nothing is printed."""
    scheduler, x = DDIMScheduler(20, beta_end=0.5, eta=1.0, clip_sample=False), data(0, 2)[0]
    model, drawn, labels = Perfect(scheduler), (2, 1, 8, 8), [0, 2]
    np.testing.assert_array_equal(
        generate(model, scheduler, drawn, labels, generator=rng()),
        generate(model, scheduler, drawn, labels, guidance_scale=1.0, num_inference_steps=20, dtype=np.float32,
                 generator=rng(), progress=False))
    np.testing.assert_array_equal(generate(model, scheduler, drawn, generator=rng()),
                                  generate(model, scheduler, drawn, labels=None, generator=rng()))
    np.testing.assert_array_equal(
        denoise(model, scheduler, x, 9, labels=labels, generator=rng()),
        denoise(model, scheduler, x, t=9, method="one-shot", num_inference_steps=None, labels=labels,
                guidance_scale=1.0, sigma=None, noise_level=None, progress=False))
    pixels = np.rint((x.clip(-1, 1) + 1) * 127.5) / np.float32(127.5) - 1
    ddpm = DDPMScheduler(200)
    bound, spelled = (variational_bound(Perfect(ddpm), ddpm, pixels, generator=rng(), **options)
                      for options in ({}, dict(labels=None, groups=40, batch_size=200, report=None)))
    for part, same in zip(bound, spelled):
        np.testing.assert_array_equal(part, same)
    denoise(model, scheduler, x, 9, "ddim")
    assert capsys.readouterr() == ("", "")
    denoise(model, scheduler, x, 9, "ddim", progress=True)
    assert "10/10" in capsys.readouterr().err


def test_same_seed_same_pictures():
    scheduler = DDPMScheduler(50)
    model = Perfect(scheduler)
    noisy = data(0, 2)[1]

    def both(**options):
        return (generate(model, scheduler, (2, 1, 8, 8), **options),
                denoise(model, scheduler, noisy, 40, "ancestral", **options))

    a, b = both(generator=np.random.default_rng(3)), both(generator=np.random.default_rng(3))
    npdiffusion.manual_seed(4)
    c = both()
    npdiffusion.manual_seed(4)
    d = both()
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(c, d)
    assert (a[0] != c[0]).any() and (c[0][0] != c[0][1]).any()


# denoise


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])  # the method decides, whichever is given
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_denoise_one_shot_is_the_posterior_mean(kind, prediction_type):
    scheduler = kind(prediction_type=prediction_type)
    t = np.array([0, 100, 500, 1023])
    noisy = scheduler.add_noise(*data(1, 4, dtype=np.float64), t)
    model = Perfect(scheduler)
    alpha_bar = scheduler.alphas_cumprod[t].reshape(4, 1, 1, 1)
    gain = S**2 * alpha_bar**0.5 / variance(alpha_bar)
    mean = UNLABELLED + gain * (noisy - alpha_bar**0.5 * UNLABELLED)
    estimate = denoise(model, scheduler, noisy, t)
    np.testing.assert_allclose(estimate, np.clip(mean, -1, 1), atol=1e-9)
    assert model.calls == [(4, t.tolist(), None)] and model.training
    np.testing.assert_allclose(denoise(model, scheduler, noisy[2:3], 500), estimate[2:3], rtol=1e-12)


@pytest.mark.parametrize("t", [150, 400])
def test_denoise_methods_do_what_each_is_good_for(t):
    """one-shot: error = the posterior variance, the least there is. ancestral: pictures as varied as the
    data, twice the error (a draw from the posterior, as the truth is). ddim: in between."""
    scheduler = DDPMScheduler()
    model, (x0, epsilon) = Perfect(scheduler), data(2, 64)
    noisy = scheduler.add_noise(x0, epsilon, t)
    alpha_bar = scheduler.alphas_cumprod[t]
    posterior_variance = S**2 * (1 - alpha_bar) / variance(alpha_bar)
    estimates = {method: denoise(model, scheduler, noisy, t, method, generator=rng())
                 for method in ("one-shot", "ddim", "ancestral")}
    error = {method: ((x - x0) ** 2).mean() / posterior_variance for method, x in estimates.items()}
    spread = {method: x.std() / x0.std() for method, x in estimates.items()}
    assert abs(error["one-shot"] - 1) < 0.08
    assert abs(error["ancestral"] - 2) < 0.16
    assert error["one-shot"] < error["ddim"] < error["ancestral"]
    assert spread["one-shot"] < 0.9 * spread["ancestral"]
    assert abs(spread["ancestral"] - 1) < 0.04
    assert abs(spread["ddim"] - 1) < 0.1  # 20 steps lose some


@pytest.mark.parametrize("method, steps, expected", [
    ("one-shot", None, [9]),
    ("ddim", None, list(range(9, -1, -1))),  # no more steps than levels
    ("ddim", 5, [9, 7, 5, 3, 1]),
    ("ddim", 1, [9]),
    ("dpm", 3, [9, 3, 0]),
    ("dpm", 1, [9]),
    ("ancestral", None, list(range(9, -1, -1))),
    ("ancestral", 2, [9, 4]),
])
def test_denoise_visits_levels_from_t_down(method, steps, expected):
    scheduler = DDPMScheduler()
    model, noisy = Perfect(scheduler), data(3, 1)[0]
    out = denoise(model, scheduler, noisy, 9, method, steps)
    assert [t for _, (t,), _ in model.calls] == expected
    assert out.shape == noisy.shape and out.dtype == np.float32
    assert len(scheduler.timesteps) == 1024


def test_denoise_ddim_takes_20_steps_and_one_step_is_one_shot():
    scheduler = DDIMScheduler()
    model, noisy = Perfect(scheduler), data(3, 2)[1]
    denoise(model, scheduler, noisy, 700, "ddim")
    assert len(model.calls) == 20
    np.testing.assert_array_equal(denoise(model, scheduler, noisy, 700, "ddim", 1),
                                  denoise(model, scheduler, noisy, 700))


class Silent:
    """A generator whose noise is 0: what a run computes, whatever is drawn in which order."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.mark.parametrize("method, steps, passes", [
    ("one-shot", None, [4]),
    ("ddim", None, [3] * 19 + [4]),  # the picture at level 0 has one step and joins last
    ("dpm", 6, [3] * 5 + [4]),
    ("ancestral", 7, [3] * 6 + [4]),
    ("ancestral", None, [1] * 470 + [3] * 30 + [4]),
])
def test_denoise_with_a_level_for_each_picture(method, steps, passes):
    """As each alone; and the model is asked once for all that are under way."""
    scheduler = DDPMScheduler()
    model, noisy = Perfect(scheduler), data(4, 4)[0]
    before, labels, levels = noisy.copy(), np.array([0, 1, 2, 0]), [30, 500, 30, 0]
    options = dict(method=method, num_inference_steps=steps, guidance_scale=2.0, generator=Silent())
    together = denoise(model, scheduler, noisy, levels, labels=labels, **options)
    assert [n for n, _, _ in model.calls] == [2 * n for n in passes]  # with label and without
    for i, t in enumerate(levels):
        alone = denoise(model, scheduler, noisy[i : i + 1], t, labels=int(labels[i]), **options)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(noisy, before)


@pytest.mark.parametrize("method", ["one-shot", "ddim"])
def test_denoise_what_a_camera_sees(method):
    """x_0 + σ ε with sigma is √ᾱ_t x_0 + √(1 - ᾱ_t) ε with t."""
    scheduler, t = DDPMScheduler(), np.array([5, 300, 800])
    model, (x0, epsilon) = Perfect(scheduler), data(11, 3)
    expected = denoise(model, scheduler, scheduler.add_noise(x0, epsilon, t), t, method)
    sigma = scheduler.sigmas[t]
    seen = x0 + sigma.reshape(3, 1, 1, 1).astype(np.float32) * epsilon
    result = denoise(model, scheduler, seen, sigma=sigma, method=method)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    one = denoise(model, scheduler, seen[1:2], sigma=float(sigma[1]), method=method)
    np.testing.assert_allclose(one, expected[1:2], atol=1e-5)


class Level:
    """Stands for a NoiseLevelNet."""

    def __init__(self, levels):
        self.levels = levels

    def to(self, device):
        return self

    def timesteps(self, pictures, scheduler):
        return np.array(self.levels[:len(pictures)])


@pytest.mark.parametrize("method", ["one-shot", "dpm", "ddim", "ancestral"])
def test_denoise_estimates_the_level(method):
    scheduler, levels = DDPMScheduler(), [40, 7, 40]
    model, noisy = Perfect(scheduler), data(12, 3, size=32)[0]
    options = dict(method=method, labels=[2, 0, 1], guidance_scale=1.5, generator=Silent())
    expected = denoise(model, scheduler, noisy, levels, **options)
    np.testing.assert_array_equal(denoise(model, scheduler, noisy, noise_level=Level(levels), **options), expected)


@pytest.mark.parametrize("options, message", [
    ({}, "expected one of t= .*sigma= .*noise_level=, a NoiseLevelNet"),
    ({"t": 3, "sigma": 0.1}, "expected one of t= .*sigma= "),
    ({"sigma": 0.0}, "sigma: expected .* above 0"),
    ({"sigma": [0.1, 1e4]}, "at most 177.7"),
    ({"sigma": [0.1, 0.2, 0.3]}, r"sigma: expected a number or 2, one for each picture, got shape \(3,\)"),
])
def test_unknown_levels(options, message):
    scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match=message):
        denoise(Perfect(scheduler), scheduler, np.zeros((2, 1, 8, 8), np.float32), **options)


@pytest.mark.parametrize("method", ["one-shot", "dpm", "ddim", "ancestral"])
def test_denoise_clips(method):
    scheduler = DDPMScheduler(100, clip_sample=False)
    out = denoise(Perfect(scheduler), scheduler, data(5, 1)[0] * 100, 0, method)
    assert out.min() == -1 and out.max() == 1


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_a_model_that_knows_the_noise_gives_the_picture_back(schedule):
    scheduler = DDIMScheduler(beta_schedule=schedule)
    x0, epsilon = data(6, 2, dtype=np.float64)
    x0 = np.clip(x0, -1, 1)

    class Knowing(Perfect):
        def __call__(self, x, t, labels):
            alpha_bar = scheduler.alphas_cumprod[t[0]]
            return Tensor((x.data - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5)

    model = Knowing(scheduler)
    noisy = scheduler.add_noise(x0, epsilon, 600)
    for method in ("one-shot", "dpm", "ddim", "ancestral"):
        np.testing.assert_allclose(denoise(model, scheduler, noisy, 600, method), x0, atol=1e-6)
    # fixed_large noise is added even on the last step of a short loop; the estimate is taken before it
    scheduler = DDPMScheduler(beta_schedule=schedule, variance_type="fixed_large")
    np.testing.assert_allclose(denoise(model, scheduler, noisy, 600, "ancestral", 3), x0, atol=1e-6)


# Guidance


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_formula(prediction_type):
    """Guiding any kind of output by s guides ε by s (Ho & Salimans 2022, eq. 6 with w = s - 1)."""
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    t, labels = np.array([300, 600]), np.array([2, 0])
    noisy = scheduler.add_noise(*data(8, 2, dtype=np.float64), t)
    alpha_bar = scheduler.alphas_cumprod[t].reshape(2, 1, 1, 1)

    def epsilon(labels, s):
        model = Perfect(scheduler)
        x0 = denoise(model, scheduler, noisy, t, labels=labels, guidance_scale=s)
        return (noisy - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5, model.calls

    conditional, calls = epsilon(labels, 1.0)
    assert calls == [(2, [300, 600], [2, 0])]
    unconditional, calls = epsilon(None, 3.0)
    assert calls == [(2, [300, 600], None)]
    guided, calls = epsilon(labels, 1.5)
    assert calls == [(4, [300, 600, 300, 600], [2, 0, 3, 3])]  # one batch; 3 is the class "none"
    w = 0.5
    np.testing.assert_allclose(guided, (1 + w) * conditional - w * unconditional, atol=1e-9)
    np.testing.assert_allclose(epsilon(labels, 0.0)[0], unconditional, atol=1e-9)


def test_labels_and_guidance_steer_generation():
    scheduler = DDIMScheduler(clip_sample=False)
    model, labels = Perfect(scheduler), np.repeat([0, 1, 2], 16)

    def class_means(s):
        x = generate(model, scheduler, (48, 1, 8, 8), labels, s, num_inference_steps=64, generator=rng())
        return x.reshape(3, -1).mean(axis=1)

    np.testing.assert_allclose(class_means(1.0), CLASS_MEANS, atol=0.03)
    np.testing.assert_allclose(class_means(0.0), UNLABELLED, atol=0.03)
    # two Gaussians of one variance: the scores' difference is constant, and s moves the mean along a line
    np.testing.assert_allclose(class_means(2.0), UNLABELLED + 2 * (CLASS_MEANS - UNLABELLED), atol=0.05)


def test_the_unet():
    """The same with the real model: guidance in one batch of 2 N is guidance from two passes."""
    npdiffusion.manual_seed(0)
    unet = UNet(channels=(8, 16), num_classes=3)
    for parameter in unet.parameters():  # many start at 0
        parameter.data += np.random.default_rng(1).standard_normal(parameter.shape, dtype=np.float32) * 0.1
    scheduler, noisy, labels = DDIMScheduler(), data(9, 2)[1], np.array([2, 0])
    t = np.array([400, 400])
    outputs = [unet.eval()(Tensor(noisy), t, some).data for some in (labels, None)]
    expected = scheduler.predict_original_sample(outputs[1] + 3 * (outputs[0] - outputs[1]), t, noisy)
    estimate = denoise(unet.train(), scheduler, noisy, 400, labels=labels, guidance_scale=3.0)
    np.testing.assert_allclose(estimate, expected, atol=1e-4)
    assert (outputs[0] != outputs[1]).any() and unet.training and unet.conv_out.weight.grad is None
    for method in ("dpm", "ddim", "ancestral"):
        assert denoise(unet, scheduler, noisy, 4, method, labels=1, guidance_scale=2).dtype == np.float32
    x = generate(unet, scheduler, (2, 1, 8, 8), [0, 1], 2.0, num_inference_steps=3)
    assert x.shape == (2, 1, 8, 8) and x.dtype == np.float32 and np.abs(x).max() <= 1


# Errors


def test_the_model_s_mode_returns_after_an_error():
    scheduler = DDPMScheduler(10)

    class Broken(Perfect):
        def __call__(self, x, t, labels):
            raise ZeroDivisionError

    model = Broken(scheduler)
    for call in (lambda: generate(model, scheduler, (1, 1, 4, 4)),
                 lambda: denoise(model, scheduler, data(0, 1)[0], 5)):
        with pytest.raises(ZeroDivisionError):
            call()
        assert model.training


@pytest.mark.parametrize("options, error, message", [
    ({"noisy": np.where(np.eye(8), np.nan, np.zeros((2, 1, 8, 8), np.float32))}, ValueError, "finite values, got NaN"),
    ({"noisy": np.full((2, 1, 8, 8), np.inf)}, ValueError, "finite values"),
    ({"noisy": np.zeros((2, 1, 8, 8), np.uint8)}, TypeError, "noisy: expected float32 or float64, got uint8"),
    ({"noisy": np.zeros((8, 8))}, ValueError, r"\(N, C, H, W\).*got \(8, 8\)"),
    ({"noisy": np.zeros((0, 1, 8, 8))}, ValueError, r"\(N, C, H, W\)"),
    ({"noisy": [1.0]}, TypeError, "array"),
    ({"t": 50}, ValueError, "timesteps: expected 0 to 49, got 50"),
    ({"t": -1}, ValueError, "timesteps: expected 0 to 49, got -1"),
    ({"t": [1, 2, 3]}, ValueError, "one for each sample"),
    ({"method": "fast"}, ValueError, "expected one of one-shot, dpm, ddim, ancestral; got 'fast'"),
    ({"num_inference_steps": 0}, ValueError, "num_inference_steps: expected at least 1"),
    ({"num_inference_steps": 3.0}, TypeError, "integer"),
    ({"labels": True}, ValueError, "integer.* got bool"),
    ({"labels": 3}, ValueError, "labels: expected 0 to 2, got 3"),
    ({"labels": [0, 3]}, ValueError, r"labels: expected 0 to 2, got \[0 3\]"),
    ({"labels": [0, -1]}, ValueError, r"labels: expected 0 to 2, got \[ 0 -1\]"),
    ({"labels": [0, 1, 2]}, ValueError, r"2 integers, .* of shape \(3,\)"),
    ({"labels": [0.0, 1.0]}, ValueError, "integers.* got float64"),
    ({"guidance_scale": -1.0}, ValueError, "guidance_scale: expected a finite number >= 0"),
    ({"guidance_scale": float("nan")}, ValueError, "guidance_scale"),
])
def test_bad_input(options, error, message):
    scheduler = DDPMScheduler(50)
    arguments = {"noisy": np.zeros((2, 1, 8, 8), np.float32), "t": 10, **options}
    with pytest.raises(error, match=message):
        denoise(Perfect(scheduler), scheduler, **arguments)
    if options.keys() & {"labels", "guidance_scale"}:
        with pytest.raises(error, match=message):
            generate(Perfect(scheduler), scheduler, (2, 1, 8, 8), **options)


def test_labels_for_a_model_without_classes():
    scheduler = DDPMScheduler(50)
    with pytest.raises(ValueError, match="this model has no classes"):
        generate(Perfect(scheduler, num_classes=None), scheduler, (2, 1, 8, 8), labels=[0, 1])


@pytest.mark.parametrize("shape", [(1, 8, 8), (0, 1, 8, 8)])
def test_bad_shape(shape):
    scheduler = DDPMScheduler(50)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        generate(Perfect(scheduler), scheduler, shape)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm", reason="the progress bar needs tqdm")
    scheduler = DDPMScheduler(5)
    generate(Perfect(scheduler), scheduler, (1, 1, 4, 4), progress=True)
    assert "5/5" in capsys.readouterr().err


def test_guided_ddim_stays_on_track():
    """The shipped network, guided, from pure noise in few steps: digits, not scribble. As a measure without a
    classifier: the network finds them likely, that is, guesses noise on them about as well as on its other digits."""
    model, scheduler = pretrained("mnist-ddpm"), DDIMScheduler()
    labels, rng = np.arange(10), np.random.default_rng(0)
    losses = []
    for scale in (1.0, 3.0):
        digits = generate(model, scheduler, (10, 1, 32, 32), labels, scale, 20, generator=np.random.default_rng(1))
        noise = rng.standard_normal(digits.shape, dtype=np.float32)
        with no_grad():
            guess = model(Tensor(scheduler.add_noise(digits, noise, 300)), np.full(10, 300), labels).data
        losses.append(float(((guess - noise) ** 2).mean()))
    assert losses[1] < 1.3 * losses[0]
