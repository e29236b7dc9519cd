"""DPM-Solver++ and Adams and Bashforth's method: their formulas, an equation with a known solution, diffusers."""

import math

import numpy as np
import pytest

from npdiffusion import nn
from npdiffusion.diffusion import (
    AdamsBashforthScheduler, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate,
)
from npdiffusion.tensor import Tensor

SPACINGS = {"linspace": {}, "leading": {"timestep_spacing": "leading"}, "trailing": {"timestep_spacing": "trailing"},
            "karras": {"use_karras_sigmas": True}, "lu": {"use_lu_lambdas": True}}


def model_output(prediction_type, alpha_bar, x, s=0.3):
    """What the perfect model of data from N(0, s²) returns, with some error, so that it is not linear."""
    epsilon = math.sqrt(1 - alpha_bar) * x / (s**2 * alpha_bar + 1 - alpha_bar) + 0.1 * np.sin(3 * x)
    x0 = (x - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)
    v = math.sqrt(alpha_bar) * epsilon - math.sqrt(1 - alpha_bar) * x0
    return {"epsilon": epsilon, "sample": x0, "v_prediction": v}[prediction_type]


def walk(scheduler, x):
    """x_0 by ``step``."""
    for t, alpha_bar in zip(scheduler.timesteps.tolist(), scheduler.alpha_bars.tolist()):
        x = scheduler.step(model_output(scheduler.prediction_type, alpha_bar, x), t, x).prev_sample
    return x


def start(seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((2, 1, 4, 4), dtype=dtype)


def test_defaults_are_what_the_docs_say():
    common = DDIMScheduler().config
    del common["eta"], common["set_alpha_to_one"]
    assert AdamsBashforthScheduler().config == {**common, "timestep_spacing": "trailing"}
    assert DPMSolverMultistepScheduler().config == {
        **common, "timestep_spacing": "linspace", "solver_order": 2, "solver_type": "midpoint",
        "lower_order_final": True, "use_karras_sigmas": False, "use_lu_lambdas": False, "final_sigmas_type": "zero"}


def test_levels_by_hand():
    def timesteps(n, **options):
        scheduler = DPMSolverMultistepScheduler(10, beta_end=0.5, **options)
        scheduler.set_timesteps(n)
        return scheduler.timesteps.tolist()

    assert timesteps(3) == [9, 6, 3]
    assert timesteps(2, timestep_spacing="leading", steps_offset=1) == [7, 4]
    assert timesteps(5, timestep_spacing="trailing") == [9, 7, 5, 3, 1]
    for options in SPACINGS.values():
        found = timesteps(10, **options)
        assert len(found) == 10 and found[0] == 9 and (np.diff(found) <= 0).all()
        assert timesteps(1, **options) == ([5] if options.get("timestep_spacing") == "leading" else [9])


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_levels_evenly_in_log_snr_and_karras(n, final):
    lu = DPMSolverMultistepScheduler(use_lu_lambdas=True, final_sigmas_type=final)
    karras = DPMSolverMultistepScheduler(use_karras_sigmas=True, final_sigmas_type=final)
    for scheduler, f in ((lu, np.log), (karras, lambda sigma: sigma ** (1 / 7))):
        scheduler.set_timesteps(n)
        alpha_bars = scheduler.alpha_bars
        assert alpha_bars[-1] == (1 if final == "zero" else scheduler.alphas_cumprod[0])
        values = f(np.sqrt((1 - alpha_bars) / alpha_bars)[:-1])
        assert values[0] == pytest.approx(f(scheduler.sigmas[-1]))
        if n > 1:
            assert values[-1] == pytest.approx(f(scheduler.sigmas[0]))
            np.testing.assert_allclose(np.diff(values), np.diff(values)[0], rtol=1e-6)
        told = np.log(scheduler.sigmas[scheduler.timesteps]) - np.log(np.sqrt((1 - alpha_bars) / alpha_bars)[:-1])
        assert abs(told).max() < 0.3  # half of a level, at the first ones


def test_a_loop_by_hand():
    """Algorithm 2 of Lu et al. 2022, with λ, h and r as they write them."""
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True, clip_sample=False)
    scheduler.set_timesteps(6)
    alpha, sigma = np.sqrt(scheduler.alpha_bars), np.sqrt(1 - scheduler.alpha_bars)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    x, estimates = start(), []
    for i in range(6):
        epsilon = model_output("epsilon", alpha[i]**2, x)
        estimates.append((x - sigma[i] * epsilon) / alpha[i])
        h, d = lam[i + 1] - lam[i], estimates[-1]
        if 0 < i < 5:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * d
    np.testing.assert_allclose(walk(scheduler, start()), x, rtol=1e-9)


def error(scheduler, n, s=0.5):
    """Of x_0 after n steps, for data from N(0, s²), whose path is x_t ∝ √(s² ᾱ_t + 1 - ᾱ_t)."""
    scheduler.set_timesteps(n)
    x, first, last = np.ones((1, 1)), *scheduler.alpha_bars[[0, -1]]
    for t, alpha_bar in zip(scheduler.timesteps.tolist(), scheduler.alpha_bars.tolist()):
        output = math.sqrt(1 - alpha_bar) * x / (s**2 * alpha_bar + 1 - alpha_bar)
        x = scheduler.step(output, t, x).prev_sample
    return abs(x.item() - math.sqrt((s**2 * last + 1 - last) / (s**2 * first + 1 - first)))


