"""The examples on a folder of the user's own pictures: trained on it, gone on, and used by the file."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion.data import PictureFolder
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, Inpaint, denoise, generate, restore
from npdiffusion.figures import picture_rows
from npdiffusion.models import NoiseLevelNet, UNet, load_model, save_model
from npdiffusion.training import Training

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--channels", "8", "8", "32", "--batch-size", "8", "--steps", "3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """60 colour pictures of several sizes in two subfolders, reddish and bluish; 30 grey ones without; an empty one."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name in ("colour/red", "colour/blue", "grey", "empty"):
        (root / name).mkdir(parents=True)
    for i in range(60):
        pixels = rng.integers(0, 100, (40 + i % 3, 36, 3), dtype=np.uint8)
        pixels[..., 2 * (i % 2)] += 155
        Image.fromarray(pixels).save(root / "colour" / ("red", "blue")[i % 2] / f"{i}.png")
        if i < 30:
            Image.fromarray(pixels[..., 1]).save(root / "grey" / f"{i}.png")
    return root


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example in this process, cheaply; returns what it printed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which command_line replaces
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.import_module("quickstart"), "LEVELS", (100, 500))

    def run(script, *args):
        module = importlib.import_module(script)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return run


def colours(path):
    """Whether the picture in a file is not grey."""
    pixels = np.asarray(Image.open(path).convert("RGB"), int)
    return bool((pixels.max(2) - pixels.min(2)).max() > 20)


def test_colour_with_classes(run, folders, tmp_path):
    """Trained, gone on, and drawn with; the two classes are two columns."""
    out, images = tmp_path / "run", folders / "colour"
    said = run("train_diffusion", "--images", images, "--mirror", *TINY, "--out", out)
    assert "60 RGB pictures" in said and "2 classes" in said and "54 pictures" in said
    model = load_model(out / "model.safetensors")
    assert [model.config[key] for key in ("in_channels", "out_channels", "num_classes", "sample_size")] == [3, 3, 2, 32]
    assert Image.open(out / "samples-000003.png").size == (2 * 32, 4 * 32)
    assert colours(out / "denoised.png") and colours(out / "nearest.png")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["epsilon_mse"] > 0 and metrics["nearest_distance"]["test_pictures"] > 0
    for folder, options in ((images, ["--mirror", "--grey"]), (images, []), (images / "red", ["--mirror"])):
        with pytest.raises(SystemExit, match="other settings"):
            run("train_diffusion", "--images", folder, *options, *TINY, "--out", out, "--resume")

    said = run("quickstart", "--model", out / "model.safetensors", "--images", images, "--image",
               images / "red" / "0.png", "--out", out)
    assert f"6 test pictures ({images})" in said and "noise estimated at σ = 0." in said
    assert all(colours(out / name) for name in ("generated.png", "denoised.png", "yours.png"))


def test_half_of_a_batch_is_mirrored(run, folders, monkeypatch, tmp_path):
    def fit(self, loss, out, *, batch, **_):
        known = PictureFolder(folders / "colour", 32)
        (shown, t, labels), (x0, true) = batch(np.arange(40)), known[:40]
        mirrored = [np.array_equal(a, b[..., ::-1]) for a, b in zip(shown, x0)]
        assert 8 < sum(mirrored) < 32 and all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, shown, x0))
        dropped = labels == 2
        assert 0 < dropped.sum() < 15 and np.array_equal(labels[~dropped], true[~dropped]) and len(set(t)) > 20
        raise SystemExit("seen")

    monkeypatch.setattr(Training, "fit", fit)
    with pytest.raises(SystemExit, match="seen"):
        run("train_diffusion", "--images", folders / "colour", "--mirror", *TINY, "--out", tmp_path)


@pytest.mark.slow
def test_grey_without_classes_gone_on_with(run, folders, tmp_path):
    out, images = tmp_path / "run", folders / "grey"
    training = ["--images", images, "--size", 64, "--channels", 8, 8, 8, 32, "--steps", 2, "--out", out]
    run("train_diffusion", *training)
    model = load_model(out / "model.safetensors")
    assert [model.config[key] for key in ("in_channels", "num_classes", "sample_size")] == [1, None, 64]
    assert Image.open(out / "samples-000002.png").size == (10 * 64, 4 * 64)
    assert not colours(out / "denoised.png")
    before = (out / "metrics.json").read_bytes()
    run("train_diffusion", *training, "--resume")
    assert (out / "metrics.json").read_bytes() == before
    assert "that the network itself has drawn" in run("quickstart", "--model", out / "model.safetensors", "--out", out)


@pytest.mark.slow
def test_noise_level(run, folders, tmp_path):
    """Of colour pictures, with and without a denoiser."""
    out, images, weights = tmp_path / "levels", folders / "colour", tmp_path / "rgb.safetensors"
    save_model(weights, UNet(3, 3, channels=(8, 8), num_classes=2, sample_size=32))
    run("train_noise_level", "--images", images, "--preset", "smoke", "--model", weights, "--out", out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["baselines"]) == {"oracle"} and metrics["baselines"]["oracle"]["known_pixels"] == 3 * 32 * 32
    assert set(metrics["psnr_loss_db"]) == {"100", "200", "300", "400", "500", "600"}
    assert load_model(out / "model.safetensors").config["in_channels"] == 3
    run("train_noise_level", "--images", folders / "grey", "--preset", "smoke", "--out", tmp_path / "grey")
    assert "psnr_db" not in json.loads((tmp_path / "grey" / "metrics.json").read_text())


