"""Data: found, verified, downloaded or drawn; pictures of any kind read as digits."""

import errno
import gzip
import hashlib
import io
import struct
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from npdiffusion import files
from npdiffusion.data import (MNIST, DataNotFoundError, FashionMNIST, SyntheticDigits, download, draw_digits,
                              load_digits, load_picture, mnist, noise_sigma, save_png)

# ---------------------------------------------------------------------------------------------- MNIST


def idx(array):
    """The idx file of a uint8 array, as the MNIST page describes the format."""
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small MNIST of 5 random pictures: raw files by name, with checksums to match; nowhere on disk yet."""
    rng = np.random.default_rng(0)
    raw = {}
    for split, (images, labels) in mnist.FILES.items():
        raw[images] = idx(rng.integers(0, 256, (5, 28, 28), np.uint8))
        raw[labels] = idx(rng.integers(0, 10, 5, np.uint8))
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}
    monkeypatch.setitem(mnist.DIGESTS, "mnist", sums)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    monkeypatch.delenv("NPDIFFUSION_DATA", raising=False)
    monkeypatch.setattr(download, "urlopen", no_network)
    return raw


def no_network(url, timeout):
    raise urllib.error.URLError("Temporary failure in name resolution")


def fill(directory, raw, packed=True):
    (directory / "mnist").mkdir(parents=True)
    for name, data in raw.items():
        path = directory / "mnist" / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(data) if packed else data)
    return directory


class Response(io.BytesIO):
    """What urlopen returns, as far as the download uses it."""

    def __init__(self, data):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data))}


def serve(monkeypatch, answer):
    """Stand in for the network: ``answer(url)`` gives bytes or raises. Returns the list of urls asked for."""
    asked = []

    def urlopen(url, timeout):
        assert 0 < timeout <= 60
        asked.append(url)
        return Response(answer(url))

    monkeypatch.setattr(download, "urlopen", urlopen)
    return asked


def expected_images(raw):
    """By plain loops: two pixels of background on each side, 0 to -1 and 255 to 1."""
    pixels = np.frombuffer(raw, np.uint8)[16:].reshape(5, 28, 28)
    images = np.full((5, 1, 32, 32), -1.0)
    for n in range(5):
        for i in range(28):
            for j in range(28):
                images[n, 0, i + 2, j + 2] = 2 * float(pixels[n, i, j]) / 255 - 1
    return images


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", ["root", "environment", "cache"])
def test_mnist_is_found(small, tmp_path, monkeypatch, packed, how):
    directory = fill(download.cache_dir() if how == "cache" else tmp_path / "own", small, packed)
    if how == "environment":
        monkeypatch.setenv("NPDIFFUSION_DATA", str(directory))
    for split, (images, labels) in mnist.FILES.items():
        data = MNIST(split, root=directory if how == "root" else None)
        np.testing.assert_allclose(data.images, expected_images(small[images]), atol=1e-6)
        assert data.labels.tolist() == list(small[labels][8:])
        check_interface(data, 5)


def check_interface(data, n):
    assert len(data) == n
    assert data.images.dtype == np.float32 and data.images.shape == (n, 1, 32, 32)
    assert data.images.flags.c_contiguous
    assert data.labels.dtype == np.int64 and data.labels.shape == (n,)
    assert data.images.min() >= -1 and data.images.max() <= 1
    assert set(data.labels.tolist()) <= set(range(10))
    image, label = data[n - 1]
    np.testing.assert_array_equal(image, data.images[-1])
    assert label == data.labels[-1]
    assert data[:n][0].shape == (n, 1, 32, 32)
    assert sum(1 for _ in data) == n


def test_no_network_says_what_to_do(small, monkeypatch, tmp_path):
    monkeypatch.setenv("NPDIFFUSION_DATA", str(tmp_path / "own"))
    with pytest.raises(DataNotFoundError) as caught:
        load_digits("mnist")
    for words in (str(tmp_path / "own" / "mnist"), str(download.cache_dir() / "mnist"), "--data synthetic",
                  "NPDIFFUSION_DATA", "name resolution", *MNIST.mirrors, *(name + ".gz" for name in small)):
        assert words in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert not list(tmp_path.rglob("*"))


def test_download_false_asks_nobody(small, monkeypatch):
    asked = serve(monkeypatch, lambda url: b"")
    with pytest.raises(DataNotFoundError, match="--data synthetic"):
        MNIST("test", download=False)
    assert not asked


def test_download_goes_to_the_cache_once(small, monkeypatch, capsys):
    asked = serve(monkeypatch, lambda url: gzip.compress(small[Path(url).stem]))
    first = MNIST("test")
    assert [Path(url).name for url in asked] == [name + ".gz" for name in mnist.FILES["test"]]
    assert all(url.startswith(MNIST.mirrors[0]) for url in asked)
    assert "t10k-images" in capsys.readouterr().err  # the progress bar
    assert sorted(path.name for path in (download.cache_dir() / "mnist").iterdir()) == sorted(
        name + ".gz" for name in mnist.FILES["test"])
    np.testing.assert_array_equal(MNIST("test").images, first.images)
    assert len(asked) == 2


def broken(kind, data):
    """What a bad mirror sends instead of ``gzip.compress(data)``."""
    packed = gzip.compress(data)
    if kind == "refused":
        raise urllib.error.HTTPError("url", 403, "Forbidden", {}, None)
    if kind == "timeout":
        raise TimeoutError("timed out")
    return {"cut short": packed[:len(packed) // 2], "other file": gzip.compress(data + b"x"), "empty": b"",
            "web page": b"<html>Please log in to this network</html>",
            "flipped": packed[:20] + bytes([packed[20] ^ 255]) + packed[21:]}[kind]


BROKEN = ["refused", "timeout", "cut short", "other file", "empty", "web page", "flipped"]


@pytest.mark.parametrize("kind", BROKEN)
def test_second_mirror_helps(small, monkeypatch, kind):
    def answer(url):
        data = small[Path(url).stem]
        return broken(kind, data) if url.startswith(MNIST.mirrors[0]) else gzip.compress(data)

    asked = serve(monkeypatch, answer)
    check_interface(MNIST("train"), 5)
    assert len(asked) == 4


@pytest.mark.parametrize("kind", BROKEN)
def test_both_mirrors_bad(small, monkeypatch, tmp_path, kind):
    asked = serve(monkeypatch, lambda url: broken(kind, small[Path(url).stem]))
    with pytest.raises(DataNotFoundError, match="could not be downloaded"):
        MNIST("train")
    assert len(asked) == 2
    assert not list(tmp_path.rglob("*"))


def test_interrupted_download_leaves_nothing(small, monkeypatch, tmp_path):
    class Interrupted(Response):
        def read(self, size):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(10)

    monkeypatch.setattr(download, "urlopen", lambda url, timeout: Interrupted(b"0" * 1000))
    with pytest.raises(KeyboardInterrupt):
        MNIST("train")
    assert not list(tmp_path.rglob("*"))


def test_full_disk_leaves_nothing(small, monkeypatch, tmp_path):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    asked = serve(monkeypatch, lambda url: gzip.compress(small[Path(url).stem]))
    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(DataNotFoundError, match="No space left on device"):
        MNIST("train")
    assert len(asked) == 1  # another mirror would not make room
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["cut short", "other file", "empty", "flipped"])
def test_damaged_file_on_disk_is_downloaded_again(small, monkeypatch, kind):
    directory = fill(download.cache_dir(), small)
    name = mnist.FILES["test"][0]
    path = directory / "mnist" / f"{name}.gz"
    path.write_bytes(broken(kind, small[name]))
    with pytest.warns(UserWarning, match="not used"), pytest.raises(DataNotFoundError, match=f"{name}.gz: "):
        MNIST("test")
    serve(monkeypatch, lambda url: gzip.compress(small[Path(url).stem]))
    with pytest.warns(UserWarning, match="not used"):
        check_interface(MNIST("test"), 5)
    assert gzip.decompress(path.read_bytes()) == small[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MNIST("test")


def test_fashion_mnist(small, tmp_path, monkeypatch):
    """Known by its packed bytes: what is packed otherwise, or unpacked, is not the known file."""
    packed = {f"{name}.gz": gzip.compress(data) for name, data in small.items()}
    assert download.DIGESTS["fashion-mnist"].keys() == packed.keys()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()}
    monkeypatch.setitem(mnist.DIGESTS, "fashion-mnist", sums)
    directory = download.cache_dir() / "fashion-mnist"
    asked = serve(monkeypatch, lambda url: packed[Path(url).name])
    for split, (images, labels) in mnist.FILES.items():
        data = load_digits("fashion-mnist", split)
        np.testing.assert_allclose(data.images, expected_images(small[images]), atol=1e-6)
        assert data.labels.tolist() == list(small[labels][8:]) and type(data) is FashionMNIST
        check_interface(data, 5)
    assert asked == [FashionMNIST.mirrors[0] + name + ".gz" for files in mnist.FILES.values() for name in files]
    assert sorted(path.name for path in directory.iterdir()) == sorted(packed)
    images = mnist.FILES["test"][0]
    (directory / f"{images}.gz").write_bytes(gzip.compress(small[images], compresslevel=0))
    (directory / images).write_bytes(small[images])
    message = f"FashionMNIST's {images} not found(.|\\n)*expected {sums[images + '.gz'][:12]}… of {images}.gz"
    with pytest.warns(UserWarning, match="not used"), pytest.raises(DataNotFoundError, match=message):
        FashionMNIST("test", download=False)


def test_wrong_names(small):
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        MNIST("valid")
    with pytest.raises(ValueError, match="'train' or 'test', got 'valid'"):
        load_digits("synthetic", "valid")
    with pytest.raises(ValueError, match="'mnist', 'fashion-mnist' or 'synthetic', got 'cifar'"):
        load_digits("cifar")


@pytest.mark.parametrize("platform, variable, value, expected", [
    ("linux", "XDG_CACHE_HOME", "/somewhere", "/somewhere/npdiffusion"),
    ("linux", "XDG_CACHE_HOME", "", "~/.cache/npdiffusion"),
    ("darwin", "XDG_CACHE_HOME", "/somewhere", "~/Library/Caches/npdiffusion"),
    ("win32", "LOCALAPPDATA", "/somewhere", "/somewhere/npdiffusion"),
    ("win32", "LOCALAPPDATA", "", "~/AppData/Local/npdiffusion"),
])
def test_cache_dir(monkeypatch, platform, variable, value, expected):
    monkeypatch.setattr(download.sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    assert download.cache_dir() == Path(expected).expanduser()


def test_the_real_mnist():
    try:
        data = MNIST("test", download=False)
    except DataNotFoundError as error:
        pytest.skip(f"the real MNIST is not on this machine: {str(error)[:90]}")
    check_interface(data, 10000)
    assert np.bincount(data.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    inside = (data.images[:, 0, 2:30, 2:30] + 1) / 2
    assert abs(inside.mean(dtype=float) - 0.1325) < 1e-4  # the known mean of the test split
    assert (data.images[:, :, :2] == -1).all() and (data.images[:, :, :, 30:] == -1).all()


# ------------------------------------------------------------------------------------------ synthetic


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32))
def test_synthetic_interface(n, seed):
    data = SyntheticDigits(n, seed)
    check_interface(data, n)
    again = SyntheticDigits(n, seed)
    np.testing.assert_array_equal(data.images, again.images)
    np.testing.assert_array_equal(data.labels, again.labels)
    assert np.isin(data.images, np.arange(256, dtype=np.float32) / 127.5 - 1).all()  # as MNIST's pixels are


def test_synthetic_digits_look_like_mnist():
    """The known statistics of MNIST's 28×28 pixels, moved to 32×32 in [-1, 1]: mean -0.80, deviation 0.55."""
    data = SyntheticDigits(2000, seed=3)
    assert abs(data.images.mean(dtype=float) + 0.80) < 0.03
    assert abs(data.images.std(dtype=float) - 0.55) < 0.03
    assert (data.images.max((1, 2, 3)) > 0.5).all()
    border = np.concatenate([data.images[:, 0, [0, -1]].ravel(), data.images[:, 0, :, [0, -1]].ravel()])
    assert (border > -1).mean() < 0.01
    assert np.bincount(data.labels, minlength=10).min() > 150
    assert len(np.unique(data.images.reshape(2000, -1), axis=0)) == 2000


