"""The variational bound and the classical denoisers against what is known of them; the benchmark, small."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion import Tensor, nn
from npdiffusion.data import SyntheticDigits
from npdiffusion.diffusion import DDPMScheduler, PCAWiener, posterior_mean, variational_bound
from npdiffusion.diffusion.likelihood import discretised_gaussian_nll, gaussian_kl
from npdiffusion.models import UNet, save_model

ROOT = Path(__file__).parent.parent
GREYS = np.arange(256) / 127.5 - 1


class LinearOracle(nn.Module):
    """The ε-predictor of x̂_0 = m + k_t (x_t − √ᾱ_t m): optimal among linear ones for data of mean m, variance s²."""

    num_classes = None

    def __init__(self, scheduler, mean, variance):
        self.alpha_bar, self.mean, self.variance = scheduler.alphas_cumprod, mean, variance

    def forward(self, x, t, labels=None):
        alpha_bar = self.alpha_bar[t].reshape(-1, 1, 1, 1)
        rest = x.data - np.sqrt(alpha_bar) * self.mean
        shrink = np.sqrt(alpha_bar) * self.variance / (alpha_bar * self.variance + 1 - alpha_bar)
        x0 = self.mean + shrink * rest
        return Tensor(((x.data - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)).astype(x.dtype))


def test_kl_by_hand():
    assert gaussian_kl(1.0, 2.0, 1.0, 2.0) == 0
    assert np.isclose(gaussian_kl(3.0, 1.0, 1.0, 1.0), 2.0)
    # log(σ_b/σ_a) + (σ_a² + (μ_a − μ_b)²) / (2 σ_b²) − ½
    assert np.isclose(gaussian_kl(0.5, 4.0, -1.0, 9.0), math.log(3 / 2) + (4 + 2.25) / 18 - 0.5)


@pytest.mark.parametrize("mean, std", [(0.0, 0.1), (-1.0, 0.007), (0.302, 0.002), (1.4, 0.5), (-3.0, 0.05)])
def test_grey_values_have_mass_one(mean, std):
    masses = np.exp(-discretised_gaussian_nll(GREYS, mean, std))
    assert np.isclose(masses.sum(), 1, atol=1e-12) and (masses >= 0).all()


def test_discretised_gaussian_by_hand():
    def phi(z):
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    h = 1 / 255
    found = discretised_gaussian_nll(np.array([-1.0, GREYS[100], 1.0]), np.array([-0.98, -0.2, 0.9]), 0.05)
    expected = [phi((-1 + h + 0.98) / 0.05),
                phi((GREYS[100] + h + 0.2) / 0.05) - phi((GREYS[100] - h + 0.2) / 0.05),
                1 - phi((1 - h - 0.9) / 0.05)]
    assert np.allclose(found, -np.log(expected))
    # So far out that every mass is 0 in float64 it goes on without a step
    far = discretised_gaussian_nll(GREYS, -1.3, 0.02)[1:-1]
    assert far.max() > 2000 and np.allclose(np.diff(far, 2), (2 * h / 0.02) ** 2, atol=0.01)


def test_bound_of_one_point():
    """Data that are one known picture: no term costs anything but the decoder's width and the prior."""
    rng = np.random.default_rng(0)
    picture = GREYS[rng.integers(0, 256, (1, 1, 4, 4))].astype(np.float32)
    images = np.repeat(picture, 5, 0)
    small = DDPMScheduler(num_train_timesteps=100)
    bound = variational_bound(LinearOracle(small, picture, 0.0), small, images, generator=rng)
    s = small.betas[1] * small.betas[0] / (1 - small.alphas_cumprod[1])  # β̃_1
    alpha_bar = small.alphas_cumprod[-1]
    prior = 0.5 * (alpha_bar * picture.astype(float) ** 2 - alpha_bar - np.log(1 - alpha_bar)).sum()
    assert np.allclose(bound.diffusion, 0, atol=1e-4)
    assert np.allclose(bound.decoder, discretised_gaussian_nll(picture, picture, math.sqrt(s)).sum(), rtol=1e-3)
    assert np.allclose(bound.prior, prior)
    assert np.allclose(bound.total, bound.decoder + bound.prior, atol=1e-3)

    large = DDPMScheduler(num_train_timesteps=100, variance_type="fixed_large")
    bound = variational_bound(LinearOracle(large, picture, 0.0), large, images, groups=8, generator=rng)
    ratio = (1 - large.alphas_cumprod[:-1]) / (1 - large.alphas_cumprod[1:])  # β̃_t / β_t, t = 1 …
    kl = 16 * 0.5 * (ratio - 1 - np.log(ratio))
    assert bound.edges[0] == 1 and bound.edges[-1] == 100 and len(bound.edges) <= 9
    for k, (low, high) in enumerate(zip(bound.edges, bound.edges[1:])):
        value = bound.diffusion[:, k]
        assert (value >= (high - low) * kl[low - 1:high - 1].min() - 1e-3).all()
        assert (value <= (high - low) * kl[low - 1:high - 1].max() + 1e-3).all()


