"""Restoration: operators against their matrices, ΠGDM against finite differences and a posterior that is known."""

import numpy as np
import pytest

from npdiffusion import nn
from npdiffusion.data import SyntheticDigits
from npdiffusion.diffusion import (
    AveragePool, Blur, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, Gray, Inpaint, restoration, restore,
)
from npdiffusion.models import UNet, pretrained
from npdiffusion.tensor import Tensor

MASK = np.random.default_rng(0).random((4, 8)) < 0.6
KERNEL = np.random.default_rng(1).random((3, 5))
DRAWN = {"inpaint": (Inpaint(MASK), (2, 4, 8)), "inpaint channels": (Inpaint(MASK.reshape(2, 4, 4)), (2, 4, 4)),
         "average pool": (AveragePool(2), (2, 4, 6)), "blur": (Blur(KERNEL), (2, 5, 6)),
         "blur, even": (Blur(np.ones((2, 2))), (1, 4, 6)),  # some of its frequencies are lost
         "gray": (Gray(), (3, 3, 4)), "gray, own weights": (Gray([1, -2]), (2, 3, 4))}
OPERATORS = pytest.mark.parametrize("operator, shape", DRAWN.values(), ids=DRAWN.keys())


def rng():
    return np.random.default_rng(7)


def matrix(f, shape):
    """The matrix of a linear function of arrays (N, *shape), and the shape of its results."""
    columns = f(np.eye(int(np.prod(shape))).reshape(-1, *shape))
    return columns.reshape(len(columns), -1).T, columns.shape[1:]


# Operators


@OPERATORS
def test_the_four_equations_of_moore_and_penrose(operator, shape):
    a, measured = matrix(operator.forward, shape)
    plus, back = matrix(operator.pinv, measured)
    assert back == shape
    for found, expected in ((a @ plus @ a, a), (plus @ a @ plus, plus), ((a @ plus).T, a @ plus),
                            ((plus @ a).T, plus @ a)):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(plus, np.linalg.pinv(a, rcond=1e-6), atol=1e-9)


@OPERATORS
def test_solve_and_the_transposed(operator, shape):
    """solve against a dense solve; <A x, v> = <x, Aᵀ v> with Aᵀ v = A⁺ (r - ρ solve(r, ρ)) of r = (A Aᵀ + ρ I) v."""
    rng, rho = np.random.default_rng(2), 0.3
    a, measured = matrix(operator.forward, shape)
    r = operator.forward(rng.standard_normal((3, *shape)))
    system = a @ a.T + rho * np.eye(len(a))
    expected = np.linalg.solve(system, r.reshape(3, -1).T).T.reshape(r.shape)
    np.testing.assert_allclose(operator.solve(r, rho), expected, atol=1e-10)
    x, v = rng.standard_normal((1, *shape)), rng.standard_normal((1, *measured))
    r = (system @ v.ravel()).reshape(v.shape)
    transposed = operator.pinv(r - rho * operator.solve(r, rho))
    np.testing.assert_allclose((operator.forward(x) * v).sum(), (x * transposed).sum(), rtol=1e-9)


@OPERATORS
def test_dtypes_and_inputs_stay(operator, shape):
    x = rng().standard_normal((2, *shape), dtype=np.float32)
    before, y = x.copy(), operator.forward(x)
    for result in (y, operator.pinv(y), operator.solve(y, 0.5)):
        assert result.dtype == np.float32
    np.testing.assert_array_equal(x, before)


def test_operators_by_hand():
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(AveragePool(2).forward(x), [[[[2.5, 4.5], [10.5, 12.5]]]])
    np.testing.assert_array_equal(Inpaint(np.eye(4)).forward(x)[0, 0], np.diag([0.0, 5, 10, 15]))
    moved = Blur([[0, 0, 1]]).forward(x)  # 1 right of the centre
    np.testing.assert_allclose(moved, np.roll(x, 1, 3), atol=1e-12)
    np.testing.assert_allclose(Gray().forward(np.ones((1, 3, 2, 2))), 1)
    h, y = np.array([[1.0, 2, 0], [0, 3, 1], [2, 0, 1]]), np.zeros((4, 4))
    for i in range(4):
        for j in range(4):
            for u in range(3):
                for v in range(3):
                    y[i, j] += h[u, v] * x[0, 0, (i - u + 1) % 4, (j - v + 1) % 4]
    np.testing.assert_allclose(Blur(h).forward(x)[0, 0], y, atol=1e-12)


