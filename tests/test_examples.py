"""The examples as a user runs them, small."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion.checkpoint import load_file, save_weights
from npdiffusion.data import SyntheticDigits, SyntheticMicrographs
from npdiffusion.models import UNet, load_model
from npdiffusion.training import Training

ROOT = Path(__file__).parent.parent
OWN, THEIRS = ROOT / "npdiffusion" / "weights", ROOT / "examples" / "weights"
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_refuses_to_overwrite_or_to_mix_settings(whole):
    out, _ = whole
    again = run("train_diffusion.py", *TINY, "--out", out, check=False)
    assert again.returncode and "--resume" in again.stderr
    other = run("train_diffusion.py", *TINY[:-1], "12", "--out", out, "--resume", check=False)
    assert other.returncode and "other settings" in other.stderr
    nothing = run("train_diffusion.py", *TINY, "--out", out / "nowhere", "--resume", check=False)
    assert nothing.returncode and "no checkpoint at" in nothing.stderr and "Traceback" not in nothing.stderr


TRAININGS = ["train_diffusion", "train_classifier", "train_vae", "train_noise_level", "denoise_micrographs",
             "segment_mitochondria"]
EXAMPLES = ["quickstart", "guided_denoising", "restore_micrographs", *TRAININGS]
WRONG = [  # of each of these examples: options that do not do, and what is said
    *((EXAMPLES, options, said) for options, said in [
        ("--out FILE", "--out: nothing can be written to .*file "), ("--out FILE/sub", "--out: nothing can be written"),
        ("--out /dev/null/x", "--out: nothing can be written"),
        ("--seed -1", "--seed: must be at least 0, got -1"), ("--seed 1.5", "--seed: invalid int value: '1.5'"),
        ("--device gpu", "--device"), ("--nonsense", "--nonsense")]),
    *((EXAMPLES[1:], options, said) for options, said in [
        ("--threads 0", "--threads: must be at least 1"), ("--steps 0", "--steps: must be "),
        ("--preset huge", "--preset"), ("--data nothing", "--data")]),
    *((TRAININGS, options, said) for options, said in [
        ("--steps -3", "--steps: must be at least 1"), ("--batch-size 0", "--batch-size: must be at least 1"),
        ("--batch-size 9999999", "batch of 1 to "), ("--steps 2e3", "--steps: invalid int value"),
        ("--channels 0", "--channels: must be at least 1"), ("--channels 8 -8", "--channels: must be at least 1"),
        ("--channels", "--channels: expected at least one"),
        ("--save-minutes -1", "--save-minutes: must be a number of at least 0"), ("--save-minutes nan", "got nan"),
        *((f"--lr {x}", f"--lr: must be a number above 0, got {x}") for x in ("nan", "0", "-1", "inf", "1e999"))]),
    (["train_diffusion", "train_classifier", "train_vae", "denoise_micrographs", "segment_mitochondria"],
     "--channels 12 32", "channels must be positive multiples of 8"),
    (["train_diffusion"], "--channels 8 16", "attention .* divide by 32"),
    *((["train_diffusion"], options, said) for options, said in [
        ("--blocks 0", "--blocks: must be at least 1"), ("--ema 2", "--ema: must be a number from 0 to below 1, got 2"),
        ("--ema 1", "--ema"), ("--ema nan", "--ema"), ("--ema -0.1", "--ema")]),
    *((["train_classifier", "train_vae", "train_noise_level"], f"--test {n}", "--test: must be ") for n in (0, -5)),
    *((["train_vae"], options, said) for options, said in [
        ("--beta nan", "--beta: must be a number of at least 0"), ("--beta -1", "--beta"), ("--latent 0", "--latent"),
        ("--test 7", "--test: must be at least 8"), ("--noisy 7", "--noisy: must be at least 8"),
        ("--channels 8 8 8 8 8 8", "expects a size that divides by 64")]),
    *((["train_noise_level"], options, said) for options, said in [
        ("--test 7", "at least 8"), ("--pictures 0", "--pictures"), ("--grid 1", "--grid: must be at least 2")]),
    *((["denoise_micrographs"], options, said) for options, said in [
        ("--sigmas 0", "--sigmas: must be 1 to"), ("--sigmas 50 99999999", "--sigmas: must be 1 to"),
        ("--draw 0", "--draw: must be"), ("--draw-steps 0", "--draw-steps: must be 1 to 1024"),
        ("--draw-steps 1025", "--draw-steps"), ("--segmenter nowhere", "nowhere"),
        ("--segmenter CLASSIFIER", "for another task: expected UNet.*got Classifier")]),
    *((["segment_mitochondria"], options, said) for options, said in [
        ("--patch 0", "--patch"), ("--patch 12", "multiple of"), ("--tta maybe", "maybe"), ("--masks x", "go together"),
        ("--images nowhere --masks nowhere", "nowhere is no directory"), ("--predict nowhere", "nowhere"),
        ("--model x", "--model goes with --predict")]),
    *((["guided_denoising"], f"--{name} 0", f"--{name}: must be ") for name in [
        "digits", "ancestral", "generated", "sweep", "known", "steps", "ancestral-steps", "guidance"]),
    *((["guided_denoising"], options, said) for options, said in [
        ("--guidance nan", "--guidance"), ("--guidance inf", "--guidance"), ("--digit 10", "--digit: invalid choice"),
        ("--steps 1025", "--steps"), ("--sweep 301", "there are 300"),
        ("--classifier DIFFUSION", "for another task: expected Classifier.*got UNet")]),
    *((["quickstart"], options, said) for options, said in [
        ("--level -1", "--level: must be 0 to 1023"), ("--image nowhere", "no picture at nowhere"),
        ("--model nowhere", "no checkpoint at nowhere")]),
    *((["restore_micrographs"], options, said) for options, said in [
        ("--samples 1", "--samples: must be at least 2"), ("--weight nan", "--weight: must be a number of at least 0"),
        ("--steps 1025", "--steps: must be 1 to 1024"), ("--segmenter nowhere", "nowhere"),
        ("--model DIFFUSION", "for another task"), ("--resume", "no checkpoint at")]),
    (["quickstart", "guided_denoising", "restore_micrographs"], "--model CLASSIFIER",
     "for another task: expected UNet.*got Classifier"),
    (["quickstart", "guided_denoising"], "--model SSTEM", "for another task"),
    (["quickstart"], "--model SEGMENTER", "for another task: expected UNet.*time=True"),
    (["train_diffusion", "train_noise_level"], "--size 48", "--size: invalid choice: 48"),
    (["train_diffusion", "train_noise_level"], "--size 64", "give --images, too"),
    (["quickstart", "train_diffusion", "train_noise_level"], "--images nowhere", "nowhere is no folder"),
    (["train_noise_level"], "--model CLASSIFIER", "for another task: expected UNet.*got Classifier"),
]


@pytest.mark.parametrize("script, options, said", [(script, *case) for scripts, *case in WRONG for script in scripts])
def test_wrong_options_end_in_one_line_before_any_work(monkeypatch, capsys, tmp_path, script, options, said):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which command_line replaces
    module = importlib.import_module(script)
    for name, stand_in in {"load_digits": lambda data, split: SyntheticDigits(300), "generate": None, "denoise": None,
                           "load_micrographs": lambda data: 2 * [SyntheticMicrographs(1, (320, 320))]}.items():
        for place in (module, importlib.import_module("command_line")):
            monkeypatch.setattr(place, name, stand_in, raising=False)
    monkeypatch.setattr(Training, "fit", None)
    (tmp_path / "file").write_text("in the way")
    places = {"FILE": str(tmp_path / "file"), "CLASSIFIER": str(OWN / "mnist-classifier.safetensors"),
              "DIFFUSION": str(OWN / "mnist-ddpm.safetensors"), "SSTEM": str(THEIRS / "sstem-ddpm.safetensors"),
              "SEGMENTER": str(THEIRS / "sstem-mitochondria.safetensors")}
    for name, place in places.items():
        options = options.replace(name, place)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--out", str(tmp_path / "out"), *options.split()])
    with pytest.raises((SystemExit, OSError, ValueError)) as error:
        module.main()
    if error.type is SystemExit:  # argparse's
        assert error.value.code == 2
    else:
        command_line = importlib.import_module("command_line")
        command_line.told_plainly(error.type, error.value, None)
    errors = capsys.readouterr().err
    last = errors.splitlines()[-1]
    assert last.startswith(f"{script}.py: ") and re.search(said, last) and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_ctrl_c_says_that_it_stopped(tmp_path):
    """While it works, outside of a training's loop; and wherever else it comes, as for all examples."""
    process = subprocess.Popen(command("quickstart.py", "--out", tmp_path), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"})
    assert process.stdout.readline().startswith("Drawing")
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and message.endswith("quickstart.py: stopped\n") and "Traceback" not in message
    for script in EXAMPLES:
        assert re.search("^from command_line import ", (ROOT / "examples" / f"{script}.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("error, status, told", [
    ("ValueError('no good')", 1, "-c: no good\n"), ("FileNotFoundError('nowhere')", 1, "-c: nowhere\n"),
    ("MemoryError('too large')", 1, "-c: too large\n"), ("KeyboardInterrupt", 130, "-c: stopped\n"),
    ("TypeError('a bug')", 1, "Traceback .*TypeError: a bug\n"), ("SystemExit('refused')", 1, "refused\n")])
def test_what_ends_an_example_is_told_plainly(error, status, told):
    result = subprocess.run([sys.executable, "-c", f"import command_line; raise {error}"], capture_output=True,
                            text=True, cwd=ROOT / "examples", env=ENVIRONMENT)
    assert result.returncode == status and re.fullmatch(told, result.stderr, re.DOTALL)


def test_out_is_tried_and_left_as_it_was(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    check_writable = importlib.import_module("command_line").check_writable
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").touch()
    check_writable(tmp_path / "a")
    check_writable(tmp_path / "a" / "b" / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


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


@pytest.mark.slow
def test_classifier(tmp_path):
    run("train_classifier.py", "--preset", "smoke", "--data", "synthetic", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test_digits"] == 200 and 0 <= metrics["accuracy"] <= 1
    assert min(Image.open(tmp_path / "mistakes.png").size) > 300
    assert np.asarray(Image.open(tmp_path / "mistakes.png")).std() > 10