@pytest.mark.parametrize("variance_type, groups", [("fixed_small", 7), ("fixed_small", 60), ("fixed_large", 60)])
def test_bound_of_gaussian_data(variance_type, groups):
    """The optimal predictor's error has variance s² (1 − ᾱ_t) / (ᾱ_t s² + 1 − ᾱ_t): so all terms are known."""
    rng = np.random.default_rng(1)
    scheduler = DDPMScheduler(num_train_timesteps=60, beta_end=0.1, clip_sample=False, variance_type=variance_type)
    n, pixels = 1500, 36
    images = (np.rint(rng.normal(127.5, 25, (n, 1, 6, 6))) / 127.5 - 1).astype(np.float32)
    s2 = float(images.astype(float).var())
    model = LinearOracle(scheduler, float(images.mean()), s2)
    bound = variational_bound(model, scheduler, images, groups=groups, generator=rng)
    alpha_bar = scheduler.alphas_cumprod
    error = (s2 * (1 - alpha_bar) / (alpha_bar * s2 + 1 - alpha_bar))[1:]
    snr = alpha_bar / (1 - alpha_bar)
    # With fixed_small KL = ½ (SNR_{t-1} − SNR_t) E(x_0 − x̂_0)² (Kingma et al. 2021, eq. 15)
    ratio = 1.0 if variance_type == "fixed_small" else (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    terms = pixels * 0.5 * (ratio - 1 - np.log(ratio) + ratio * (snr[:-1] - snr[1:]) * error)
    expected = [terms[low - 1:high - 1].sum() for low, high in zip(bound.edges, bound.edges[1:])]
    standard_error = bound.diffusion.std(0) / math.sqrt(n)
    assert (abs(bound.diffusion.mean(0) - expected) < 4.5 * standard_error + 1e-6).all()
    assert bound.total.mean() > pixels * 0.5 * math.log(2 * math.pi * math.e * 25**2)  # the data's entropy


def test_bound_leaves_the_models_mode_and_wants_8_bit_pictures():
    scheduler = DDPMScheduler(num_train_timesteps=10)
    model = LinearOracle(scheduler, 0.0, 0.1).train()
    images = np.full((3, 1, 2, 2), -1, np.float32)
    counts = []
    a = variational_bound(model, scheduler, images, generator=np.random.default_rng(3), batch_size=2,
                          report=counts.append)
    assert model.training and counts == [2, 1] and a.total.shape == (3,)
    with pytest.raises(ValueError, match="8-bit"):
        variational_bound(model, scheduler, images + 0.003)
    with pytest.raises(ValueError, match="8-bit"):
        variational_bound(model, scheduler, images * 3)


def test_posterior_mean_against_brute_force():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (30, 1, 3, 4)).astype(np.float32)
    noisy = rng.standard_normal((7, 1, 3, 4), dtype=np.float32)
    for alpha_bar in (0.9, 0.3, 1e-4):
        expected = []
        for x in noisy.astype(float):
            log_w = np.array([-((x - alpha_bar**0.5 * y) ** 2).sum() / (2 * (1 - alpha_bar)) for y in images])
            w = np.exp(log_w - log_w.max())
            expected.append(sum(a * y for a, y in zip(w / w.sum(), images)))
        found = posterior_mean(noisy, alpha_bar, images, block=3)
        assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-5)


def test_wiener_against_the_normal_equations():
    """x̂_0 = m + Cov(x_0, x_t) Cov(x_t)⁻¹ (x_t − E x_t)"""
    rng = np.random.default_rng(0)
    images = (rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + 1).reshape(200, 1, 3, 4)
    noisy = rng.standard_normal((5, 1, 3, 4))
    flat = images.reshape(200, 12)
    m, c = flat.mean(0), np.cov(flat, rowvar=False, bias=True)
    wiener = PCAWiener(images)
    for alpha_bar in (0.99, 0.5, 0.01):
        rest = noisy.reshape(5, 12) - alpha_bar**0.5 * m
        gain = alpha_bar**0.5 * c @ np.linalg.inv(alpha_bar * c + (1 - alpha_bar) * np.eye(12))
        assert np.allclose(wiener(noisy, alpha_bar).reshape(5, 12), m + rest @ gain.T)
    assert wiener(noisy.astype(np.float32), 0.5).dtype == np.float32


