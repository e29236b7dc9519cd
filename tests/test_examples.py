"""The examples as a user runs them, small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion.checkpoint import load_file, save_weights
from npdiffusion.models import UNet, load_model

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the package as it lies here, installed or not
TINY = ["--data", "synthetic", "--channels", "8", "16", "32", "--batch-size", "8", "--steps", "9"]


def command(script, *args):
    return [sys.executable, str(ROOT / "examples" / script), *map(str, args)]


def run(script, *args, check=True, **environment):
    result = subprocess.run(command(script, *args), capture_output=True, text=True, env={**ENVIRONMENT, **environment})
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of 9 steps in one go."""
    out = tmp_path_factory.mktemp("whole")
    return out, run("train_diffusion.py", *TINY, "--out", out)


def test_training_leaves_what_it_promises(whole):
    out, _ = whole
    assert json.loads((out / "metrics.json").read_text())["epsilon_mse"] > 0
    assert (out / "log.csv").read_text().splitlines()[0] == "step,seconds,loss,lr"
    assert Image.open(out / "loss.png").size[0] > 300
    samples = np.asarray(Image.open(out / "samples-000009.png"))
    assert samples.shape == (4 * 32, 10 * 32) and samples.std() > 1
    assert load_model(out / "model.safetensors").config["channels"] == (8, 16, 32)


def test_interrupted_training_resumes_bit_for_bit(whole, tmp_path):
    process = subprocess.Popen(command("train_diffusion.py", *TINY, "--out", tmp_path, "--save-minutes", "0"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    checkpoint = tmp_path / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=120)[1]
    stopped = load_file(checkpoint)[1]["step"]
    assert stopped < 9 and "go on with --resume" in message and not list(tmp_path.glob(".*.tmp"))

    run("train_diffusion.py", *TINY, "--out", tmp_path, "--resume")
    (a, meta_a), (b, meta_b) = load_file(whole[0] / "checkpoint.safetensors"), load_file(checkpoint)
    assert set(a) == set(b)
    for name in set(a) - {"log"}:
        assert np.array_equal(a[name], b[name]), name
    assert np.array_equal(a["log"][:, [0, 2, 3]], b["log"][:, [0, 2, 3]])  # all but the seconds
    assert {k: v for k, v in meta_a.items() if k != "seconds"} == {k: v for k, v in meta_b.items() if k != "seconds"}


def test_training_refuses_to_overwrite_or_to_mix_settings(whole):
    out, _ = whole
    again = run("train_diffusion.py", *TINY, "--out", out, check=False)
    assert again.returncode and "--resume" in again.stderr
    other = run("train_diffusion.py", *TINY[:-1], "12", "--out", out, "--resume", check=False)
    assert other.returncode and "other settings" in other.stderr
    nothing = run("train_diffusion.py", *TINY, "--out", out / "nowhere", "--resume", check=False)
    assert nothing.returncode and "no checkpoint at" in nothing.stderr and "Traceback" not in nothing.stderr


def test_quickstart(tmp_path):
    """With a tiny untrained network, no MNIST to be had, and a picture of the user's."""
    model = UNet(channels=(8, 16, 32), attention=(2,), num_classes=10)
    weights, picture = tmp_path / "tiny.safetensors", tmp_path / "mine.png"
    save_weights(weights, model.state_dict(), model.config)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(picture)
    out = tmp_path / "out"
    empty = {"NPDIFFUSION_DATA": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    result = run("quickstart.py", "--model", weights, "--image", picture, "--out", out, **empty)
    assert "that the network itself has drawn" in result.stdout and "70×50 RGB picture" in result.stdout
    assert "PSNR" in result.stdout
    for name in ("generated.png", "denoised.png", "yours.png"):
        image = np.asarray(Image.open(out / name).convert("L"))
        assert min(image.shape) > 150 and image.std() > 10, name


def test_quickstart_says_what_is_wrong_with_a_picture(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    result = run("quickstart.py", "--image", broken, "--out", tmp_path / "out", check=False)
    assert result.returncode and str(broken) in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    result = run("quickstart.py", "--level", "5000", check=False)
    assert result.returncode and "0 to 1023" in result.stderr


def test_classifier(tmp_path):
    run("train_classifier.py", "--preset", "smoke", "--data", "synthetic", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test_digits"] == 200 and 0 <= metrics["accuracy"] <= 1
    assert min(Image.open(tmp_path / "mistakes.png").size) > 300
    assert np.asarray(Image.open(tmp_path / "mistakes.png")).std() > 10