def test_frequencies_that_are_nearly_lost():
    """K = 2e-4 for stripes of one pixel: below rcond."""
    stripes = np.ones((1, 1, 4, 4)) * [1.0, -1, 1, -1]
    blur, exact = Blur([[0.5001, 0.4999]]), Blur([[0.5001, 0.4999]], rcond=1e-4)
    assert abs(blur.forward(stripes)).max() == abs(blur.pinv(stripes)).max() == 0
    np.testing.assert_allclose(abs(exact.forward(stripes)), 2e-4, rtol=1e-9)
    np.testing.assert_allclose(exact.pinv(exact.forward(stripes)), stripes, rtol=1e-9)


# One step


class Curved(nn.Module):
    """A network in small: not linear, every output of every input, with labels."""

    num_classes = 3

    def __init__(self, n, dtype=np.float64):
        rng = np.random.default_rng(3)
        self.weight = nn.Parameter((rng.standard_normal((n, n)) / n**0.5).astype(dtype))

    def forward(self, x, t, labels=None):
        label = Tensor((np.full(len(x), 3) if labels is None else labels).astype(x.dtype).reshape(-1, 1))
        return ((x.flatten(1) @ self.weight + label * 0.3).tanh() + x.flatten(1) * 0.5).reshape(x.shape)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sigma, labels, s", [(0.0, None, 1.0), (0.3, np.array([1, 2]), 1.0),
                                              (0.3, np.array([1, 2]), 2.5)])
def test_g_against_finite_differences(prediction_type, sigma, labels, s):
    """g = Jᵀ w with w = Aᵀ (A Aᵀ + ρ I)⁻¹ (y - A x̂_0): <g, d> is the change of <w, x̂_0>, not clipped, along d."""
    scheduler, t = DDIMScheduler(prediction_type=prediction_type), 300
    free = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    model, operator, rng = Curved(16), AveragePool(2), np.random.default_rng(4)
    x, d = rng.standard_normal((2, 2, 1, 4, 4))
    y = rng.standard_normal((2, 1, 2, 2))
    output, g = restoration.guidance(model, scheduler, x, t, y, operator, sigma, labels, s)

    def x0(x, scheduler):
        out = [model(Tensor(x), None, some).data for some in (labels, None)]
        guided = out[0] if labels is None else out[1] + s * (out[0] - out[1])
        return scheduler.predict_original_sample(guided, t, x), guided

    np.testing.assert_allclose(output, x0(x, scheduler)[1], rtol=1e-12)
    a, rho = matrix(operator.forward, (1, 4, 4))[0], sigma**2 / (1 - scheduler.alphas_cumprod[t])
    r = (y - operator.forward(x0(x, scheduler)[0])).reshape(2, -1)
    w = np.linalg.solve(a @ a.T + rho * np.eye(4), r.T).T @ a
    h = 1e-5
    slope = (x0(x + h * d, free)[0] - x0(x - h * d, free)[0]).reshape(2, -1) / (2 * h)
    np.testing.assert_allclose((g * d).reshape(2, -1).sum(1), (w * slope).sum(1), rtol=1e-6)
    assert abs(x0(x, free)[0]).max() > 1  # clipping makes a difference


def test_weights_get_no_gradients():
    model, scheduler = Curved(16), DDIMScheduler()
    before = model.weight.data.copy()
    x = restore(model, scheduler, np.zeros((1, 1, 4, 4)), Inpaint(np.eye(4)), num_inference_steps=3)
    assert x.dtype == np.float64
    assert model.weight.grad is None and model.weight.requires_grad and model.training
    np.testing.assert_array_equal(model.weight.data, before)
    assert scheduler.num_inference_steps is None


# The whole


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_the_loop_by_hand(sigma):
    """Trailing levels, DDIM with η = 1, the weight √ᾱ_t times w to 1; at the end clipped, or made to fit."""
    levels, y, operator = [], rng().standard_normal((2, 1, 2, 2)) / 2, AveragePool(2)

    class Watched(Curved):
        def forward(self, x, t, labels=None):
            assert not self.training
            levels.append(t.tolist())
            return super().forward(x, t, labels)

    model, given = Watched(16), DDPMScheduler(1000)
    x = restore(model, given, y, operator, sigma, [1, 2], 1.0, 6, num_samples=2, weight=0.7, generator=rng())
    scheduler, noise = DDIMScheduler(1000, eta=1.0, timestep_spacing="trailing"), rng()
    scheduler.set_timesteps(6)
    assert levels == [[t] * 4 for t in scheduler.timesteps.tolist()]
    z, model, y = noise.standard_normal((4, 1, 4, 4)), model.eval(), np.concatenate([y, y])
    for t in scheduler.timesteps.tolist():
        output, g = restoration.guidance(model, scheduler, z, t, y, operator, sigma, np.array([1, 2, 1, 2]), 1.0)
        z = scheduler.step(output, t, z, noise=noise.standard_normal(z.shape), use_clipped_model_output=True)[0]
        alpha_bar = scheduler.alphas_cumprod[t]
        z = z + (alpha_bar + 0.7 * (1 - alpha_bar)) * alpha_bar**0.5 * g
    z = z.clip(-1, 1) if sigma else restoration.fitted(z, y, operator, 1.0)
    np.testing.assert_allclose(x.reshape(z.shape), z, rtol=1e-9, atol=1e-12)


