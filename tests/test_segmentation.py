"""Segmentation: its scores, its loss, and the example as a user runs it."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from test_examples import ROOT, run

import npdiffusion
from npdiffusion import Tensor
from npdiffusion.checkpoint import load_file, save_file
from npdiffusion.data import Micrographs, SyntheticMicrographs
from npdiffusion.metrics import segmentation_scores
from npdiffusion.models import Classifier, load_model, save_model

sys.path.insert(0, str(ROOT / "examples"))
import segment_mitochondria as example  # noqa: E402

SCRIPT = "segment_mitochondria.py"
TINY = ["--preset", "smoke", "--steps", "2", "--patch", "32", "--no-tta"]


def test_scores_by_hand():
    labelled = np.zeros((2, 4, 4), bool)
    predicted = labelled.copy()
    labelled[0, :2], predicted[0, 1:] = True, True  # 8 and 12 pixels, 4 in both
    assert segmentation_scores(predicted, labelled) == {"iou": 4 / 16, "dice": 8 / 20, "precision": 4 / 12,
                                                        "recall": 4 / 8}
    empty = labelled[1]
    assert set(segmentation_scores(empty, empty).values()) == {1.0}
    assert set(segmentation_scores(empty, labelled[0]).values()) == {0.0}
    assert set(segmentation_scores(labelled[0], empty).values()) == {0.0}
    for a, b in ((labelled, labelled[:1]), (labelled.astype(np.uint8), labelled)):
        with pytest.raises(ValueError, match="two bool arrays of one shape"):
            segmentation_scores(a, b)


def test_dice_loss_by_hand():
    logits = Tensor(np.log([1 / 3, 3, 1, 9]), requires_grad=True)  # p = 0.25, 0.75, 0.5, 0.9
    y = np.array([0.0, 1.0, 1.0, 0.0])
    loss = example.dice_loss(logits, Tensor(y))
    assert loss.item() == pytest.approx(1 - (2 * 1.25 + 1) / (2.4 + 2 + 1))
    loss.backward()
    p, total = np.array([0.25, 0.75, 0.5, 0.9]), 5.4
    assert np.allclose(logits.grad.data, -(2 * y * total - 3.5) / total**2 * p * (1 - p))


def test_folding_keeps_each_square_of_pixels_together():
    x = np.arange(2 * 8 * 12, dtype=np.float32).reshape(2, 1, 8, 12)
    folded = example.folded(x)
    assert folded.shape == (2, 16, 2, 3)
    assert np.array_equal(folded[1, :, 1, 2], x[1, 0, 4:8, 8:12].ravel())
    assert np.array_equal(example.unfolded(folded), x)


def test_the_eight_ways_to_lay_a_square():
    x = np.arange(9).reshape(1, 3, 3)
    ways = [example.turned(x, way) for way in range(8)]
    assert len({way.tobytes() for way in ways}) == 8
    assert all(np.array_equal(example.turned_back(way, i), x) for i, way in enumerate(ways))


def test_patches_are_squares_of_the_section_with_their_labels():
    """The label is the sign of the picture: it stays so, wherever the patch lies and however it is turned."""
    rng = np.random.default_rng(0)
    image = np.where(rng.random((40, 64)) < 0.5, -1, 1).astype(np.float32)
    patches = [example.random_patch(image, image > 0, 16, rng) for _ in range(20)]
    for x, y in patches:
        assert x.shape == y.shape == (16, 16) and x.dtype == np.float32
        assert np.array_equal(x > x.mean(), y) and 2 * 0.8 < np.ptp(x) < 2 * 1.25
    assert len({y.tobytes() for _, y in patches}) == 20


class Bright:
    """Stands for a network that finds the light pixels."""

    device = "cpu"

    def __call__(self, x):
        return x * 50


@pytest.mark.parametrize("tta", [False, True])
def test_whole_pictures_of_any_size(tta):
    image = np.where(np.random.default_rng(1).random((50, 701)) < 0.5, 20, 200).astype(np.uint8)
    p = example.probability(Bright(), image, tta)
    assert p.shape == image.shape and np.array_equal(p > 0.5, image > 100)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    return out, run(SCRIPT, "--preset", "smoke", "--data", "synthetic", "--out", out)


def test_smoke(smoke):
    out, _ = smoke
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"iou", "dice", "precision", "recall", "minutes", "tta"} <= set(metrics)
    assert set(metrics["sections"]) == {"synthetic-00", "synthetic-01"} and metrics["curve"][-1]["step"] == 6
    for name, width, height in (("segmentation", 1200, 700), ("curve", 800, 500), ("loss", 800, 500)):
        picture = np.asarray(Image.open(out / f"{name}.png").convert("L"))
        assert picture.shape[0] > height and picture.shape[1] > width and picture.std() > 10, name
    assert load_model(out / "model.safetensors").config["in_channels"] == 16


def test_predict(smoke, tmp_path):
    """A 16-bit picture smaller than a tile, by the network of the smoke training."""
    picture = tmp_path / "mine.tif"
    Image.fromarray(SyntheticMicrographs(1, (90, 130), seed=5).images[0].astype(np.uint16) * 200).save(picture)
    result = run(SCRIPT, "--predict", picture, "--model", smoke[0] / "model.safetensors", "--out", tmp_path)
    mask, overlay = (np.asarray(Image.open(tmp_path / f"mine-{kind}.png")) for kind in ("mask", "overlay"))
    assert mask.shape == (90, 130) and set(np.unique(mask)) <= {0, 255} and overlay.shape == (90, 130, 3)
    assert str(tmp_path / "mine-mask.png") in result.stdout and f"network: {smoke[0]}" in result.stdout
    result = run(SCRIPT, "--predict", picture, "--no-tta", "--out", tmp_path)
    assert "network: sstem-mitochondria, which comes along" in result.stdout


@pytest.fixture
def pairs(tmp_path):
    """Directories with three pictures of 80×96 pixels and their masks: colour TIFF, PNG."""
    data = SyntheticMicrographs(3, (80, 96), seed=2)
    for i, (image, mask) in enumerate(zip(data.images, data.masks)):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        mask[30:50, 30:50] = True
        Image.fromarray(np.repeat(image[..., None], 3, 2)).save(tmp_path / "images" / f"{i}.tif")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return tmp_path


def of(pairs, *more):
    return [*TINY, "--images", pairs / "images", "--masks", pairs / "masks", "--out", pairs / "out", *more]


def test_own_pairs(pairs):
    run(SCRIPT, *of(pairs))
    assert list(json.loads((pairs / "out" / "metrics.json").read_text())["sections"]) == ["2"]


def test_own_pairs_as_small_as_can_be(tmp_path):
    """9×9 pixels, and a --patch of 8: trained, segmented and drawn."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "ab":
            pixels = np.random.default_rng(0).integers(1, 255, (9, 9), dtype=np.uint8) * np.uint8(1 + (kind == "masks"))
            Image.fromarray(pixels // 128 * 255 if kind == "masks" else pixels).save(tmp_path / kind / f"{name}.png")
    run(SCRIPT, *of(tmp_path, "--patch", "8"))
    assert np.asarray(Image.open(tmp_path / "out" / "segmentation.png").convert("L")).std() > 10


def test_own_pairs_may_move_but_not_change(pairs, monkeypatch):
    """The same data elsewhere resume, with the preset given or spelled out, and so does a checkpoint of version 0.1."""
    monkeypatch.setattr(example, "probability", lambda model, image, tta: np.zeros(image.shape))
    monkeypatch.setattr(example, "save_figure", lambda *args: None)

    def main(folder, *options):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *options, *map(str, of(folder)[len(TINY):])])
        npdiffusion.manual_seed(0)
        example.main()

    main(pairs, *TINY)
    checkpoint = pairs / "out" / "checkpoint.safetensors"
    arrays, meta = load_file(checkpoint)
    assert not [v for k, v in meta["settings"].items() if str(pairs) in str(v) or k == "preset"]
    moved = pairs.with_name(f"{pairs.name}-moved")
    pairs.rename(moved)
    spelled_out = ["--channels", "8", "16", "--steps", "2", "--batch-size", "2", "--patch", "32", "--resume"]
    main(moved, *TINY, "--resume")
    main(moved, *spelled_out)

    checkpoint = moved / "out" / "checkpoint.safetensors"
    old = {"preset": "smoke", "images": "/gone/images", "masks": "/gone/masks"}
    settings = {k: v for k, v in meta["settings"].items() if k != "pairs"} | old
    save_file(checkpoint, arrays, meta | {"settings": settings})
    main(moved, *spelled_out)
    with pytest.raises(SystemExit, match="other settings"):
        main(moved, *spelled_out, "--lr", "0.1")

    save_file(checkpoint, arrays, meta)
    elsewhere = ["--data", "synthetic", "--out", str(moved / "out")]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *TINY, *elsewhere, "--resume"])
    with pytest.raises(SystemExit, match="other settings"):
        example.main()
    picture = np.array(Image.open(moved / "masks" / "1.png"))
    picture[7, 7] ^= True
    Image.fromarray(picture).save(moved / "masks" / "1.png")
    with pytest.raises(SystemExit, match="other settings"):
        main(moved, *TINY, "--resume")


