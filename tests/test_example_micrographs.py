"""Diffusion on micrographs as a user runs it, small, and the parts of the example that numbers depend on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from npdiffusion import nn
from npdiffusion.data import SyntheticMicrographs
from npdiffusion.models import UNet, load_model, save_model

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))
import denoise_micrographs as example  # noqa: E402


def run(*args, check=True, **environment):
    result = subprocess.run([sys.executable, str(ROOT / "examples/denoise_micrographs.py"), *map(str, args)],
                            capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **environment})
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("micrographs")
    save_model(out / "segmenter.safetensors", UNet(16, 16, channels=(8, 16), time=False))
    return out, run("--preset", "smoke", "--data", "synthetic", "--out", out, "--segmenter",
                    out / "segmenter.safetensors")


def test_smoke_leaves_what_it_promises(smoke):
    out, _ = smoke
    metrics = json.loads((out / "metrics.json").read_text())
    assert abs(metrics["psnr"]["noisy"]["50"] - 20 * np.log10(255 / 50)) < 0.1  # that is how σ is defined
    for score in ("psnr", "ssim", "iou"):
        assert set(metrics[score]) >= {"noisy", "diffusion model"} and metrics[score]["diffusion model"]["50"] >= 0
    assert metrics["nearest_drawn"] > 0 and metrics["nearest_real"] > 0 and metrics["minutes"] > 0
    for name, smallest in {"denoised": (200, 200), "methods": (250, 400), "curves": (450, 1000), "loss": (300, 600),
                           "section": (1000, 1500), "drawn": (350, 400), "drawn-large": (500, 1000)}.items():
        picture = np.asarray(Image.open(out / f"{name}.png").convert("L"))
        assert picture.shape >= smallest and picture.shape[1] >= smallest[1] and picture.std() > 10, name
    assert load_model(out / "model.safetensors").config["channels"] == (8, 16)


def test_evaluate_takes_the_network_of_the_package(monkeypatch, tmp_path):
    """No training, and no checkpoint; what is evaluated is sstem-ddpm."""
    monkeypatch.setattr(sys, "argv", ["denoise_micrographs.py", "--evaluate", "--data", "synthetic",
                                      "--out", str(tmp_path)])
    network = SimpleNamespace(to=lambda device: f"the network on {device}")
    monkeypatch.setattr(example, "pretrained", lambda name: {"sstem-ddpm": network}[name])
    monkeypatch.setattr(example, "evaluate", lambda model, network, train, test, labelled, args: {
        "model": model, "shapes": [train.shape, test.shape, labelled.shape]})
    example.main()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "model": "the network on cpu", "shapes": [[8, 1, 256, 256], [2, 1, 256, 256], [2, 512, 512]]}


def test_no_data_says_what_to_do(tmp_path):
    result = run("--preset", "smoke", "--out", tmp_path / "out", check=False, NPDIFFUSION_DATA=str(tmp_path),
                 XDG_CACHE_HOME=str(tmp_path), https_proxy="http://127.0.0.1:9")
    assert result.returncode and "--data synthetic" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_pooling_takes_means_of_squares():
    images = np.array([[[0, 2, 9, 9, 7], [4, 6, 9, 9, 7], [255, 255, 0, 255, 7], [255, 255, 255, 0, 7]]], np.uint8)
    np.testing.assert_allclose(example.pooled(images), np.array([[[[3, 9], [255, 127.5]]]]) / 127.5 - 1, atol=1e-6)


def test_eight_ways_to_lay_a_patch():
    patch = np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32)
    ways = example.turned([patch] * 8, range(8))
    assert len({way.tobytes() for way in ways}) == 8
    np.testing.assert_array_equal(ways[1], patch[:, :, ::-1].transpose(0, 2, 1))
    np.testing.assert_array_equal(np.sort(ways.reshape(8, -1)), np.sort(np.stack([patch.ravel()] * 8)))


def test_noise_is_told_to_the_network_as_it_is():
    """A network that answers with v for a picture of zeros: what comes back is the noisy picture's own mean estimate.

    For x_0 = 0, x_t = √(1 − ᾱ)·ε and v = √ᾱ·ε = √(ᾱ/(1 − ᾱ))·x_t, which is right only if level and scale fit.
    """
    class Oracle(nn.Module):
        num_classes = None

        def __call__(self, x, t, labels=None):
            alpha_bar = example.SCHEDULER.alphas_cumprod[np.asarray(t)[0]]
            seen.append(float(x.data.std() / np.sqrt(1 - alpha_bar)))
            return example.Tensor(np.float32(np.sqrt(alpha_bar / (1 - alpha_bar))) * x.data)

    for sigma in (5, 30, 100):
        seen = []
        noisy = example.noisy_version(np.zeros((1, 1, 200, 150), np.float32), sigma)
        assert abs(noisy.std() * 127.5 / sigma - 1) < 0.02
        result = example.restored(Oracle(), noisy, sigma)
        assert result.shape == noisy.shape and np.abs(result).max() < 1e-4
        assert abs(np.mean(seen) - 1) < 0.03  # the network sees unit variance, as in its training


def test_nearest_finds_a_planted_patch_in_any_orientation():
    sections = example.pooled(SyntheticMicrographs(2, (320, 352)).images)
    planted = np.stack([sections[1, :, 8:72, 40:104], sections[0, :, 96:160, 112:176]] * 4)
    laid = example.turned(planted, range(8))
    noise = np.random.default_rng(0).normal(0, 0.02, laid.shape).astype(np.float32)
    found, distance = example.nearest(laid + noise, sections)
    np.testing.assert_allclose(found, laid, atol=1e-6)
    np.testing.assert_allclose(distance, 0.02, rtol=0.1)


def test_the_best_parameter_is_chosen():
    pictures = np.zeros((2, 1, 64, 64), np.float32)
    assert example.tuned(lambda x, noise, share: share * x, [0.3, 0.0, 0.7], pictures, 20) == 0.0
    assert example.tuned(lambda x, noise, shift: 0 * x + shift * noise, [0.3, 0.1, 0.7], pictures, 20) == 0.1
