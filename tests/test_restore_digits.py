"""examples/restore_digits.py as a user runs it, small; and what it compares with, held against other ways to it."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from npdiffusion.diffusion import PCAWiener, posterior_mean
from npdiffusion.diffusion.restoration import AveragePool, Blur, Inpaint
from npdiffusion.models import Classifier, UNet, save_model
from test_examples import ROOT, run

sys.path.insert(0, str(ROOT / "examples"))
import restore_digits as restoring  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (40, 1, 32, 32)).astype(np.float32)
ALL = Inpaint(np.ones((32, 32)))


@pytest.mark.slow
def test_as_a_user_runs_it(tmp_path):
    save_model(tmp_path / "unet.safetensors", UNet(channels=(8, 16), num_classes=10))
    save_model(tmp_path / "classifier.safetensors", Classifier(channels=(8, 16)))
    options = ["--preset", "smoke", "--data", "synthetic", "--known", "300", "--model", tmp_path / "unet.safetensors",
               "--classifier", tmp_path / "classifier.safetensors", "--out", tmp_path]
    run("restore_digits.py", *options, "--tasks", "inpaint", "super_resolution")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == ["inpaint", "super_resolution"]
    for task, found in metrics.items():
        assert 0 <= found["accuracy_one"] <= 1 and 0 <= found["accuracy_mean"] <= 1
        assert np.isfinite([found["psnr_one"], found["psnr_mean"]]).all() and found["misfit"] < 1e-4
        assert ("bicubic" in found["others"]) == (task == "super_resolution")
    assert Image.open(tmp_path / "restored.png").size[0] > 600
    result = run("restore_digits.py", *options, "--tasks", "super_resolution", "--resume")
    assert json.loads((tmp_path / "metrics.json").read_text())["super_resolution"] == metrics["super_resolution"]
    assert "| restore, mean of 3 |" in result.stdout


@pytest.mark.parametrize("operator, sigma", [(ALL, 0.3), (AveragePool(4), 0.3), (Blur(np.ones((3, 3)) / 9), 0.3),
                                             (Inpaint(np.eye(32)), 0), (AveragePool(4), 0)])
def test_total_variation_is_the_least(operator, sigma):
    """Nearby pictures, that fit as well if there is no noise, have no smaller objective."""
    def objective(x):
        x = x.astype(np.float64)
        dy, dx = np.diff(x, axis=2, append=x[:, :, -1:]), np.diff(x, axis=3, append=x[..., -1:])
        return (((y - operator.forward(x))**2).sum() / 2 if sigma else 0) + 0.1 * np.hypot(dy, dx).sum()

    y = restoring.measured(IMAGES[:1], operator, sigma)
    x = restoring.total_variation(y, operator, sigma, 0.1, steps=2000)
    assert sigma or abs(operator.forward(x) - y).max() < 1e-5
    best = objective(x)
    for direction in (*RNG.standard_normal((20, *x.shape)), IMAGES[:1] - x, operator.pinv(y) - x, -x):
        for step in (0.1, 0.01):
            other = x + step * direction
            if not sigma:
                other = other + operator.pinv(y - operator.forward(other))
            assert objective(other) > best - 1e-4 * abs(best)


def test_estimates_from_all_pixels_are_those_of_a_denoiser():
    sigma, known = 0.5, restoring.Known(IMAGES, ALL)
    y = restoring.measured(IMAGES[:5], ALL, sigma)
    alpha_bar = 1 / (1 + sigma**2)
    x_t = np.float32(alpha_bar**0.5) * y
    np.testing.assert_allclose(known.wiener(y, sigma).reshape(y.shape), PCAWiener(IMAGES)(x_t, alpha_bar), atol=1e-3)
    np.testing.assert_allclose(known.posterior_mean(y, sigma).reshape(y.shape),
                               posterior_mean(x_t, alpha_bar, IMAGES), atol=1e-3)


def test_the_best_training_digit():
    operator = AveragePool(4)
    known = restoring.Known(IMAGES, operator)
    np.testing.assert_array_equal(known.best(operator.forward(IMAGES[7:9] + 0.01)), IMAGES[7:9].reshape(2, -1))


def test_what_fits_without_noise_fits_exactly():
    y = restoring.measured(IMAGES[:2], AveragePool(4), 0)
    results = restoring.others(y, AveragePool(4), 0, IMAGES, 10)
    assert set(results) == {"bicubic", "total variation", "Wiener", "best training digit", "posterior mean"}
    for x in results.values():
        np.testing.assert_allclose(AveragePool(4).forward(x), y, atol=1e-5)
