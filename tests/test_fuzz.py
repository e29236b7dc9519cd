"""Damaged files: each is read, or refused with an error that says something; nothing else happens.

FUZZ=10000 python -m pytest tests/test_fuzz.py tries more of them, FUZZ_SEED=1 others.
"""

import gzip
import io
import os
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_data import idx

from npdiffusion.checkpoint import load_file, load_weights, save_weights
from npdiffusion.data import MNIST, DataNotFoundError, load_pairs, load_picture, mnist, read_micrograph

N, SEED = int(os.environ.get("FUZZ", 500)), int(os.environ.get("FUZZ_SEED", 0))
GREY = np.add.outer(np.arange(40), 3 * np.arange(50)).astype(np.uint8)
DEEP, COLOURS = GREY * np.uint16(200), np.stack([GREY, GREY // 2, 255 - GREY], 2)


def written(write, *args, **options):
    buffer = io.BytesIO()
    write(buffer, *args, **options)
    return buffer.getvalue()


def pil(array, kind, **options):
    return written(Image.fromarray(array).save, kind, **options)


def tif(array, **options):
    return written(tifffile.imwrite, array, **{"photometric": "minisblack", **options})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Whole files, each with the function that reads it."""
    path = tmp_path_factory.mktemp("fuzz")
    save_weights(path / "weights", {"a": np.arange(99.0), "b": np.ones((3, 4), np.float32)}, {"channels": [8, 16]})
    (path / "masks").mkdir()
    pictures = [
        pil(GREY, "png"), pil(DEEP, "png"), pil(COLOURS, "png"), pil(GREY > 9, "png"), pil(COLOURS, "jpeg"),
        pil(GREY, "jpeg"), pil(GREY, "gif"), pil(GREY, "bmp"), pil(COLOURS, "webp"), tif(GREY), tif(DEEP, bigtiff=True),
        tif(DEEP / 7, byteorder=">"), tif(GREY, compression="zlib", predictor=True), tif(GREY, tile=(16, 16)),
        tif(COLOURS, photometric="rgb", rowsperstrip=7), tif(np.stack([GREY] * 3)), tif(GREY > 9),
        written(tifffile.imwrite, np.stack([DEEP] * 3), imagej=True), pil(GREY, "tiff", compression="tiff_lzw"),
        pil(DEEP, "tiff", compression="tiff_lzw"), pil(COLOURS, "tiff", compression="jpeg"),
        tif(GREY, photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        pil(GREY, "tiff", compression="packbits")]
    digits = gzip.compress(idx(GREY[:28, :28].repeat(5, 0).reshape(5, 28, 28)))
    return path, [*((data, (read_micrograph, load_picture, as_mask)) for data in pictures), (digits, (as_digits,)),
                  *[((path / "weights").read_bytes(), (load_file, load_weights))] * 4]


def as_mask(path):
    masks = path.parent / "masks"
    (masks / path.name).write_bytes(path.read_bytes())
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    (images / path.name).write_bytes(pil(GREY, "png"))
    load_pairs(images, masks)


def as_digits(path):
    (path.parent / "mnist").mkdir(exist_ok=True)
    (path.parent / "mnist" / f"{mnist.FILES['test'][0]}.gz").write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="is not used"):
        MNIST("test", root=path.parent, download=False)


def damaged(data, rng):
    """The bytes with one to four places flipped, cut, overwritten, inserted, doubled or left out."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 300)  # headers matter most
        at, n = int(rng.integers(reach)), int(rng.integers(1, 9))
        noise = rng.integers(0, 256, n, np.uint8).tobytes()
        end = len(data) if rng.random() < 0.3 else at + n
        kind = rng.integers(7)
        if kind < 2:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind < 4:
            data[at:at + n] = noise if kind == 2 else bytes([rng.choice([0, 127, 255])]) * n
        elif kind < 6:
            data[at:at] = noise if kind == 4 else data[at:at + 50]
        else:
            del data[at:end]
        if not data:
            break
    return bytes(data)


def test_damaged_files(files, capsys):
    path, whole = files
    rng = np.random.default_rng(SEED)
    read = refused = 0
    for i in range(N):
        data, readers = whole[i % len(whole)]
        (path / "a").write_bytes(damaged(data, rng))
        reader = readers[i // len(whole) % len(readers)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                reader(path / "a")
                read += 1
            except (FileNotFoundError, ValueError, DataNotFoundError) as error:
                assert len(str(error)) > 20, (i, error)
                refused += 1
        assert not caught, (i, reader, [str(warning.message) for warning in caught])
    assert read > N / 5 and refused > N / 5
    assert capsys.readouterr().err == ""
