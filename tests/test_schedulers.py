"""Schedulers against hand-computed tables, Bayes' rule and, where it is installed, diffusers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npdiffusion
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "trailing", "linspace"]
BOTH = pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])


def normal(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


def target(prediction_type, alpha_bar, x0, epsilon):
    """What a perfect model returns, from the definitions."""
    v = math.sqrt(alpha_bar) * epsilon - math.sqrt(1 - alpha_bar) * x0
    return {"epsilon": epsilon, "sample": x0, "v_prediction": v}[prediction_type]


# Tables and timesteps


def test_tables_by_hand():
    scheduler = DDPMScheduler(4, beta_start=0.1, beta_end=0.4)
    np.testing.assert_allclose(scheduler.betas, [0.1, 0.2, 0.3, 0.4], rtol=1e-15)
    np.testing.assert_allclose(scheduler.alphas_cumprod, [0.9, 0.72, 0.504, 0.3024], rtol=1e-15)
    assert scheduler.betas.dtype == scheduler.alphas_cumprod.dtype == np.float64


@BOTH
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_betas_one_at_a_time(kind, schedule):
    start, end, n = 0.0001, 0.02, 1024

    def f(t):
        return math.cos((t / n + 0.008) / 1.008 * math.pi / 2) ** 2

    def beta(i):
        part = i / (n - 1)
        if schedule == "linear":
            return start + (end - start) * part
        if schedule == "scaled_linear":
            return (start**0.5 + (end**0.5 - start**0.5) * part) ** 2
        if schedule == "sigmoid":
            return start + (end - start) / (1 + math.exp(6 - 12 * part))
        return min(1 - f(i + 1) / f(i), 0.999)

    scheduler = kind(beta_schedule=schedule)
    np.testing.assert_allclose(scheduler.betas, [beta(i) for i in range(n)], rtol=1e-10)
    assert scheduler.alphas_cumprod[-1] < 1e-3  # nothing but noise at the end


@given(st.sampled_from(BETA_SCHEDULES), st.integers(2, 1100), st.data())
@settings(deadline=None)
def test_sigma_to_t_undoes_sigmas(schedule, n_train, data):
    scheduler = DDIMScheduler(n_train, beta_schedule=schedule)
    t = np.array(data.draw(st.lists(st.integers(0, n_train - 1), min_size=1, max_size=5)))
    assert scheduler.sigma_to_t(scheduler.sigmas[t]).tolist() == t.tolist()
    assert scheduler.sigma_to_t(float(scheduler.sigmas[t[0]])) == t[0]
    zero, one = np.zeros((len(t), 1)), np.ones((len(t), 1))
    signal, noise = scheduler.add_noise(one, zero, t), scheduler.add_noise(zero, one, t)
    np.testing.assert_allclose(scheduler.sigmas[t], (noise / signal)[:, 0], rtol=1e-9)


def test_sigma_to_t_by_hand():
    scheduler = DDPMScheduler(4, beta_start=0.1, beta_end=0.4)  # ᾱ = 0.9, 0.72, 0.504, 0.3024
    np.testing.assert_allclose(scheduler.sigmas, [0.1111111**0.5, 0.3888889**0.5, 0.984127**0.5, 2.306878**0.5], 1e-6)
    assert type(scheduler.sigma_to_t(1.0)) is int
    sigmas = np.exp(np.linspace(math.log(1e-3), math.log(scheduler.sigmas[-1]) - 1e-9, 999))
    nearest = [min(range(4), key=lambda t: abs(math.log(s) - math.log(scheduler.sigmas[t]))) for s in sigmas]
    assert scheduler.sigma_to_t(sigmas).tolist() == nearest and set(nearest) == {0, 1, 2, 3}


@pytest.mark.parametrize("sigma", [0, -0.1, 1.6, math.inf, math.nan, [0.5, 0.0]])
def test_sigma_out_of_range(sigma):
    with pytest.raises(ValueError, match=r"sigma: expected the noise's standard deviation, above 0 and at most 1\.519"):
        DDPMScheduler(4, beta_start=0.1, beta_end=0.4).sigma_to_t(sigma)


@BOTH
def test_timesteps_by_hand(kind):
    def timesteps(spacing, n, **options):
        scheduler = kind(10, timestep_spacing=spacing, **options)
        scheduler.set_timesteps(n)
        return scheduler.timesteps.tolist()

    assert kind(10).timesteps.tolist() == list(range(9, -1, -1))
    assert timesteps("leading", 5) == [8, 6, 4, 2, 0]
    assert timesteps("leading", 3) == [6, 3, 0]
    assert timesteps("leading", 5, steps_offset=1) == [9, 7, 5, 3, 1]
    assert timesteps("trailing", 5) == [9, 7, 5, 3, 1]
    assert timesteps("linspace", 4) == [9, 6, 3, 0]
    scheduler = kind(64, timestep_spacing="trailing")
    scheduler.set_timesteps(49)  # 49 · (64 / 49) rounds to less than 64: arange alone gives a 50th step, -1
    assert len(scheduler.timesteps) == 49 and scheduler.timesteps[-1] == 0
    for spacing in SPACINGS:
        assert timesteps(spacing, 10) == list(range(9, -1, -1))


@BOTH
@pytest.mark.parametrize("n_train, n, options, expected", [
    (1000, 10, {"timestep_spacing": "linspace"}, [888, 777, 666, 555, 444, 333, 222, 111, 0, -1]),
    (10, 4, {"timestep_spacing": "linspace"}, [6, 3, 0, -1]),
    (10, 4, {"timestep_spacing": "trailing"}, [7, 4, 1, -1]),  # from 9, 7, 4, 1
    (10, 3, {"steps_offset": 3}, [6, 3, -1]),  # 3 - 10 // 3 would be level 0
    (10, 1, {"timestep_spacing": "trailing"}, [-1]),
    (10, 1, {"steps_offset": 9}, [-1]),
])
def test_a_step_arrives_where_the_next_begins(kind, n_train, n, options, expected):
    scheduler = kind(n_train, **options)
    scheduler.set_timesteps(n)
    assert [scheduler.previous_timestep(t) for t in scheduler.timesteps] == expected


@given(st.sampled_from([DDPMScheduler, DDIMScheduler]), st.integers(1, 1100), st.data(), st.sampled_from(SPACINGS))
@settings(deadline=None)
def test_timesteps_descend_within_range(kind, n_train, data, spacing):
    n = data.draw(st.integers(1, n_train))
    scheduler = kind(n_train, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    t = scheduler.timesteps
    assert len(t) == n and (np.diff(t) < 0).all() and t[-1] >= 0 and t[0] < n_train
    following = t[1:].tolist() + [-1]
    assert [scheduler.previous_timestep(i) for i in t] == following


def test_own_timesteps():
    for kind in (DDPMScheduler, DDIMScheduler):
        scheduler = kind(100)
        for levels in ([90, 50, 7], np.array([90, 50, 7], np.uint8)):
            scheduler.set_timesteps(timesteps=levels)
            assert [scheduler.previous_timestep(t) for t in (90, 50, 7)] == [50, 7, -1]
    with pytest.raises(ValueError, match="descending"):
        scheduler.set_timesteps(timesteps=[7, 50])


def test_config_makes_either_class():
    ddpm = DDPMScheduler(100, beta_schedule="sigmoid", prediction_type="sample", variance_type="fixed_large")
    ddim = DDIMScheduler.from_config(ddpm.config)
    np.testing.assert_array_equal(ddim.betas, ddpm.betas)
    assert ddim.prediction_type == "sample" and ddim.eta == 0
    assert DDPMScheduler.from_config(ddpm.config).config == ddpm.config
    assert DDIMScheduler(eta=0.5).config["eta"] == 0.5


def test_defaults_are_what_the_docs_say():
    common = dict(num_train_timesteps=1024, beta_start=0.0001, beta_end=0.02, beta_schedule="linear",
                  prediction_type="epsilon", clip_sample=True, clip_sample_range=1.0, timestep_spacing="leading",
                  steps_offset=0)
    assert DDPMScheduler().config == {**common, "variance_type": "fixed_small"}
    assert DDIMScheduler().config == {**common, "eta": 0.0, "set_alpha_to_one": True}


@BOTH
def test_numpy_s_numbers_are_python_s(kind):
    """They make the same scheduler, and JSON can hold its config."""
    expected = kind(100, 0.25, 0.5, clip_sample=False, clip_sample_range=2.0, steps_offset=1)
    scheduler = kind(np.int64(100), np.float32(0.25), np.float64(0.5), clip_sample=np.False_,
                     clip_sample_range=np.float32(2), steps_offset=np.uint8(1))
    assert json.loads(json.dumps(scheduler.config)) == expected.config
    scheduler.set_timesteps(np.int64(10))
    assert type(scheduler.num_inference_steps) is int and scheduler.timesteps.tolist() == list(range(91, 0, -10))
    assert scheduler.previous_timestep(np.int64(11)) == 1
    assert json.dumps(DDIMScheduler(eta=np.float64(0.5), set_alpha_to_one=np.True_).config)


# The forward process


@BOTH
def test_add_noise_moments(kind):
    scheduler = kind()
    for t in (0, 300, 1023):
        noisy = scheduler.add_noise(np.full(100_000, 0.7), normal(t, 100_000), t)
        alpha_bar = np.prod(1 - scheduler.betas[: t + 1])
        assert abs(noisy.mean() - 0.7 * alpha_bar**0.5) < 0.015
        assert abs(noisy.var() / (1 - alpha_bar) - 1) < 0.02


@given(st.sampled_from(BETA_SCHEDULES), st.sampled_from(PREDICTIONS), st.integers(2, 60), st.data())
@settings(deadline=None)
def test_conversions_undo_add_noise(schedule, prediction_type, n_train, data):
    """From x_t and a perfect prediction, exactly the x_0 and ε that made x_t; each picture with its own t."""
    scheduler = DDIMScheduler(n_train, beta_end=0.2, beta_schedule=schedule,
                              prediction_type=prediction_type, clip_sample=False)
    t = np.array(data.draw(st.lists(st.integers(0, n_train - 2), min_size=1, max_size=4)))
    x0, epsilon = normal(1, len(t), 2, 3, 3), normal(2, len(t), 2, 3, 3)
    x_t = scheduler.add_noise(x0, epsilon, t)
    output = np.stack([target(prediction_type, scheduler.alphas_cumprod[i], *pair)
                       for i, pair in zip(t, zip(x0, epsilon))])
    if prediction_type == "v_prediction":
        np.testing.assert_allclose(scheduler.get_velocity(x0, epsilon, t), output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scheduler.predict_original_sample(output, t, x_t), x0, atol=1e-9)
    alpha_bar = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(scheduler._estimates(output, x_t, alpha_bar)[1], epsilon, atol=1e-9)
    for i, level in enumerate(t.tolist()):
        alone = scheduler.add_noise(x0[i : i + 1], epsilon[i : i + 1], level)
        np.testing.assert_allclose(x_t[i : i + 1], alone, rtol=1e-14)


# One step back


@given(st.integers(1, 99), st.integers(1, 30), st.sampled_from(BETA_SCHEDULES), st.integers(0, 9))
@settings(deadline=None)
def test_ddpm_step_is_bayes_rule(t, jump, schedule, seed):
    """q(x_s | x_t, x_0) is the product of two Gaussians in x_s: N(x_s; √ᾱ_s x_0, 1 - ᾱ_s), and
    N(x_t; √α x_s, 1 - α) with α = ᾱ_t / ᾱ_s: precisions add."""
    s = max(t - jump, 0)
    scheduler = DDPMScheduler(100, beta_schedule=schedule, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(timesteps=[t, s])
    x0, x_t, z = normal(seed, 3, 4, 5)
    alpha_bar = np.prod(1 - scheduler.betas[: s + 1])
    alpha = np.prod(1 - scheduler.betas[s + 1 : t + 1])
    variance = 1 / (1 / (1 - alpha_bar) + alpha / (1 - alpha))
    mean = variance * (alpha_bar**0.5 * x0 / (1 - alpha_bar) + alpha**0.5 * x_t / (1 - alpha))
    out = scheduler.step(x0, t, x_t, noise=z)
    np.testing.assert_allclose(out.prev_sample, mean + variance**0.5 * z, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(out.pred_original_sample, x0)


def test_fixed_large_variance_is_beta():
    scheduler = DDPMScheduler(variance_type="fixed_large")
    x, zero, z = normal(0, 4, 3), np.zeros((4, 3)), np.ones((4, 3))
    added = scheduler.step(x, 500, x, noise=z).prev_sample - scheduler.step(x, 500, x, noise=zero).prev_sample
    np.testing.assert_allclose(added, scheduler.betas[500] ** 0.5, rtol=1e-10)
    np.testing.assert_array_equal(*scheduler.step(x, 0, x, noise=z))  # the last step arrives at x_0: no noise


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_with_eta_1_is_ddpm(prediction_type):
    options = dict(prediction_type=prediction_type, clip_sample=False)
    ddpm, ddim = DDPMScheduler(**options), DDIMScheduler(eta=1.0, **options)
    for t in (1023, 500, 1, 0):
        output, x, z = normal(t, 3, 2, 3, 4, 4)
        expected = ddpm.step(output, t, x, noise=z).prev_sample
        np.testing.assert_allclose(ddim.step(output, t, x, noise=z).prev_sample, expected, rtol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_noise_grows_with_eta_and_the_marginal_stays(eta):
    """x_s = √ᾱ_s x_0 + d ε + σ z with σ = η √β̃, and d² + σ² = 1 - ᾱ_s (Song et al. 2021, eq. 7, 16)."""
    scheduler = DDIMScheduler(eta=eta, prediction_type="sample", clip_sample=False)
    alpha_bar, x0 = scheduler.alphas_cumprod, np.zeros((1, 1))
    epsilon, z = np.array([[1.0]]), np.array([[1.0]])
    x_t = scheduler.add_noise(x0, epsilon, 600)
    d = scheduler.step(x0, 600, x_t, noise=0 * z).prev_sample
    sigma = scheduler.step(x0, 600, x_t, noise=z).prev_sample - d
    posterior = (1 - alpha_bar[599]) / (1 - alpha_bar[600]) * scheduler.betas[600]
    np.testing.assert_allclose(sigma, eta * posterior**0.5, rtol=1e-9)
    np.testing.assert_allclose(d**2 + sigma**2, 1 - alpha_bar[599], rtol=1e-9)


@pytest.mark.parametrize("n, options", [(16, {}), (10, {"steps_offset": 90}), (1, {"timestep_spacing": "trailing"}),
                                        *((n, {"timestep_spacing": spacing}) for spacing in SPACINGS[1:]
                                          for n in (10, 300))])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_with_a_perfect_model_walks_the_forward_path(schedule, prediction_type, n, options):
    scheduler = DDIMScheduler(beta_schedule=schedule, prediction_type=prediction_type, **options)
    scheduler.set_timesteps(n)
    x0, epsilon = np.clip(normal(0, 2, 1, 4, 4), -1, 1), normal(1, 2, 1, 4, 4)
    x = scheduler.add_noise(x0, epsilon, scheduler.timesteps[0])
    for t in scheduler.timesteps:
        np.testing.assert_allclose(x, scheduler.add_noise(x0, epsilon, int(t)), atol=1e-9)
        output = target(prediction_type, scheduler.alphas_cumprod[t], x0, epsilon)
        x = scheduler.step(output, t, x).prev_sample
    np.testing.assert_allclose(x, x0, atol=1e-9)


def test_last_alpha():
    """The last DDIM step arrives at x_0, or at level 0 if set_alpha_to_one is off."""
    output, x = normal(0, 2, 3, 3)
    np.testing.assert_array_equal(*DDIMScheduler().step(output, 0, x))
    kept = DDIMScheduler(set_alpha_to_one=False, clip_sample=False).step(output, 0, x)
    np.testing.assert_allclose(kept.prev_sample, x, rtol=1e-12)


@BOTH
def test_clipping(kind):
    x = np.full((1, 1, 2, 2), 5.0)
    for options, largest in (({}, 1.0), ({"clip_sample_range": 2.0}, 2.0), ({"clip_sample": False}, 5.0)):
        out = kind(prediction_type="sample", **options).step(x, 10, x, noise=x * 0)
        assert out.pred_original_sample.max() == largest
    assert (x == 5).all()


# Arrays in, arrays out


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dtype_and_inputs_are_kept(kind, dtype, prediction_type):
    scheduler = kind(prediction_type=prediction_type, **({"eta": 0.5} if kind is DDIMScheduler else {}))
    x, output = normal(0, 2, 2, 4, 4, 3, dtype=dtype).transpose(0, 1, 4, 2, 3)  # channels-last memory
    before = x.copy(), output.copy()
    results = [
        *scheduler.step(output, 10, x),
        *scheduler.step(output, np.int64(10), x, noise=x),
        scheduler.add_noise(x, output, 3),
        scheduler.add_noise(x, output, np.array([3, 1023])),
        scheduler.add_noise(x, output, [3, 1023]),
        scheduler.get_velocity(x, output, np.array([3, 9], dtype=np.int32)),
    ]
    for result in results:
        assert result.dtype == dtype and result.shape == x.shape
        assert result.transpose(0, 2, 3, 1).flags.c_contiguous or result.flags.c_contiguous
    np.testing.assert_array_equal((x, output), before)


@BOTH
def test_noise_comes_from_the_generator(kind):
    scheduler = kind(**({"eta": 1.0} if kind is DDIMScheduler else {}))
    x, output = normal(0, 2, 1, 1, 4, 4, dtype=np.float32)
    z = np.random.default_rng(5).standard_normal(x.shape, dtype=np.float32)
    given_noise = scheduler.step(output, 10, x, noise=z).prev_sample
    drawn = scheduler.step(output, 10, x, generator=np.random.default_rng(5)).prev_sample
    np.testing.assert_array_equal(drawn, given_noise)
    npdiffusion.manual_seed(5)
    np.testing.assert_array_equal(scheduler.step(output, 10, x).prev_sample, given_noise)


@BOTH
@pytest.mark.parametrize("options, message", [
    ({"beta_schedule": "cosine"}, "expected one of linear, .*'cosine'"),
    ({"prediction_type": "eps"}, "expected one of epsilon, .*'eps'"),
    ({"timestep_spacing": "even"}, "expected one of leading"),
    ({"num_train_timesteps": 0}, "int >= 1, got 0"),
    ({"num_train_timesteps": 3.0}, "num_train_timesteps: expected int, got 3.0"),
    ({"steps_offset": 0.5}, "steps_offset: expected int, got 0.5"),
    ({"beta_end": None}, "beta_end: expected float, got None"),
    ({"beta_start": float("nan")}, "beta_start <= beta_end"),
    ({"beta_start": 0.5}, "beta_start <= beta_end"),
    ({"beta_end": 0.95}, "beta_end: nothing of x_0 is left after 1024 such steps, got 0.95"),
    ({"clip_sample_range": -1.0}, "number > 0"),
])
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_bad_options_of_one_class():
    with pytest.raises(ValueError, match="fixed_small, fixed_large; got 'learned'"):
        DDPMScheduler(variance_type="learned")
    with pytest.raises(ValueError, match="eta: expected 0"):
        DDIMScheduler(eta=1.5)


@BOTH
def test_bad_timesteps(kind):
    scheduler, x = kind(100), normal(0, 2, 1, 3, 3)
    for t in (-1, 100, [0, 100], np.array([-1, 3])):
        with pytest.raises(ValueError, match="expected 0 to 99, got (-1|100)"):
            scheduler.add_noise(x, x, t)
    with pytest.raises(ValueError, match=r"shape \(2,\), one for each sample, got int64 of shape \(3,\)"):
        scheduler.add_noise(x, x, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="integers .* got float64"):
        scheduler.add_noise(x, x, np.array([1.0, 2.0]))
    with pytest.raises(TypeError, match="integer"):
        scheduler.add_noise(x, x, 1.5)
    with pytest.raises(TypeError, match="one integer timestep"):
        scheduler.step(x, np.array([1, 2]), x)
    with pytest.raises(ValueError, match="expected 0 to 99"):
        scheduler.step(x, 100, x)
    for n in (0, 101):
        with pytest.raises(ValueError, match="expected 1 to 100"):
            scheduler.set_timesteps(n)
    with pytest.raises(ValueError, match="either"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="expected 0 to 99"):
        kind(100, steps_offset=1).set_timesteps(100)


@BOTH
def test_timestep_outside_the_loop(kind):
    scheduler, x = kind(100), normal(0, 1, 1, 3, 3)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep 45 is not in scheduler.timesteps"):
        scheduler.step(x, 45, x)


@BOTH
def test_bad_arrays(kind):
    scheduler, x = kind(), normal(0, 2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"noise: expected shape \(2, 1, 3, 3\) .* got \(2, 3, 3\)"):
        scheduler.add_noise(x, x[:, 0], 5)
    with pytest.raises(TypeError, match="got float32; use .astype"):
        scheduler.add_noise(x, x.astype(np.float32), 5)
    with pytest.raises(TypeError, match="sample: expected float32 or float64, got uint8; scale images"):
        scheduler.add_noise(np.zeros((2, 1, 3, 3), np.uint8), x, 5)
    with pytest.raises(TypeError, match="array"):
        scheduler.add_noise([[1.0]], x, 5)
    with pytest.raises(ValueError, match="model_output: expected shape"):
        scheduler.step(x[:1], 5, x)
    with pytest.raises(TypeError, match="generator"):
        DDPMScheduler().step(x, 5, x, generator=0)
    with pytest.raises(ValueError, match="noise: expected shape"):
        DDPMScheduler().step(x, 5, x, noise=x[:1])


def test_ddim_step_from_what_the_clipped_x0_leaves():
    """By hand, with a model whose x_0 = 3 is clipped to 1: the sample's rest counts as noise."""
    scheduler, t = DDIMScheduler(100), 60
    scheduler.set_timesteps(10)
    a, before = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 10]
    x = np.full((1, 1, 2, 2), 0.7)
    output = (x - math.sqrt(a) * 3.0) / math.sqrt(1 - a)
    plain = scheduler.step(output, t, x)
    rest = scheduler.step(output, t, x, use_clipped_model_output=True)
    assert np.allclose(plain.pred_original_sample, 1) and np.allclose(rest.pred_original_sample, 1)
    assert np.allclose(plain.prev_sample, math.sqrt(before) + math.sqrt(1 - before) * output)
    epsilon = (0.7 - math.sqrt(a)) / math.sqrt(1 - a)
    assert np.allclose(rest.prev_sample, math.sqrt(before) + math.sqrt(1 - before) * epsilon)
    inside = 0.1 * output  # nothing is clipped: the same step
    assert np.allclose(scheduler.step(inside, t, 0.1 * x).prev_sample,
                       scheduler.step(inside, t, 0.1 * x, use_clipped_model_output=True).prev_sample)


