"""examples/train_vae.py as a user runs it, small; its parts against independent values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion.models import VAE, load_model

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import train_vae  # noqa: E402


def run(*args):
    command = [sys.executable, str(ROOT / "examples" / "train_vae.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def looked_at(path, least):
    """A grey picture at least that (height, width) and with something on it."""
    image = np.asarray(Image.open(path).convert("L"))
    assert image.shape >= least and image.shape[1] >= least[1] and image.std() > 10 and (image < 255).mean() > 0.05
    return image


@pytest.mark.slow
def test_smoke(tmp_path):
    args = ["--preset", "smoke", "--data", "synthetic", "--latent", "2", "--steps", "5", "--out", tmp_path]
    result = run(*args)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["neg_elbo_nats"] == pytest.approx(metrics["nll_nats"] + metrics["kl_nats"])
    assert 0 < metrics["pca_mse_28"] < metrics["mse_28"] < 1  # 5 steps are not enough to beat it
    found = metrics["against_ddpm"]
    assert all(len(found[name][key]) == len(found["t"]) for name in ("noisy", "VAE", "DDPM, one-shot")
               for key in ("psnr", "accuracy"))
    assert found["noisy"]["psnr"] == sorted(found["noisy"]["psnr"], reverse=True)
    looked_at(tmp_path / "rows.png", (400, 1200))
    looked_at(tmp_path / "against_ddpm.png", (600, 1000))
    looked_at(tmp_path / "latent.png", (600, 1200))
    assert load_model(tmp_path / "model.safetensors").config["latent"] == 2


def test_bad_latent(tmp_path):
    result = run("--preset", "smoke", "--latent", "0", "--out", tmp_path)
    assert result.returncode == 2 and "--latent: must be at least 1, got 0" in result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_pca_is_the_best_linear_code():
    rng = np.random.default_rng(0)
    train = 0.05 * (rng.standard_normal((300, 6)) @ rng.standard_normal((6, 16))).reshape(300, 1, 4, 4) + 0.05
    flat = train.reshape(300, 16) - train.reshape(300, 16).mean(0)
    singular = np.linalg.svd(flat, compute_uv=False)
    assert np.abs(train).max() < 1  # nothing is clipped
    for k in (1, 3, 6):
        error = np.square(train_vae.pca(train, train, k) - train).sum()
        assert np.isclose(error, (singular[k:] ** 2).sum(), atol=1e-6)


def test_bound_counts_the_28x28_pixels_only():
    model = VAE(latent=3, channels=(8,), hidden=8)
    for p in model.parameters():
        p.data[...] = 0
    images = np.full((5, 1, 32, 32), -1, np.float32)
    nll, kl = train_vae.bound(model, images).T  # logits 0: every pixel costs ln 2, whatever it is
    assert np.allclose(nll, 784 * np.log(2)) and np.allclose(kl, 0)


def test_travel_figure(tmp_path):
    model = VAE(latent=5, channels=(8,), hidden=8)
    codes = np.random.default_rng(0).standard_normal((8, 5), dtype=np.float32)
    train_vae.save_figure(train_vae.travel_figure(model, codes), tmp_path / "latent.png")
    looked_at(tmp_path / "latent.png", (600, 1200))