class Gaussian(nn.Module):
    """The perfect model of pictures (1, 4, 4) from N(m, C), neighbours alike: E[x_0 | x_t] = m + G (x_t - √ᾱ_t m),
    G = √ᾱ_t C (ᾱ_t C + (1 - ᾱ_t) I)⁻¹. With label k, m is k."""

    num_classes = 3

    def __init__(self, scheduler):
        self.scheduler = scheduler
        place = np.indices((4, 4)).reshape(2, -1).T
        self.mean = np.linspace(-0.5, 1, 16)
        self.cov = np.exp(-np.linalg.norm(place[:, None] - place, axis=2) / 2)

    def forward(self, x, t, labels=None):
        a = float(self.scheduler.alphas_cumprod[t[0]])
        gain = a**0.5 * self.cov @ np.linalg.inv(a * self.cov + (1 - a) * np.eye(16))
        mean = self.mean if labels is None else np.full(16, 1.0) * labels[:, None]
        x0 = Tensor(mean.astype(x.dtype)) + (x.flatten(1) - (a**0.5 * mean).astype(x.dtype)) @ gain.astype(x.dtype)
        x0 = x0.reshape(x.shape)
        epsilon = (x - a**0.5 * x0) / (1 - a)**0.5
        return {"epsilon": epsilon, "sample": x0,
                "v_prediction": a**0.5 * epsilon - (1 - a)**0.5 * x0}[self.scheduler.prediction_type]

    def posterior(self, operator, y, sigma):
        """Mean and standard deviations of p(x_0 | y): m + C Aᵀ (A C Aᵀ + σ² I)⁻¹ (y - A m), C - C Aᵀ (…)⁻¹ A C."""
        a, measured = matrix(operator.forward, (1, 4, 4))
        gain = self.cov @ a.T @ np.linalg.pinv(a @ self.cov @ a.T + sigma**2 * np.eye(len(a)), rcond=1e-9)
        mean = self.mean + gain @ (y.ravel() - a @ self.mean)
        return mean, np.sqrt(np.diag(self.cov - gain @ a @ self.cov).clip(0))


MANY = {"hole": Inpaint(np.random.default_rng(5).random((4, 4)) < 0.4), "average pool": AveragePool(2),
        "blur": Blur(KERNEL[:, :3])}


@pytest.mark.parametrize("prediction_type, operator, sigma, off", [
    ("epsilon", "hole", 0.0, 0.15), ("sample", "hole", 0.3, 0.2), ("v_prediction", "average pool", 0.0, 0.1),
    ("epsilon", "average pool", 0.3, 0.25), ("sample", "blur", 0.0, 1e-6), ("v_prediction", "blur", 0.3, 0.3)])
def test_many_samples_have_the_posterior_s_mean_and_spread(prediction_type, operator, sigma, off):
    """Near, not equal: p(x_0 | x_t) is no N(x̂_0, r_t² I) here, and the paper's weight pulls harder than the score.

    off: distance of the mean from the exact one, where that of the prior's is 1."""
    scheduler, operator = DDPMScheduler(prediction_type=prediction_type, clip_sample=False), MANY[operator]
    model, rng = Gaussian(scheduler), np.random.default_rng(3)
    x = (model.mean + np.linalg.cholesky(model.cov) @ rng.standard_normal(16)).reshape(1, 1, 4, 4)
    y = operator.forward(x)
    y += sigma * rng.standard_normal(y.shape)
    samples = restore(model, scheduler, y, operator, sigma, num_samples=2000, weight=1, generator=rng)
    assert samples.shape == (2000, 1, 1, 4, 4)
    mean, std = model.posterior(operator, y, sigma)
    error = samples.mean(0).ravel() - mean
    assert np.linalg.norm(error) < off * np.linalg.norm(model.mean - mean)
    assert (0.6 if sigma else 0.85) * std.mean() - 1e-6 < samples.std(0).mean() < std.mean() + 1e-6