# diffusers


def both_schedulers(monkeypatch, name, ddim_eta=0.0, clipped=False, **options):
    """Ours and diffusers', configured alike, as (scheduler, timesteps, step(output, t, x, z)).

    diffusers' own float32 tables lose digits of 1 - ᾱ_t where ᾱ_t is near 1 (3e-4 of it at t = 0), which adds
    up to about 1e-4 over 1000 steps. So it gets float64 tables, computed from its formulas in float64.
    """
    torch = pytest.importorskip("torch", reason="the comparison with diffusers needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    from diffusers.schedulers import scheduling_ddpm

    ours = DDIMScheduler(eta=ddim_eta, **options) if name == "DDIM" else DDPMScheduler(**options)
    schedule = options.get("beta_schedule", "linear")
    known = {"beta_schedule": "linear"} if name == "DDIM" and schedule == "sigmoid" else {}  # not in its DDIM
    theirs = getattr(diffusers, f"{name}Scheduler")(**{"num_train_timesteps": 1024, **options, **known})
    if not known:
        np.testing.assert_allclose(theirs.betas.numpy(), ours.betas, rtol=3e-4)
        np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), ours.alphas_cumprod, rtol=1e-4)
    theirs.alphas_cumprod = torch.from_numpy(ours.alphas_cumprod)
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    if name == "DDIM":
        theirs.final_alpha_cumprod = theirs.one if ours.set_alpha_to_one else theirs.alphas_cumprod[0]

    def their_step(output, t, x, z):
        output, x, z = (torch.from_numpy(a.copy()) for a in (output, x, z))
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: z)
        more = {"eta": ddim_eta, "variance_noise": z, "use_clipped_model_output": clipped} if name == "DDIM" else {}
        out = theirs.step(output, t, x, **more)
        return out.prev_sample.numpy(), out.pred_original_sample.numpy()

    more = {"use_clipped_model_output": True} if clipped else {}
    return (ours, lambda output, t, x, z: ours.step(output, t, x, noise=z, **more)), (theirs, their_step)


