"""Gaps and coarse micrographs restored as a user does it, small, with networks that know nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npdiffusion.checkpoint import load_file
from npdiffusion.data import SyntheticMicrographs
from npdiffusion.models import UNet, save_model

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import restore_micrographs as example  # noqa: E402

SETS = SyntheticMicrographs(1, (192, 256)), SyntheticMicrographs(2, (192, 256), seed=1)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The example with small networks on small sections, into tmp_path / name."""
    save_model(tmp_path / "model.safetensors", UNet(1, 1, channels=(8, 16)))
    save_model(tmp_path / "segmenter.safetensors", UNet(16, 16, channels=(8, 16), time=False))
    monkeypatch.setattr(example, "load_micrographs", lambda data: SETS)

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [
            "restore_micrographs.py", "--preset", "smoke", "--data", "synthetic", "--out", str(tmp_path / name),
            "--model", str(tmp_path / "model.safetensors"), "--segmenter", str(tmp_path / "segmenter.safetensors"),
            *options])
        example.main()
        return tmp_path / name

    return run


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_leaves_what_a_whole_one_does_and_draws_more(run, monkeypatch):
    whole, restore, left = run("whole"), example.restore, [True] * 3

    def stopping(*args, **options):
        if not left:
            raise KeyboardInterrupt
        return left.pop() and restore(*args, **options)

    monkeypatch.setattr(example, "restore", stopping)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    parts = whole.parent / "parts"
    assert len(load_file(parts / "samples.safetensors")[0]) == 3 and not (parts / "metrics.json").exists()
    with pytest.raises(SystemExit, match="--resume"):
        run("parts")
    with pytest.raises(SystemExit, match="other settings"):
        run("parts", "--resume", "--weight", "0.5")
    left.append(True)  # all that is to be drawn
    run("parts", "--resume")
    samples, again = (load_file(out / "samples.safetensors")[0] for out in (whole, parts))
    assert samples.keys() == again.keys() and all(np.array_equal(samples[name], again[name]) for name in samples)
    assert (parts / "metrics.json").read_text() == (whole / "metrics.json").read_text()

    metrics = json.loads((whole / "metrics.json").read_text())
    assert max(metrics["misfit"].values()) < 1e-4 and 0 <= metrics["iou_original"] <= 1
    test = SETS[1].images.reshape(2, 1, 96, 2, 128, 2).mean((3, 5)) / 127.5 - 1
    mask = example.measured_pixels((96, 128), np.random.default_rng(0))
    gaps, coarse = samples["gaps 1"], samples["coarse 0"]
    np.testing.assert_allclose(gaps[:, :, mask], test[:, :, mask], atol=1e-6)
    np.testing.assert_allclose(coarse.reshape(2, 1, 48, 2, 64, 2).mean((3, 5)),
                               test.reshape(2, 1, 48, 2, 64, 2).mean((3, 5)), atol=1e-4)
    assert np.abs(samples["gaps 0"] - gaps)[:, :, ~mask].mean() > 0.01  # another sample
    error = (np.mean([samples["gaps 0"], gaps], 0) - test)[:, :, ~mask]
    assert metrics["gaps"]["mean of 2"]["psnr_missing"] == pytest.approx(
        np.mean(10 * np.log10(4 / (error ** 2).mean((1, 2)))), abs=1e-3)
    for problem, methods in (("gaps", {"measured", "linear"}), ("coarse", {"measured", "bicubic"})):
        assert set(metrics[problem]) >= methods | {"one sample", "mean of 2"}
        assert np.asarray(Image.open(whole / f"{problem}.png").convert("L")).std() > 10
    assert Image.open(whole / "close-ups.png").size > (1000, 300)

    left += [True] * 2
    run("whole", "--resume", "--samples", "3")
    more = load_file(whole / "samples.safetensors")[0]
    assert len(more) == 6 and all(np.array_equal(more[name], samples[name]) for name in samples)
    assert "mean of 3" in json.loads((whole / "metrics.json").read_text())["gaps"]


def test_about_a_quarter_is_missing():
    mask = example.measured_pixels((512, 512), np.random.default_rng(0))
    assert 0.7 < mask.mean() < 0.85
    lost = np.flatnonzero(~mask.any(1))
    heights = [len(band) for band in np.split(lost, np.flatnonzero(np.diff(lost) > 1) + 1)]
    assert len(heights) == 16 and min(heights) >= 4 and max(heights) <= 10


def test_classical_methods_find_a_plane_again():
    """Away from the edges."""
    y, x = np.mgrid[-0.5:0.5:96j, -0.4:0.4:128j]
    plane = (y + x)[None, None].astype(np.float32)
    for operator, methods in example.problems((96, 128)).values():
        for name, method in methods.items():
            found = method(operator.forward(plane)[0, 0])
            assert found.shape == (96, 128)
            np.testing.assert_allclose(found[12:-12, 12:-12], plane[0, 0, 12:-12, 12:-12], err_msg=name,
                                       atol=0.04 if name == "Gaussian" else 0.002)  # at an edge it sees one side alone