@pytest.mark.parametrize("operator", [Inpaint(np.arange(32) % 3 > 0 * np.ones((32, 1))), AveragePool(4),
                                      Blur(np.ones((3, 3)) / 9)], ids=["inpaint", "average pool", "blur"])
def test_digits_fit_what_was_measured_without_noise(operator):
    drawn = SyntheticDigits(2)
    y = operator.forward(drawn.images)
    x = restore(pretrained("mnist-ddpm"), DDPMScheduler(), y, operator, num_inference_steps=8, generator=rng())
    assert x.shape == drawn.images.shape and x.dtype == np.float32
    assert abs(operator.forward(x) - operator.forward(operator.pinv(y))).max() < 1e-4
    assert abs(x).max() < 1.01


def test_samples_of_several_pictures_and_their_order():
    scheduler = DDPMScheduler(clip_sample=False)
    y = np.array([-2.0, 0, 3]).reshape(3, 1, 1, 1) * np.ones((3, 1, 4, 4))
    operator = Inpaint(np.eye(4))
    samples = restore(Gaussian(scheduler), scheduler, y, operator, num_samples=4, generator=rng())
    assert samples.shape == (4, 3, 1, 4, 4)
    np.testing.assert_allclose(samples[..., range(4), range(4)], np.broadcast_to(y[..., 0], (4, 3, 1, 4)))
    assert samples.std(0)[..., 0, 1].min() > 0.1
    one = restore(Gaussian(scheduler), scheduler, y, operator, generator=rng())
    assert one.shape == (3, 1, 4, 4)
    np.testing.assert_array_equal(one, restore(Gaussian(scheduler), scheduler, y, operator, generator=rng()))
    assert (one != restore(Gaussian(scheduler), scheduler, y, operator, generator=np.random.default_rng(8))).any()


def test_labels_and_guidance():
    """A corner is measured; what is far from it has its label's mean, and with s = 2 twice the way from no label's."""
    scheduler = DDPMScheduler(clip_sample=False)
    model, operator = Gaussian(scheduler), Inpaint(np.arange(16).reshape(4, 4) == 0)
    model.cov = np.eye(16)
    y, labels = np.zeros((3, 1, 4, 4)), [0, 2, 1]

    def means(labels, s=1.0):
        x = restore(model, scheduler, y, operator, 0.0, labels, s, 20, num_samples=500, generator=rng())
        return x.mean(0)[:, 0, 1:].mean((1, 2))

    np.testing.assert_allclose(means(labels), labels, atol=0.05)
    np.testing.assert_allclose(means(1), 1, atol=0.05)
    np.testing.assert_allclose(means(labels, 2.0), 2 * np.array(labels) - 3, atol=0.1)  # label 3 is none: its mean is 3
    np.testing.assert_allclose(means(None), model.mean[4:].mean(), atol=0.05)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_and_dtype(kind):
    model, y, operator = Gaussian(DDPMScheduler()), np.full((2, 1, 2, 2), 0.3), AveragePool(2)
    expected = restore(model, DDPMScheduler(), y, operator, 0.1, num_inference_steps=5, generator=rng())
    np.testing.assert_array_equal(restore(model, kind(), y, operator, 0.1, num_inference_steps=5, generator=rng()),
                                  expected)
    assert expected.dtype == np.float64 and abs(expected).max() <= 1
    x = restore(model, kind(), y.astype(np.float32), operator, np.float64(0.1), num_inference_steps=5)
    assert x.dtype == np.float32


def test_missing_pixels_may_hold_anything():
    model, scheduler, mask = Gaussian(DDPMScheduler()), DDPMScheduler(), np.eye(4) == 1
    x, holes = [restore(model, scheduler, np.where(mask, 0.5, hole)[None, None], Inpaint(mask), sigma, None, 1.0, 4,
                        generator=rng()) for hole, sigma in ((0.0, 0.0), (np.nan, 0.0))]
    np.testing.assert_array_equal(x, holes)


def test_what_fits_nothing_within_range():
    """Means outside [-1, 1] are kept; where a picture in range has those means, it is found."""
    operator, rng = AveragePool(2), np.random.default_rng(6)
    y = np.array([[1.5, 0.9], [-0.9, 0.0]]).reshape(1, 1, 2, 2)
    x = restoration.fitted(rng.standard_normal((1, 1, 4, 4)) * 2, y, operator, 1.0)
    np.testing.assert_allclose(operator.forward(x), y, atol=1e-12)
    blocks = x.reshape(2, 2, 2, 2)
    assert abs(blocks[0, :, 1]).max() <= 1 + 1e-5 and abs(blocks[1]).max() <= 1 + 1e-5