def compare_loops(monkeypatch, name, n, ddim_eta=0.0, clipped=False, **options):
    """Two full loops, each on its own samples, with the same noise and the same (smooth, imperfect) model."""
    (ours, our_step), (theirs, their_step) = both_schedulers(monkeypatch, name, ddim_eta, clipped, **options)
    ours.set_timesteps(n)
    theirs.set_timesteps(n)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    rng = np.random.default_rng(n)
    x = y = rng.standard_normal((2, 1, 4, 4), dtype=np.float32)

    def model(x, t):  # the posterior mean for data from N(0, 0.3²), and some error
        alpha_bar = float(ours.alphas_cumprod[t])
        epsilon = math.sqrt(1 - alpha_bar) * x / (0.09 * alpha_bar + 1 - alpha_bar) + 0.1 * np.sin(3 * x)
        x0 = (x - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)
        return target(ours.prediction_type, alpha_bar, x0, epsilon)

    for t in ours.timesteps.tolist():
        z = rng.standard_normal(x.shape, dtype=np.float32)
        x, x0 = our_step(model(x, t), t, x, z)
        y, y0 = their_step(model(y, t), t, y, z)
        assert x.dtype == x0.dtype == np.float32
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=f"t = {t}")
        np.testing.assert_allclose(x0, y0, rtol=0, atol=1e-5, err_msg=f"x_0 at t = {t}")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_loops_agree_with_diffusers(monkeypatch, schedule, prediction_type, spacing):
    options = dict(beta_schedule=schedule, prediction_type=prediction_type, timestep_spacing=spacing)
    for variance_type in ("fixed_small", "fixed_large"):
        compare_loops(monkeypatch, "DDPM", 10, variance_type=variance_type, **options)
    for eta, to_one in ((0.0, True), (0.6, False)):
        for clipped in (False, True):
            if spacing != "linspace":  # where DDIM's steps arrive elsewhere than in diffusers: see previous_timestep
                compare_loops(monkeypatch, "DDIM", 16, eta, clipped, set_alpha_to_one=to_one, **options)