@pytest.mark.parametrize("order", [1, 2])
def test_its_order(order):
    """Twice the steps, 2^order less error."""
    solver = DPMSolverMultistepScheduler(clip_sample=False, use_lu_lambdas=True, solver_order=order,
                                         final_sigmas_type="sigma_min")
    assert 0.8 * 2**order < error(solver, 40) / error(solver, 80) < 1.3 * 2**order


@pytest.mark.parametrize("n", [5, 8, 15])
def test_of_second_order_they_are_better_than_ddim(n):
    ddim = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    assert 1.5 * error(AdamsBashforthScheduler(clip_sample=False), n) < error(ddim, n)
    assert 1.5 * error(DPMSolverMultistepScheduler(clip_sample=False, use_karras_sigmas=True), n) < error(ddim, n)


def test_adams_and_bashforth_by_hand():
    """Evenly spaced levels: DDIM's steps from 3/2 x_0 - 1/2 x_0 before, the last one too."""
    scheduler = AdamsBashforthScheduler(1000, clip_sample=False)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    x, before = start(), None
    for a, b in zip(scheduler.alpha_bars, scheduler.alpha_bars[1:]):
        x0 = (x - math.sqrt(1 - a) * model_output("epsilon", a, x)) / math.sqrt(a)
        d = x0 if before is None else 1.5 * x0 - 0.5 * before
        x, before = math.sqrt(b) * d + math.sqrt((1 - b) / (1 - a)) * (x - math.sqrt(a) * d), x0
    np.testing.assert_allclose(walk(scheduler, start()), x, rtol=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_of_order_1_it_is_ddim(prediction_type):
    ours = DPMSolverMultistepScheduler(solver_order=1, timestep_spacing="trailing", prediction_type=prediction_type)
    ddim = DDIMScheduler(timestep_spacing="trailing", prediction_type=prediction_type)
    ours.set_timesteps(12), ddim.set_timesteps(12)
    y = start()
    for t in ddim.timesteps.tolist():
        output = model_output(prediction_type, float(ddim.alphas_cumprod[t]), y)
        y = ddim.step(output, t, y, use_clipped_model_output=True).prev_sample
    np.testing.assert_allclose(walk(ours, start()), y, atol=1e-10)


@pytest.mark.parametrize("lower_order_final, n, final, last", [
    (True, 14, "sigma_min", 0), (True, 15, "sigma_min", 1), (False, 14, "sigma_min", 1), (False, 20, "zero", 0)])
def test_which_steps_are_of_first_order(lower_order_final, n, final, last):
    scheduler = DPMSolverMultistepScheduler(lower_order_final=lower_order_final, final_sigmas_type=final)
    scheduler.set_timesteps(n)
    weights = scheduler.extrapolation(scheduler.timesteps, scheduler.alpha_bars)
    assert weights[0] == 0 and (weights[1:-1] > 0).all() and (weights[-1] > 0) == last


class Model(nn.Module):
    num_classes = None

    def __init__(self, scheduler):
        self.scheduler, self.calls = scheduler, []

    def __call__(self, x, t, labels=None):
        self.calls.append(t.tolist())
        outputs = [model_output("epsilon", float(self.scheduler.alphas_cumprod[level]), row)
                   for level, row in zip(t, x.data)]
        return Tensor(np.stack(outputs).astype(x.data.dtype))


@pytest.mark.parametrize("scheduler", [AdamsBashforthScheduler(),
                                       *(DPMSolverMultistepScheduler(**options) for options in SPACINGS.values())])
def test_generate_is_the_written_out_loop(scheduler):
    model = Model(scheduler)
    x = generate(model, scheduler, (2, 1, 4, 4), num_inference_steps=7, generator=np.random.default_rng(0),
                 dtype=np.float64)
    scheduler.set_timesteps(7)
    assert model.calls == [[t, t] for t in scheduler.timesteps.tolist()]
    y = start()
    for t in scheduler.timesteps.tolist():
        y = scheduler.step(model(Tensor(y), np.array([t, t])).data, t, y).prev_sample
    np.testing.assert_allclose(x, y, rtol=1e-12)


def test_more_levels_than_a_table_has():
    """Neighbouring levels may be told as the same t; each is visited all the same."""
    scheduler = DPMSolverMultistepScheduler(100, beta_end=0.2, use_karras_sigmas=True)
    scheduler.set_timesteps(100)
    assert len(set(scheduler.timesteps.tolist())) < 100
    assert np.isfinite(walk(scheduler, start())).all()


@pytest.mark.parametrize("spacing", ["karras", "lu"])
def test_a_trajectory_begins_at_its_level(spacing):
    """Rounded down, as diffusers does for this schedule, σ_t must not become t - 1."""
    scheduler = DPMSolverMultistepScheduler(300, beta_schedule="squaredcos_cap_v2", **SPACINGS[spacing])
    assert [scheduler.trajectory(t, 4)[0][0] for t in range(300)] == list(range(300))


@pytest.mark.parametrize("kind, options", [(DDPMScheduler, {}), (DPMSolverMultistepScheduler, SPACINGS["karras"])])
def test_denoise_goes_from_its_level_to_the_first(kind, options):
    """Evenly in log-SNR, unless the scheduler asks for Karras' levels."""
    scheduler = kind(**options)
    model, t = Model(scheduler), 400
    denoise(model, scheduler, start(), t, method="dpm", num_inference_steps=5)
    high, low = scheduler.sigmas[[t, 0]]
    ramp = np.linspace(0, 1, 5)
    sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7 if options else high ** (
        1 - ramp) * low ** ramp
    assert [t for t, _ in model.calls] == [scheduler.sigma_to_t(sigma) for sigma in sigmas[:-1]] + [0]


def test_steps_must_be_taken_in_order():
    scheduler = DPMSolverMultistepScheduler(100)
    x = start()
    scheduler.set_timesteps(timesteps=[80, 60, 30, 5])
    scheduler.step(x, 60, x)  # begun in the middle: of first order
    with pytest.raises(ValueError, match="levels out of order: after timestep 60 comes 30, got 80; set_timesteps"):
        scheduler.step(x, 80, x)
    with pytest.raises(ValueError, match=r"x_0 of the step before: expected shape \(1, 1, 4, 4\)"):
        scheduler.step(x[:1], 30, x[:1])
    for wrong in ([30, 30], np.array([30, 30])):
        for begun in (scheduler, DPMSolverMultistepScheduler(100)):
            with pytest.raises(TypeError, match="one integer timestep for the whole batch"):
                begun.step(x, wrong, x)
    scheduler.set_timesteps(timesteps=[80, 60, 30, 5])
    once = walk(scheduler, x)
    np.testing.assert_array_equal(walk(scheduler, x), once)  # after the last step comes the first
    assert scheduler.previous_timestep(60) == 30 and scheduler.previous_timestep(5) == -1
    with pytest.raises(ValueError, match="timestep 7 is not in"):
        scheduler.step(x, 7, x)


@pytest.mark.parametrize("options, message", [
    ({"solver_order": 3}, "solver_order: expected 1 or 2, got 3"),
    ({"solver_type": "heun"}, "solver_type: expected one of midpoint; got 'heun'"),
    ({"final_sigmas_type": "none"}, "final_sigmas_type: expected one of zero, sigma_min; got 'none'"),
    ({"use_karras_sigmas": "false"}, "use_karras_sigmas: expected one of True, False; got 'false'"),
    ({"use_karras_sigmas": True, "use_lu_lambdas": True}, "expected use_karras_sigmas or use_lu_lambdas, got both"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DPMSolverMultistepScheduler(**options)


@pytest.mark.parametrize("options", [SPACINGS["karras"], SPACINGS["lu"]])
def test_own_timesteps_beside_own_sigmas(options):
    with pytest.raises(ValueError, match="timesteps: a scheduler with use_karras_sigmas or use_lu_lambdas"):
        DPMSolverMultistepScheduler(**options).set_timesteps(timesteps=[3, 2])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_loops_agree_with_diffusers(schedule, prediction_type, spacing):
    """Its tables made again in float64; its clipping is called thresholding."""
    torch = pytest.importorskip("torch", reason="the comparison with diffusers needs PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the comparison with diffusers needs it installed")
    for n, order, final, lower, clip in ((1, 2, "zero", True, True), (7, 2, "zero", False, True),
                                         (10, 1, "sigma_min", True, False), (14, 2, "sigma_min", True, True),
                                         (14, 2, "sigma_min", False, False), (60, 2, "sigma_min", True, True)):
        options = dict(num_train_timesteps=1000 + 24 * (n % 2), beta_schedule=schedule, solver_order=order,
                       prediction_type=prediction_type, final_sigmas_type=final, lower_order_final=lower,
                       **SPACINGS[spacing])
        ours = DPMSolverMultistepScheduler(clip_sample=clip, **options)
        theirs = diffusers.DPMSolverMultistepScheduler(thresholding=clip, sample_max_value=1.0, **options)
        theirs.alphas_cumprod = torch.from_numpy(ours.alphas_cumprod)
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        sigmas = np.sqrt((1 - ours.alpha_bars) / ours.alpha_bars)
        np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
        np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=1e-5, atol=1e-7)
        theirs.sigmas = torch.from_numpy(sigmas)  # they are float32
        x = y = start(n)
        for t, alpha_bar in zip(ours.timesteps.tolist(), ours.alpha_bars.tolist()):
            x = ours.step(model_output(prediction_type, alpha_bar, x), t, x).prev_sample
            y = theirs.step(torch.from_numpy(model_output(prediction_type, alpha_bar, y)), t, torch.from_numpy(y))
            y = y.prev_sample.numpy()
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, abs(y).max()), err_msg=f"n = {n}, t = {t}")