def test_the_digest_of_pairs_depends_on_pixels_masks_names_and_shape():
    data = SyntheticMicrographs(2, (32, 32), seed=2)
    other = [Micrographs(data.images ^ (np.indices(data.images.shape).sum(0) == 9), data.masks, data.names),
             Micrographs(data.images, data.masks ^ (np.indices(data.images.shape).sum(0) == 9), data.names),
             Micrographs(data.images, data.masks, ["a", "b"]),
             Micrographs(data.images.reshape(2, 16, 64), data.masks.reshape(2, 16, 64), data.names)]
    found = [example.digest(some) for some in (data, *other)] + [example.digest(data, data)]
    assert len(set(found)) == 6 and example.digest(data) == found[0]


def unmatched(pairs):
    (pairs / "masks" / "1.png").rename(pairs / "masks" / "9.png")


def truncated(pairs):
    path = pairs / "images" / "1.tif"
    path.write_bytes(path.read_bytes()[:3000])


def unlabelled(pairs):
    for path in (pairs / "masks").iterdir():
        Image.new("1", (96, 80)).save(path)


def exchanged(pairs):
    (pairs / "masks").rename(pairs / "pictures")
    (pairs / "images").rename(pairs / "masks")
    (pairs / "pictures").rename(pairs / "images")