@pytest.mark.parametrize("script, images, more, said", [
    ("train_diffusion", "empty", [], "holds [01] pictures"), ("quickstart", "empty", [], "holds [01] pictures"),
    ("train_diffusion", "one", [], "holds [01] pictures"),
    ("train_diffusion", "colour", "--preset smoke --channels 8 8 8 8 8 8 32".split(), "divide by 64, got 32×32"),
    ("train_noise_level", "grey", ["--model", "RGB"], r"another task: expected UNet\(in_channels=1.*in_channels=3"),
    ("quickstart", "grey", ["--model", "RGB"], "grey pictures alone, the network takes 3 channels"),
    ("quickstart", "colour", ["--model", "RGB"], "divide by 2, got 33×33"),
    ("quickstart", "colour", ["--model", "UNKNOWN"], "another task: its config has no sample_size"),
    ("quickstart", "colour", ["--model", "GREYLEVELS"], "another task: expected UNet")])
def test_what_cannot_be(run, folders, tmp_path, script, images, more, said):
    places = {name: tmp_path / f"{name}.safetensors" for name in ("RGB", "UNKNOWN", "GREYLEVELS")}
    save_model(places["RGB"], UNet(3, 3, channels=(8, 8), sample_size=33))
    save_model(places["UNKNOWN"], UNet(3, 3, channels=(8, 8)))
    save_model(places["GREYLEVELS"], NoiseLevelNet(channels=(8,)))
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "one" / "a.png")
    images = tmp_path / "one" if images == "one" else folders / images
    with pytest.raises(ValueError, match=said):
        run(script, "--images", images, *(places.get(option, option) for option in more), "--out", tmp_path / "out")


def test_nearest_and_mirror(run, folders, monkeypatch, tmp_path):
    """Against a plain loop over all pictures, and those exchanged left and right."""
    run  # for the path of the examples
    example = importlib.import_module("train_diffusion")
    pictures = PictureFolder(folders / "colour", 8, cache=tmp_path, progress=False)
    known = pictures[:][0]
    samples = np.concatenate([known[[5, 40]][..., ::-1] + 0.01, np.random.default_rng(1).uniform(-1, 1, (3, 3, 8, 8))])
    samples = samples.astype(np.float32)
    for mirror in (False, True):
        all_known = np.concatenate([known, known[..., ::-1]]) if mirror else known
        distances = np.array([[np.sqrt(((a - b)**2).sum()) for b in all_known] for a in samples])
        found, least = example.nearest(samples, pictures, mirror)
        np.testing.assert_array_equal(found, all_known[distances.argmin(1)])
        np.testing.assert_allclose(least, distances.min(1), rtol=1e-4)
    monkeypatch.setattr(example, "SEARCHED", 7)
    assert (example.nearest(samples, pictures, False)[1] >= distances.min(1) - 1e-4).all()


def test_a_colour_model_from_its_file(tmp_path):
    """generate, denoise and restore go by what the file says."""
    path = tmp_path / "m.safetensors"
    save_model(path, UNet(3, 3, channels=(8, 16), num_classes=2, sample_size=16))
    model, scheduler = load_model(path), DDPMScheduler()
    size = model.config["sample_size"]
    x = generate(model, DDIMScheduler(), (2, 3, size, size), labels=[0, 1], guidance_scale=2.0, num_inference_steps=2)
    assert denoise(model, scheduler, x, 300).shape == x.shape == (2, 3, 16, 16)
    keep = np.ones((16, 16), bool)
    keep[4:8, 4:8] = False
    assert restore(model, scheduler, Inpaint(keep).forward(x), Inpaint(keep), num_inference_steps=2).shape == x.shape


def test_sample_size():
    """Files without it load, and it is checked like other sizes."""
    old = {key: value for key, value in UNet(channels=(8,)).config.items() if key != "sample_size"}
    assert UNet(**old).config["sample_size"] is None
    with pytest.raises(ValueError, match="sample_size must be at least 1, got 0"):
        UNet(channels=(8,), sample_size=0)


def test_rows_of_colour_pictures():
    red = np.full((2, 3, 4, 4), -1.0)
    red[:, 0] = 1.5  # beyond the range, as noise is
    shown = picture_rows([red], ["a"]).axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown, np.broadcast_to([1.0, 0.0, 0.0], (4, 4, 3)))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        picture_rows([red[:, :2]], ["a"])


def test_restored(run, folders, tmp_path):
    save_model(tmp_path / "rgb.safetensors", UNet(3, 3, channels=(8, 8), num_classes=2, sample_size=32))
    said = run("restore_pictures", "--model", tmp_path / "rgb.safetensors", "--images", folders / "colour",
               "--steps", 2, "--count", 2, "--out", tmp_path)
    assert all(f"{name}: one sample " in said for name in ("hole", "few_pixels", "colours"))
    assert all(colours(tmp_path / f"{name}.png") for name in ("hole", "few_pixels", "colours"))