def holes(image):
    """Rows of the middles of the background's enclosed parts, found by flooding."""
    background = {(i, j) for i, j in np.ndindex(image.shape) if image[i, j] < 0}
    parts = []
    while background:
        todo = [min(background)]
        part = set(todo)
        while todo:
            i, j = todo.pop()
            fresh = ({(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & background) - part
            part |= fresh
            todo += fresh
        background -= part
        parts.append(np.mean([i for i, _ in part]))
    return parts[1:]  # the first is the outside


def test_synthetic_digits_show_their_label():
    """0, 4, 6 and 9 have one hole, 8 has two; the 6 has it below the middle of the ink, the 9 above."""
    images = draw_digits(np.repeat(np.arange(10), 15), np.random.default_rng(0))[:, 0]
    counts = [np.median([len(holes(image)) for image in images[15 * d:15 * d + 15]]) for d in range(10)]
    assert counts == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1]
    for digit, sign in ((6, 1), (9, -1)):
        below = [hole - np.nonzero(image > 0)[0].mean() for image in images[15 * digit:15 * digit + 15]
                 for hole in holes(image)]
        assert sign * np.median(below) > 2


def test_synthetic_digits_can_be_told_apart():
    """The nearest of 2000 other digits has the same label nearly always."""
    known, new = SyntheticDigits(2000, seed=0), SyntheticDigits(300, seed=1)
    a, b = new.images.reshape(300, -1), known.images.reshape(2000, -1)
    nearest = ((b**2).sum(1) - 2 * a @ b.T).argmin(1)
    assert (known.labels[nearest] == new.labels).mean() > 0.9


def test_synthetic_splits_differ():
    train, test = load_digits("synthetic"), load_digits("synthetic", "test")
    assert len(train) == 60000 and len(test) == 10000
    assert not np.array_equal(train.images[:10000], test.images)


def test_draw_digits_of_given_labels():
    labels = np.arange(10)
    images = draw_digits(labels, np.random.default_rng(0))
    assert images.shape == (10, 1, 32, 32)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SyntheticDigits(0)


# ------------------------------------------------------------------------------------------- pictures


def seven(width=200, height=200, paper=255, ink=0):
    """A 7 of two strokes in the middle of a grey picture, its ink 60 % of the shorter side."""
    picture = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(picture)
    side, x, y = min(width, height), width / 2, height / 2
    a, thick = 0.28 * side, round(0.05 * side)
    draw.line([(x - a, y - a), (x + a, y - a)], ink, thick)
    draw.line([(x + a, y - a), (x - a / 2, y + a)], ink, thick)
    return picture


def read(picture, path, **options):
    picture.save(path, **options)
    array, said = load_picture(path)
    assert array.shape == (1, 1, 32, 32) and array.dtype == np.float32 and np.isfinite(array).all()
    assert array.min() >= -1 and array.max() <= 1 or any("noise" in sentence for sentence in said)
    return array, " | ".join(said)


def coloured(mode):
    """The same black 7 on white paper in another mode, and a file type that keeps it."""
    grey = seven()
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 100), "png"
    if mode == "F":
        return Image.fromarray(np.asarray(grey, np.float32) * -3e4), "tiff"  # and this one light on dark
    if mode == "I":
        return Image.fromarray(np.asarray(grey).astype(np.int32) * 1000 - 10**5), "tiff"
    if mode == "RGBA":
        ink = Image.new("RGBA", grey.size, (20, 0, 60, 0))
        ink.putalpha(grey.point(lambda v: 255 - v))
        return ink, "png"
    if mode == "P":
        return grey.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), "gif"
    return grey.convert(mode), {"CMYK": "tiff", "LA": "png", "1": "png"}.get(mode, "png")


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_gives_the_same_digit(tmp_path, mode):
    reference, _ = read(seven(paper=0, ink=255), tmp_path / "reference.png")
    picture, suffix = coloured(mode)
    array, said = read(picture, tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(array, reference, atol=0.12)  # CMYK's black is not exact
    assert ("inverted" in said) == (mode != "F")
    assert "200×200" in said


def test_sentences(tmp_path):
    _, said = read(seven(640, 480).convert("RGB"), tmp_path / "a.png")
    assert said.split(" | ") == [
        "640×480 RGB picture: converted to grey", "dark ink on light paper: inverted", "padded to a square",
        "the ink fills 45% of the picture: cropped to it", "resized to 32×32"]


def test_mnist_pictures_come_back_exactly(tmp_path):
    digit = SyntheticDigits(1, seed=5).images[0, 0]
    pixels = np.rint((digit + 1) * 127.5).astype(np.uint8)
    for picture in (pixels, pixels[2:30, 2:30], 255 - pixels):
        array, said = read(Image.fromarray(picture), tmp_path / "a.png")
        np.testing.assert_allclose(array[0, 0], digit, atol=0.005)
        assert "cropped" not in said and "resized" not in said


def test_exif_orientation(tmp_path):
    upright, _ = read(seven(), tmp_path / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    turned, said = read(seven().rotate(90), tmp_path / "b.jpg", quality=95, exif=exif)
    assert "turned upright" in said
    np.testing.assert_allclose(turned, upright, atol=0.1)


def test_white_ink_on_transparent_ground(tmp_path):
    ink = Image.new("RGBA", (200, 200), (255, 255, 255, 0))
    ink.putalpha(seven().point(lambda v: 255 - v))
    array, said = read(ink, tmp_path / "a.png")
    reference, _ = read(seven(paper=0, ink=255), tmp_path / "b.png")
    np.testing.assert_allclose(array, reference, atol=0.02)
    assert "laid on black" in said and "inverted" not in said


def test_opaque_alpha_changes_nothing(tmp_path):
    plain, _ = read(seven().convert("RGB"), tmp_path / "a.png")
    opaque, said = read(seven().convert("RGBA"), tmp_path / "b.png")
    np.testing.assert_array_equal(opaque, plain)
    assert "transparent" not in said


def test_photograph(tmp_path):
    """A small digit on grey paper in uneven light: the ground becomes -1, the ink fills the frame."""
    rng = np.random.default_rng(0)
    picture = Image.new("L", (900, 600), 190)
    picture.paste(seven(300, 300, paper=190, ink=40), (150, 200))
    light = np.linspace(0.8, 1.1, 900) * np.linspace(0.9, 1.1, 600)[:, None]
    pixels = np.clip(np.asarray(picture) * light + rng.normal(0, 5, (600, 900)), 0, 255).astype(np.uint8)
    array, said = read(Image.fromarray(pixels).convert("RGB"), tmp_path / "a.jpg")
    reference, _ = read(seven(paper=0, ink=255), tmp_path / "b.png")
    for words in ("inverted", "full contrast", "padded", "cropped"):
        assert words in said
    rows, columns = np.nonzero(array[0, 0] > 0)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 23
    assert abs(rows.min() + rows.max() - 31) <= 3 and abs(columns.min() + columns.max() - 31) <= 3
    assert (array == -1).mean() > 0.7
    assert np.corrcoef(array.ravel(), reference.ravel())[0, 1] > 0.6


@pytest.mark.parametrize("at", [(3, 5), (0, 0), (100, 199), (100, 130), (54, 100), np.s_[8:10, 20:22]], ids=str)
@pytest.mark.parametrize("dtype, paper, ink, hot", [
    (np.uint16, 1100, 100, 65535), (np.uint16, 100, 1100, 65535), (np.uint16, 30000, 31000, 0), (np.int32, 5, 9, -1000),
    (np.float32, 0.1, 0.2, 1e5), (np.float64, 0.2, 0.1, -1e300), (np.uint8, 160, 100, 255), (np.uint8, 160, 100, 0),
    (np.uint8, 255, 0, 0), (np.uint8, 0, 255, 255)])
def test_one_hot_or_dead_pixel_changes_nothing(tmp_path, dtype, paper, ink, hot, at):
    """Neither the contrast nor where the ink is looked for; far from the ink, beside it and in it."""
    pixels = np.full((200, 200), paper, dtype)
    pixels[40:160, 40:160] = np.where(np.asarray(seven(120, 120)) < 128, ink, paper)
    if abs(float(np.mean(pixels[at])) - hot) < 99:
        pytest.skip("no change")
    without = read_array(pixels, tmp_path)
    pixels[at] = hot
    assert np.abs(read_array(pixels, tmp_path) - without).max() < (0.1 if dtype == np.uint8 else 0.02)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_small_digit_on_plain_paper(tmp_path, dtype):
    """Its ink is less than a thousandth of the pixels."""
    pixels = np.full((1000, 1000), 50, dtype)
    pixels[500:532, 300:332] = np.where(np.asarray(seven(32, 32)) < 128, 90, 50)
    assert (pixels > 50).sum() < 1000
    assert (read_array(pixels, tmp_path) > 0).sum() > 50


def read_array(pixels, tmp_path):
    path = tmp_path / ("a.png" if pixels.dtype == np.uint8 else "a.tif")
    Image.fromarray(pixels).save(path) if path.suffix == ".png" else tifffile.imwrite(path, pixels)
    return load_picture(path, size=40)[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_thin_strokes_and_noise_are_no_hot_pixels(tmp_path, dtype):
    """Lines of one pixel's width are ink; more single pixels than a thousandth are noise and stay."""
    pixels = np.full((40, 40), 20, dtype)
    pixels[10:30, 12] = pixels[10, 12:25] = 200
    np.testing.assert_array_equal(read_array(pixels, tmp_path)[0, 0] > 0, pixels > 99)
    pixels[5::10, 5::10] = 190
    np.testing.assert_array_equal(read_array(pixels, tmp_path)[0, 0] > 0, pixels > 99)


@pytest.mark.parametrize("size", [(1, 1), (50, 20)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_picture_warns(tmp_path, size, value):
    _, said = read(Image.new("L", size, value), tmp_path / "a.png")
    assert "warning" in said


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]), st.integers(1, 300), st.integers(1, 300),
       st.integers(0, 2**32))
def test_any_picture_can_be_read(tmp_path_factory, mode, width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    _, said = read(Image.fromarray(noise).convert(mode), tmp_path_factory.getbasetemp() / "any.png")
    assert f"{width}×{height}" in said


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0])
def test_noise_is_kept_whole(tmp_path, sigma):
    """A small noisy picture comes back with its noise as it was, so that its level can be told from it."""
    digit = SyntheticDigits(1, seed=5).images[0, 0]
    noisy = digit + np.random.default_rng(0).normal(0, sigma, digit.shape)
    pixels = np.rint(127.5 + noisy * 25).astype(np.uint8)  # room for the noise: nothing saturates
    for picture in (pixels, 255 - pixels):
        array, said = read(Image.fromarray(picture), tmp_path / "a.png")
        assert "noise of" in said and ("inverted" in said) == (picture is not pixels)
        scale, offset = np.polyfit(noisy.ravel(), array.ravel(), 1)
        np.testing.assert_allclose(array[0, 0], scale * noisy + offset, atol=0.05)  # the same, but for contrast
        assert 0.5 < scale < 1.1 and abs(offset) < 0.35
        assert abs(noise_sigma(array[0, 0]) / scale - sigma) < 0.15 * sigma + 0.03


def test_noise_sigma():
    rng = np.random.default_rng(0)
    slope = np.add.outer(np.arange(100.0), 2 * np.arange(90.0))
    assert noise_sigma(slope) < 1e-12 and noise_sigma(slope[:2]) == 0.0
    assert abs(noise_sigma(slope + rng.normal(0, 0.4, slope.shape)) - 0.4) < 0.02


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.float16, np.float32])
def test_noise_sigma_of_integers(dtype):
    """Differences of uint8 would wrap around: 29 for 8."""
    pixels = np.rint(100 + np.random.default_rng(0).normal(0, 8, (200, 200)))
    pixels = (pixels - 100 * (dtype == np.int8)).astype(dtype)
    assert abs(noise_sigma(pixels) - 8) < 0.3
    assert noise_sigma(np.indices((9, 9)).sum(0) % 2 == 0) > 0.5  # bool