def all_foreground(pairs):
    for path in (pairs / "masks").iterdir():
        Image.new("L", (96, 80), 255).save(path)


def alone(pairs):
    for kind in ("images", "masks"):
        for path in (pairs / kind).glob("[12].*"):
            path.unlink()


@pytest.mark.parametrize("spoil, message", [(unmatched, "alone are: 1, 9"), (truncated, "1.tif cannot be read"),
                                            (unlabelled, "are all empty"), (alone, "at least two are needed"),
                                            (exchanged, "exchanged --images and --masks|foreground all over"),
                                            (all_foreground, "foreground|exchanged")])
def test_pairs_that_do_not_do(pairs, spoil, message):
    spoil(pairs)
    result = run(SCRIPT, *of(pairs), check=False)
    assert result.returncode and re.search(message, result.stderr) and "Traceback" not in result.stderr
    assert not (pairs / "out").exists()


def test_options_that_do_not_do(pairs):
    classifier = pairs / "classifier.safetensors"
    save_model(classifier, Classifier(channels=(8,)))
    picture, stack = pairs / "images" / "0.tif", pairs / "stack.tif"
    Image.new("L", (40, 40)).save(stack, save_all=True, append_images=[Image.new("L", (40, 40), 9)])
    for args, message in ((of(pairs, "--patch", "88"), "smaller than --patch 88"),
                          (of(pairs, "--patch", "20"), "must be a multiple of 8"),
                          (["--images", pairs / "images"], "--images and --masks go together"),
                          (["--predict", pairs / "none.tif"], "none.tif"),
                          (["--predict", stack], "has 2 frames, expected one: save each as a file of its own"),
                          (of(pairs, "--model", classifier), "--model goes with --predict"),
                          (["--predict", picture, "--model", classifier], "for another task"),
                          (["--predict", picture, "--model", picture], "0.tif")):
        result = run(SCRIPT, *args, check=False)
        assert result.returncode and message in result.stderr and "Traceback" not in result.stderr, message


def test_without_the_data_it_says_how_to_go_on(tmp_path):
    nowhere = {"NPDIFFUSION_DATA": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    result = run(SCRIPT, *TINY, "--out", tmp_path / "out", check=False, **nowhere)
    assert result.returncode and "--data synthetic" in result.stderr and "Traceback" not in result.stderr
