"""examples/guided_denoising.py as a user runs it, small; and the numbers it reports against known ones."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from npdiffusion import Tensor, nn
from npdiffusion.diffusion import DDPMScheduler
from npdiffusion.models import Classifier, UNet, save_model
from test_examples import ROOT, run

sys.path.insert(0, str(ROOT / "examples"))
import guided_denoising as guided  # noqa: E402

FIGURES = {"identity.png": (1200, 510), "confusion.png": (1230, 645), "guidance.png": (1500, 495),
           "eights.png": (1200, 380), "forced.png": (1200, 550), "samples.png": (1900, 550)}  # at least that large


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke preset with tiny untrained networks: its options, directory and result."""
    out = tmp_path_factory.mktemp("guided")
    save_model(out / "unet.safetensors", UNet(channels=(8, 16, 32), attention=(2,), num_classes=10))
    save_model(out / "classifier.safetensors", Classifier(channels=(8, 16)))
    options = ["--preset", "smoke", "--data", "synthetic", "--model", out / "unet.safetensors",
               "--classifier", out / "classifier.safetensors", "--out", out]
    return options, out, run("guided_denoising.py", *options)


def test_smoke_preset_measures_and_draws(smoke):
    _, out, result = smoke
    settings = json.loads((out / "measurements.json").read_text())["settings"]
    assert settings["data"] == "synthetic" and not {"preset", "model", "classifier", "out"} & set(settings)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["identity"]) == {"none", "true"} and 0 <= metrics["label_agreement"] <= 1
    levels = ["100", "200", "300", "400", "500", "600"]
    for sampler, digits in (("one-shot", 20), ("dpm", 20), ("ancestral", 10)):
        for kind in ("none", "true"):
            rates = metrics["identity_by_sampler"][sampler][kind]
            assert list(rates) == levels
            for r in rates.values():
                assert r["n"] == digits and r["interval"][0] - 1e-12 <= r["rate"] <= r["interval"][1] + 1e-12
    for name, (width, height) in FIGURES.items():
        picture = Image.open(out / name)
        assert picture.width >= width and picture.height >= height, (name, picture.size)
        assert np.asarray(picture.convert("L")).std() > 10, name


def test_measurements_are_not_lost_nor_made_twice(tmp_path):
    path, asked = tmp_path / "measurements.json", []

    def measure(value):
        asked.append(value)
        return value

    first = guided.Measurements(path, {"digits": 10}, resume=False)
    first.add("a", measure, 1)
    second = guided.Measurements(path, {"digits": 10}, resume=True)
    second.add("a", measure, 2)
    second.add("b", measure, [3])
    assert second == {"a": 1, "b": [3]} == guided.Measurements(path, {"digits": 10}, resume=True)
    assert asked == [1, [3]]


@pytest.mark.slow
def test_finished_measurements_are_neither_overwritten_nor_mixed(smoke):
    options, out, _ = smoke
    before = (out / "measurements.json").read_text()
    again = run("guided_denoising.py", *options, check=False)
    assert again.returncode and "--resume" in again.stderr
    other = run("guided_denoising.py", *options, "--resume", "--guidance", "2", check=False)
    assert other.returncode and "other settings" in other.stderr
    save_model(out / "unet.safetensors", UNet(channels=(8, 16, 32), attention=(2,), num_classes=10))
    retrained = run("guided_denoising.py", *options, "--resume", check=False)
    assert retrained.returncode and "other settings" in retrained.stderr
    assert (out / "measurements.json").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("options, message", [
    (["--sweep", "60001", "--data", "synthetic"], "there are 60000 training digits"),
    (["--resume"], "no measurements at"), (["--model", "nowhere.safetensors"], "nowhere.safetensors")])
def test_bad_options_are_refused_before_anything_is_measured(options, message, tmp_path):
    result = run("guided_denoising.py", *options, "--out", tmp_path / "out", check=False)
    assert result.returncode and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_network_of_the_wrong_kind_is_refused(smoke):
    _, out, _ = smoke
    result = run("guided_denoising.py", "--model", out / "classifier.safetensors", "--out", out / "x", check=False)
    assert "num_classes=10), got Classifier(" in result.stderr and "Traceback" not in result.stderr


def counts(right, wrong):
    return np.diag([right] + [0] * 9) + np.diag([wrong] + [0] * 8, 1)


def test_rate_and_its_interval():
    """Wilson's intervals as Brown, Cai & DasGupta's and R's prop.test(correct=FALSE) give them."""
    for right, n, low, high in ((50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)):
        r = guided.rate(counts(right, n - right))
        assert r["rate"] == right / n and r["n"] == n
        np.testing.assert_allclose(r["interval"], (low, high), atol=1e-4)


def test_confusion_counts_rows_by_class_and_columns_by_reading():
    def judge(x):  # reads each picture as the number that its pixels hold
        return Tensor(np.eye(10, dtype=np.float32)[x.data[:, 0, 0, 0].astype(int)])

    pictures = np.array([3, 3, 8, 1], np.float32).reshape(4, 1, 1, 1) * np.ones((4, 1, 2, 2), np.float32)
    found = np.array(guided.confusion(judge, pictures, np.array([8, 8, 8, 1])))
    assert found[8, 3] == 2 and found[8, 8] == 1 and found[1, 1] == 1 and found.sum() == 4


def test_spread_is_the_deviation_within_classes():
    pictures = np.array([0.0, 2.0, 5.0, 5.0]).reshape(4, 1, 1, 1)
    assert guided.spread(pictures, np.array([0, 0, 1, 1])) == 0.5  # classes of deviation 1 and 0


def test_everybody_gets_the_same_noise():
    scheduler, images = DDPMScheduler(), np.zeros((3, 1, 4, 4), np.float32)
    a, b = (guided.noisy_digits(scheduler, images[:n], 300, seed=1) for n in (3, 2))
    assert np.array_equal(a[:2], b) and not np.array_equal(b, guided.noisy_digits(scheduler, images[:2], 301, seed=1))


def test_the_label_reaches_the_model_only_with_a_scale():
    """A model whose ε is the label itself, 0 without one: guidance s gives s·label."""
    class Echo(nn.Module):
        num_classes = 10

        def __call__(self, x, t, labels=None):
            value = 0.0 if labels is None else np.where(labels == 10, 0, labels) / 100
            return Tensor(np.ones_like(x.data) * np.asarray(value, np.float32).reshape(-1, 1, 1, 1))

    scheduler, args = DDPMScheduler(), SimpleNamespace(seed=0, steps=1, ancestral_steps=1)
    noisy, labels = np.zeros((2, 1, 8, 8), np.float32), np.array([3, 7])
    a = scheduler.alphas_cumprod[300]
    for scale in (0, 1.0, 2.0):
        found = guided.cleaned(Echo(), scheduler, noisy, 300, "one-shot", labels, scale, args)
        np.testing.assert_allclose(found[:, 0, 0, 0], -np.sqrt((1 - a) / a) * scale * labels / 100, rtol=1e-5)
    with pytest.raises(ValueError, match="labels: expected 0 to 9"):
        guided.cleaned(Echo(), scheduler, noisy, 300, "one-shot", np.array([3, 10]), 2.0, args)