def test_other_size(tmp_path):
    seven().save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png", size=64)[0].shape == (1, 1, 64, 64)


def test_missing_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture at .*nowhere.png"):
        load_picture(tmp_path / "nowhere.png")


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a\0\0\0\0\0\0\0"],
                         ids=["empty", "text", "header only", "zero size"])
def test_not_a_picture(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match="a.png cannot be read as a picture"):
        load_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "bmp"])
def test_truncated_picture(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for part in (0.05, 0.5, 0.9):
        path.write_bytes(data[:int(len(data) * part)])
        with pytest.raises(ValueError, match=f"a.{suffix} cannot be read as a picture"):
            load_picture(path)


def test_directory_and_nan_are_no_pictures(tmp_path):
    with pytest.raises((ValueError, OSError)):
        load_picture(tmp_path)
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="not finite"):
        load_picture(tmp_path / "a.tiff")


@pytest.mark.parametrize("channels", [1, 3])
def test_save_png_places_every_image(tmp_path, channels):
    images = np.random.default_rng(0).uniform(-1.2, 1.2, (5, channels, 3, 4)).astype(np.float32)
    save_png(tmp_path / "a.png", images, columns=2)
    sheet = np.asarray(Image.open(tmp_path / "a.png")).reshape(9, 8, channels)
    for n in range(6):
        tile = sheet[n // 2 * 3:n // 2 * 3 + 3, n % 2 * 4:n % 2 * 4 + 4]
        for c in range(channels):
            wanted = np.clip(images[n, c], -1, 1) * 127.5 + 127.5 if n < 5 else np.zeros((3, 4))
            np.testing.assert_allclose(tile[:, :, c], wanted, atol=0.51)


def test_save_png_refuses_other_shapes_and_integers(tmp_path):
    for images in (*map(np.zeros, [(3, 4), (1, 2, 3, 4), (0, 1, 3, 4)]), np.zeros((1, 1, 3, 4), np.uint8)):
        with pytest.raises(ValueError, match="save_png expects floating-point images"):
            save_png(tmp_path / "a.png", images)
    assert not list(tmp_path.iterdir())