# Errors


class Foreign:
    """An operator that forgets a channel."""

    def pinv(self, y):
        return y

    def forward(self, x):
        return x[:, :1]


Y = np.zeros((2, 1, 4, 4))


@pytest.mark.parametrize("options, error, message", [
    ({"sigma": -0.1}, ValueError, "sigma: expected the noise's standard deviation, finite and >= 0, got -0.1"),
    ({"sigma": np.nan}, ValueError, "sigma: .* got nan"),
    ({"sigma": np.inf}, ValueError, "sigma: .* got inf"),
    ({"measured": np.full((1, 1, 4, 4), np.nan)}, ValueError, "measured: expected finite values, got NaN"),
    ({"measured": np.full((1, 1, 4, 4), np.inf), "operator": Blur(KERNEL[:, :3])}, ValueError, "measured: .* finite"),
    ({"measured": np.zeros((1, 1, 4, 4), np.uint8)}, TypeError, "measured: expected float32 or float64, got uint8"),
    ({"measured": np.zeros((4, 4))}, ValueError, r"\(N, C, H, W\)"),
    ({"measured": [0.0]}, TypeError, "array"),
    ({"measured": np.zeros((1, 1, 4, 5))}, ValueError, r"mask: shape \(4, 4\) does not fit .* \(1, 1, 4, 5\)"),
    ({"operator": Inpaint(np.ones((2, 4, 4)))}, ValueError, r"mask: shape \(2, 4, 4\) does not fit"),
    ({"operator": Gray(), "measured": np.zeros((1, 3, 4, 4))}, ValueError, r"grey pictures \(N, 1, H, W\), got"),
    ({"operator": Blur(np.ones((5, 3)))}, ValueError, "kernel: 5 × 3 is larger than pictures of 4 × 4 pixels"),
    ({"operator": Foreign(), "measured": np.zeros((1, 3, 4, 4))}, ValueError, r"measured: expected shape \(1, 1, "),
    ({"weight": -1.0}, ValueError, "weight: expected a finite number >= 0, got -1.0"),
    ({"weight": np.nan}, ValueError, "weight: .* got nan"),
    ({"num_samples": 0}, ValueError, "num_samples: expected at least 1, or None, got 0"),
    ({"num_samples": 1.5}, TypeError, "integer"),
    ({"num_inference_steps": 0}, ValueError, "num_inference_steps: expected 1 to 1024, got 0"),
    ({"labels": 3}, ValueError, "labels: expected 0 to 2, got 3"),
    ({"labels": [0, 1, 2]}, ValueError, "labels: expected an integer or 2 integers"),
    ({"guidance_scale": -1}, ValueError, "guidance_scale: expected a finite number >= 0"),
])
def test_bad_input(options, error, message):
    arguments = {"measured": Y, "operator": Inpaint(np.eye(4)), **options}
    with pytest.raises(error, match=message):
        restore(Gaussian(DDPMScheduler()), DDPMScheduler(), **arguments)


def test_pictures_that_the_network_does_not_take():
    with pytest.raises(ValueError, match="UNet"):
        restore(UNet(channels=(8, 8)), DDPMScheduler(), np.zeros((1, 1, 4, 4), np.float32), Gray())


@pytest.mark.parametrize("make, message", [
    (lambda: Inpaint(np.zeros((4, 4))), "mask: all pixels are missing; it is True where"),
    (lambda: Inpaint(np.full((4, 4), 255)), "mask: expected .* of 0 .missing. and 1, got int64"),
    (lambda: Inpaint([1, 0]), r"mask: .* shape \(2,\)"),
    (lambda: AveragePool(0), "k: expected an int >= 1, got 0"),
    (lambda: AveragePool(3).forward(Y), "pictures of 4 × 4 pixels have no blocks of 3 × 3"),
    (lambda: Blur(np.zeros((3, 3))), "kernel: .* not all 0"),
    (lambda: Blur([[np.nan]]), "kernel: .* finite"),
    (lambda: Blur(np.ones(3)), r"kernel: .* shape \(3,\)"),
    (lambda: Blur(np.ones((3, 3)), rcond=0), "rcond: expected a number above 0"),
    (lambda: Gray([0, 0]), "weights: .* not all 0"),
    (lambda: Gray([np.inf]), "weights: .* finite"),
    (lambda: Gray().forward(Y), "3 channels, one for each weight"),
])
def test_bad_operators(make, message):
    with pytest.raises(ValueError, match=message):
        make()