@pytest.fixture
def quality(tmp_path, monkeypatch):
    """benchmarks/quality.py with few digits, low levels and a tiny untrained network."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality

    digits = {"train": SyntheticDigits(300, seed=0), "test": SyntheticDigits(30, seed=1)}
    monkeypatch.setattr(quality, "load_digits", lambda name, split: digits[split])
    monkeypatch.setattr(quality, "LEVELS", (4, 9))
    monkeypatch.setattr(quality, "BATCH", 5)
    monkeypatch.setattr(quality, "TUNING_DIGITS", 2)
    save_model(tmp_path / "tiny.safetensors", UNet(channels=(8, 16), num_classes=10))
    sizes = {"--digits": 5, "--ancestral-digits": 2, "--samples": 12, "--steps": 2, "--real": 20}
    arguments = ["--data", "synthetic", "--model", tmp_path / "tiny.safetensors", "--json", tmp_path / "out/q.json"]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, arguments), *(str(x) for p in sizes.items() for x in p)])
    return quality


def results_of(quality, *options):
    """What the JSON file holds after a run with these options more."""
    length = len(sys.argv)
    sys.argv += options
    quality.main()
    del sys.argv[length:]
    return json.loads(quality.arguments().json.read_text())


def test_benchmark(quality, tmp_path, capsys):
    first = results_of(quality, "--parts", "one-shot")
    assert set(first["one_shot_psnr"]) == {"4", "9"} and first["classifier_fid"] is None

    results = results_of(quality, "--parts", *[part for part in quality.PARTS if part not in ("tv", "nlm")])
    assert "one-shot: done already" in capsys.readouterr().out
    assert results["one-shot"] == first["one-shot"]
    assert results["one_shot_accuracy"] == results["one-shot"]["accuracy"]
    assert results["classifier_fid"] == results["samples"]["classifier_fid"] > results["classifier_fid_floor"] > 0
    assert results["bits_per_dim"] == results["bound"]["bits_per_dim"] > 0
    assert np.isclose(results["bound"]["nats_per_digit"], results["bits_per_dim"] * 1024 * math.log(2))
    for method in ("noisy", "dpm", "ddim", "ancestral", "posterior", "wiener"):
        for score in ("psnr", "ssim", "accuracy"):
            assert all(math.isfinite(value) for value in results[method][score].values())
    for name in ("denoising", "nearest", "bound"):
        image = np.asarray(Image.open(tmp_path / f"out/{name}.png").convert("L"))
        assert image.shape[1] > 600 and image.shape[0] > 100 and image.std() > 10, name

    results_of(quality, "--readme")
    table = capsys.readouterr().out
    assert f"| one-shot (5 digits) | {results['one_shot_psnr']['4']:.1f} /" in table
    assert f"| classifier-FID, 12 samples | {results['classifier_fid']:.3f} |" in table


def test_drawing_goes_on_with_the_samples_it_has(quality, tmp_path):
    path = tmp_path / "out/samples.safetensors"
    whole, labels = quality.Benchmark(quality.arguments()).draw()
    kept, settings = quality.load_file(path)
    assert whole.shape == (12, 1, 32, 32) and np.array_equal(kept["samples"], np.rint((whole + 1) * 127.5))
    quality.save_file(path, {"samples": kept["samples"][:10]}, settings)
    again = quality.Benchmark(quality.arguments()).draw()
    assert np.array_equal(again[0], whole) and np.array_equal(again[1], labels)

    quality.save_file(path, {"samples": kept["samples"][:10] * 0}, settings | {"steps": 3})  # of another benchmark
    assert np.array_equal(quality.Benchmark(quality.arguments()).draw()[0], whole)


def test_tuned_filters_denoise(quality, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(quality, "LEVELS", (100,))
    results = results_of(quality, "--parts", "noisy", "tv", "nlm")
    for method in ("tv", "nlm"):
        assert results[method]["psnr"]["100"] > results["noisy"]["psnr"]["100"] + 3