@pytest.mark.parametrize("name, n, spacing, more", [
    *((name, *case) for name in ("DDPM", "DDIM") for case in (
        (50, "leading", {"steps_offset": 1}),
        (64, "trailing", {"clip_sample_range": 0.5}),
        (1000, "leading", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}),
        (1024, "trailing", {"beta_schedule": "scaled_linear", "prediction_type": "sample"}))),
    ("DDPM", 50, "linspace", {"clip_sample": False, "beta_start": 0.001, "beta_end": 0.01}),
    ("DDPM", 50, "trailing", {}),
    ("DDPM", 1000, "linspace", {}),
])
def test_long_loops_agree_with_diffusers(monkeypatch, name, n, spacing, more):
    compare_loops(monkeypatch, name, n, 1.0 if name == "DDIM" else 0.0, timestep_spacing=spacing, **more)


@BOTH
def test_forward_process_agrees_with_diffusers(kind):
    torch = pytest.importorskip("torch", reason="the comparison with diffusers needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    theirs, ours = getattr(diffusers, kind.__name__)(num_train_timesteps=1024), kind()
    x, epsilon = normal(0, 2, 4, 1, 3, 3, dtype=np.float32)
    t = np.array([0, 10, 500, 1023])
    for method in ("add_noise", "get_velocity"):
        expected = getattr(theirs, method)(*map(torch.from_numpy, (x, epsilon, t)))
        np.testing.assert_allclose(getattr(ours, method)(x, epsilon, t), expected.numpy(), rtol=0, atol=1e-5)
