"""PictureFolder: a folder of one's own pictures, of all kinds, is decoded once and read from the cache after that."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from npdiffusion.data import PictureFolder, folder, load_square

ROOT = Path(__file__).parent.parent
SIZE = 16


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(*shape, seed=0):
    """What JPEG and palettes keep well."""
    small = Image.fromarray(noise(4, 4, *shape[2:], seed=seed))
    return small.resize(shape[1::-1], Image.Resampling.BICUBIC)


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)


def oracle(path, mode="RGB", size=SIZE):
    """By Pillow alone, (C, size, size) in [-1, 1]."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode == "I;16":  # made by 257·v, with v from 0 to 255
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB").convert(mode) if picture.mode not in ("L", "1") else picture.convert(mode)
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    small = picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return np.atleast_3d(np.asarray(small)).transpose(2, 0, 1) / 127.5 - 1


def many(root, count, shape=(18, 18), start=0):
    for i in range(start, start + count):
        save(root / f"{i:04}.png", noise(*shape, seed=i))


def both(root, size=SIZE, **options):
    """All pictures of a folder in the order of their names, whichever part they are in, and their labels."""
    test, train = (PictureFolder(root, size, split, cache=root.parent / "cache", progress=False, **options)
                   for split in ("test", "train"))
    order = np.random.RandomState(0).permutation(len(test) + len(train))
    images, labels = np.empty((len(order), *train.shape), np.float32), np.empty(len(order), train.labels.dtype)
    for part, places in ((test, order[:len(test)]), (train, order[len(test):])):
        images[np.sort(places)], labels[np.sort(places)] = part[:]
    return images, labels, train


def said(data, words):
    """The sentences that contain the words."""
    return [line for line in data.said if words in line]


# ---------------------------------------------------------------------------------------------- pictures of all kinds

DEEP = noise(20, 24).astype(np.uint16)
DEEP[:2, 8:10], DEEP[2:4, 8:10] = 0, 255  # so that the extreme thousandths are these
TRANSPARENT = np.dstack([noise(20, 24, 3), noise(20, 24, seed=1)])
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
KINDS = {
    "grey.png": (noise(20, 24), {}), "colour.png": (noise(20, 24, 3), {}), "colour.tif": (noise(24, 20, 3), {}),
    "black and white.png": (Image.fromarray(noise(20, 24)).convert("1"), {}),
    "transparent.png": (TRANSPARENT, {}), "transparent grey.png": (Image.fromarray(TRANSPARENT).convert("LA"), {}),
    "palette.png": (smooth(20, 24, 3).quantize(16), {}),
    "one colour clear.png": (smooth(20, 24, 3).quantize(16), {"transparency": 3}),
    "deep.png": (DEEP * 257, {}), "grey.tiff": (noise(20, 24), {"compression": "tiff_lzw"}),
    "photo.JPG": (smooth(20, 24, 3), {"exif": ORIENTED, "quality": 95}), "grey.jpeg": (smooth(20, 24), {}),
    "two.gif": (smooth(20, 24, 3).quantize(16), {"save_all": True, "append_images": [smooth(20, 24)]}),
    "small.bmp": (noise(5, 9, 3), {}), "exact.png": (noise(SIZE, SIZE, 3), {}),
}


@pytest.fixture
def kinds(tmp_path):
    root = tmp_path / "kinds"
    for name, (picture, options) in KINDS.items():
        save(root / name, picture, **options)
    return root


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_of_all_kinds(kinds, mode):
    images, labels, data = both(kinds, grey=mode == "L")
    assert data.shape == images.shape[1:] == (len(mode), SIZE, SIZE) and images.dtype == np.float32
    for image, name in zip(images, sorted(KINDS), strict=True):
        tolerance = 2.01 / 127.5 if "clear" in name or "transparent" in name else 1e-6  # Pillow rounds in between
        np.testing.assert_allclose(image, oracle(kinds / name, mode), atol=tolerance, err_msg=name)
    assert not labels.any() and data.classes == []


def test_what_was_done_is_said(kinds):
    save(kinds / "broken.png", noise(20, 20))
    (kinds / "broken.png").write_bytes((kinds / "broken.png").read_bytes()[:200])
    for name in ("notes.txt", ".hidden.png", "no ending"):
        (kinds / name).write_text("")
    save(kinds / ".hidden" / "a.png", noise(20, 20))
    data = both(kinds)[2]
    for sentence in ("15 RGB pictures, 16×16", "3 other files skipped", "1 broken files skipped: broken.png cannot be",
                     "1 turned upright", "14 cropped to a square", "13 reduced", "1 enlarged",
                     "3 transparent: laid on white", "1 of more than 8 bits", "1 of several in a file: the first taken",
                     "6 grey ones made RGB", "warning: 15 pictures are few", f"1 MB in {kinds.parent / 'cache'}"):
        assert len(said(data, sentence)) == 1, (sentence, data.said)
    assert len(data.said) == 13
    assert said(both(kinds, grey=True)[2], "9 made grey") and data.said == both(kinds)[2].said


def test_broken_ones_are_left_out(tmp_path):
    root = tmp_path / "pictures"
    for name in ("a", "b"):
        many(root / name, 12)
    names, whole = [f"{c}/{i:04}.png" for c in "ab" for i in range(12)], (root / "a/0003.png").read_bytes()
    broken = {"a/0003.png": whole[:-40], "a/0004.png": b"", "b/0000.png": b"no picture", "b/0011.png": whole[9:]}
    for name, data in broken.items():
        (root / name).write_bytes(data)
    images, labels, data = both(root)
    for image, label, name in zip(images, labels, [name for name in names if name not in broken], strict=True):
        np.testing.assert_allclose(image, oracle(root / name, "L"), atol=1e-6)
        assert label == "ab".index(name[0])
    line, = said(data, "4 broken files skipped: a/0003.png cannot be read as a picture")
    assert line.count("; ") == 3 and "a/0004.png" in line and "b/0000.png" in line and line.endswith("; …")


def test_grey_pictures_stay_grey(tmp_path):
    many(tmp_path / "grey", 9)
    images, _, data = both(tmp_path / "grey")
    assert data.shape == images.shape[1:] == (1, SIZE, SIZE) and said(data, "9 grey pictures")
    np.testing.assert_allclose(images[4], oracle(tmp_path / "grey" / "0004.png", "L"), atol=1e-6)
    np.testing.assert_array_equal(both(tmp_path / "grey", grey=True)[0], images)


def test_load_square(kinds):
    for name, channels in (("transparent.png", 3), ("photo.JPG", 1), ("grey.png", 3)):
        picture = load_square(kinds / name, SIZE, channels)
        assert picture.shape == (1, channels, SIZE, SIZE) and picture.dtype == np.float32
        np.testing.assert_allclose(picture[0], oracle(kinds / name, "RGB" if channels == 3 else "L"), atol=1.01 / 127.5)
    flat = load_square(kinds / "colour.png", (10, 24))
    expected = Image.open(kinds / "colour.png").crop((0, 5, 24, 15))
    np.testing.assert_allclose(flat[0], np.asarray(expected).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="no picture at"):
        load_square(kinds / "none.png", SIZE)


def test_deep_colours_are_stretched_alike(tmp_path):
    import tifffile
    values = noise(SIZE, SIZE, 3).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 255
    tifffile.imwrite(tmp_path / "deep.tif", values * 100 + 7, photometric="rgb")
    np.testing.assert_allclose(load_square(tmp_path / "deep.tif", SIZE)[0], values.transpose(2, 0, 1) / 127.5 - 1,
                               atol=1e-6)


# ---------------------------------------------------------------------------------------------- classes and parts


def test_subfolders_are_classes(tmp_path):
    root, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for name, count in (("dog", 3), ("cat/old", 2), ("cat", 4), ("empty", 0), ("Zebra", 2)):
        (root / name).mkdir(parents=True, exist_ok=True)
        many(root / name, count)
    many(elsewhere, 2)
    (root / "linked").symlink_to(elsewhere)
    (root / "dog" / "back").symlink_to(root)
    images, labels, data = both(root)
    assert data.classes == ["Zebra", "cat", "dog", "linked"]
    assert labels.tolist() == [0] * 2 + [1] * 6 + [2] * 3 + [3] * 2
    assert said(data, "4 classes, by subfolder: Zebra; cat; dog; linked")
    np.testing.assert_allclose(images[-3], oracle(root / "dog" / "0002.png", "L"), atol=1e-6)
    many(root, 1)
    images, labels, data = both(root)
    assert data.classes == [] and len(images) == 14 and not labels.any()
    assert labels.dtype == np.int64 and said(data, "4 subfolders, but no classes: pictures lie beside them")


def test_a_tenth_is_for_testing(tmp_path):
    many(tmp_path / "a", 50)
    whole, _, train = both(tmp_path / "a")
    test = PictureFolder(tmp_path / "a", SIZE, "test", cache=tmp_path / "cache")
    assert len(train) == 45 and len(test) == 5
    for row, name in zip(test[:][0], (2, 10, 11, 28, 41)):  # np.random.RandomState(0).permutation(50)[:5], sorted
        np.testing.assert_allclose(row, oracle(tmp_path / "a" / f"{name:04}.png", "L"), atol=1e-6)
    assert len(np.unique(np.concatenate([train[:][0], test[:][0]]), axis=0)) == 50
    other = PictureFolder(tmp_path / "a", 18, "test", grey=True, cache=tmp_path / "cache")
    np.testing.assert_allclose(other[0][0], oracle(tmp_path / "a" / "0002.png", "L", 18), atol=1e-6)
    many(tmp_path / "b", 2)
    for split in ("train", "test"):
        assert len(PictureFolder(tmp_path / "b", 8, split, cache=tmp_path / "cache")) == 1


def test_indices(tmp_path):
    for name in ("a", "b"):
        many(tmp_path / "pictures" / name, 8)
    data = PictureFolder(tmp_path / "pictures", SIZE, cache=tmp_path / "cache")
    images, labels = data[:]
    assert images.shape == (15, 1, SIZE, SIZE) and labels.dtype == np.int64 and type(images) is np.ndarray
    assert images.flags.c_contiguous and images.min() >= -1 and images.max() <= 1
    np.testing.assert_array_equal(labels, data.labels)
    for index in (0, 7, -1, np.int64(3), slice(2, 9, 3), slice(0, 0), np.array([5, 1, 5]), [2, 3], labels == 1):
        some, their = data[index]
        np.testing.assert_array_equal(some, images[index])
        np.testing.assert_array_equal(their, labels[index])
    assert sum(1 for _ in data) == 15
    with pytest.raises(IndexError):
        data[15]
    data[3][0][:] = 5
    np.testing.assert_array_equal(data[3][0], images[3])


# ---------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that have been decoded."""
    names, read = [], folder.read_frames
    monkeypatch.setattr(folder, "read_frames", lambda path: names.append(path.name) or read(path))
    return names


def test_pictures_are_decoded_once(tmp_path, decoded):
    root = tmp_path / "a"
    many(root, 5)
    images = both(root)[0]
    assert len(decoded) == 5 and sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
    root.rename(tmp_path / "b")
    (tmp_path / "b").rename(root)
    np.testing.assert_array_equal(both(root)[0], images)
    assert len(decoded) == 5
    save(root / "0002.png", noise(18, 18, seed=99))
    np.testing.assert_allclose(both(root)[0][2], oracle(root / "0002.png", "L"), atol=1e-6)
    assert len(decoded) == 10
    os.utime(root / "0001.png", ns=(0, 1))
    assert len(both(root)[0]) == 5 and len(decoded) == 15
    many(root, 1, start=5)
    assert len(both(root)[0]) == 6 and len(decoded) == 21
    assert len(both(root, size=8)[0]) == 6 and len(decoded) == 27
    assert len(both(root, grey=True)[0]) == 6 and len(decoded) == 33


@pytest.mark.parametrize("ending", [".npy", ".json"])
@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_cache_is_made_again(tmp_path, decoded, ending, kind):
    many(tmp_path / "a", 5)
    (tmp_path / "a" / "bad.png").write_bytes(b"")
    images = both(tmp_path / "a")[0]
    path, = (tmp_path / "cache").glob(f"*{ending}")
    data = path.read_bytes()
    if kind == "gone":
        path.unlink()
    else:
        flipped = data[:40] + bytes([data[40] ^ 1]) + data[41:]
        path.write_bytes({"flipped": flipped, "cut": data[:-1], "empty": b""}[kind])
    again = PictureFolder(tmp_path / "a", SIZE, cache=tmp_path / "cache", progress=False)
    assert len(decoded) == 12
    assert bool(said(again, "damaged, made again")) == ((kind, ending) != ("gone", ".json"))
    np.testing.assert_array_equal(both(tmp_path / "a")[0], images)
    assert len(decoded) == 12 and path.read_bytes() == data


def test_the_default_cache(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    many(tmp_path / "a", 2)
    PictureFolder(tmp_path / "a", SIZE)
    assert len(list((folder.cache_dir() / "pictures").iterdir())) == 2


def test_processes_make_the_same(kinds, monkeypatch, capsys):
    (kinds / "broken.png").write_bytes(b"")
    images, labels, data = both(kinds)
    for path in (kinds.parent / "cache").iterdir():
        path.unlink()
    monkeypatch.setattr(folder, "MANY", 2)
    again = PictureFolder(kinds, SIZE, cache=kinds.parent / "cache")
    assert "16/16" in capsys.readouterr().err and again.said == data.said
    np.testing.assert_array_equal(both(kinds)[0], images)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_not_finished_leaves_nothing(tmp_path, monkeypatch, error):
    many(tmp_path / "a", 5)
    monkeypatch.setattr(folder, "_checksum", raising(error))
    with pytest.raises((KeyboardInterrupt, OSError)):
        PictureFolder(tmp_path / "a", SIZE, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def raising(error):
    def function(*args):
        raise error

    return function


SLOW = """
import multiprocessing, os, sys, time
import npdiffusion
multiprocessing.set_start_method("fork")  # so that the processes are as slow
from npdiffusion.data import PictureFolder, folder
read = folder.read_frames
def slowly(path):
    open(f"{sys.argv[1]}/pid-{os.getpid()}", "w").close()
    time.sleep(0.05)
    return read(path)
folder.read_frames = slowly
npdiffusion.set_num_threads(2)
PictureFolder(f"{sys.argv[1]}/a", 16, cache=f"{sys.argv[1]}/cache")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_an_interruption_ends_the_processes_too(tmp_path, how):
    many(tmp_path / "a", 4)
    for i in range(4, 300):
        os.link(tmp_path / "a" / "0000.png", tmp_path / "a" / f"{i:04}.png")
    life = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path], start_new_session=True, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    os.killpg(life.pid, how) if how == signal.SIGINT else life.kill()
    err = life.communicate(timeout=30)[1]
    workers = [path.name.removeprefix("pid-") for path in tmp_path.glob("pid-*")]
    wait_for(lambda: not any(running(pid) for pid in workers))
    if how == signal.SIGINT:
        assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt"), err
        assert not list((tmp_path / "cache").iterdir())


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(happens):
    deadline = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


MEMORY = """
import sys
import numpy as np
from npdiffusion.data import PictureFolder
data = PictureFolder(sys.argv[1], 64, cache=sys.argv[2], progress=False)
data = PictureFolder(sys.argv[1], 64, cache=sys.argv[2])
rng = np.random.default_rng(0)
for _ in range(300):
    data[rng.integers(0, len(data), 64)]
print(len(data), *(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_memory_does_not_grow_with_the_folder(tmp_path):
    """The pixels of 40 000 pictures take 491 MB: the process stays below 300, 100 of them NumPy, Pillow, tifffile."""
    for i in range(40):
        save(tmp_path / f"{i}.png", noise(64, 64, 3, seed=i))
        (tmp_path / "a" / str(i)).mkdir(parents=True)
        for k in range(1000):
            os.link(tmp_path / f"{i}.png", tmp_path / "a" / str(i) / f"{k}.png")
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "a", tmp_path / "cache"], capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 36000 and peak < 300, done.stdout


# ---------------------------------------------------------------------------------------------- bad input


def test_bad_input(tmp_path):
    root = tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="a is no folder: give the one that holds the pictures"):
        PictureFolder(root, SIZE)
    root.mkdir()
    with pytest.raises(ValueError, match="holds 0 pictures and 0 other files: put more pictures there"):
        PictureFolder(root, SIZE)
    many(root, 1)
    (root / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="holds 1 pictures and 1 other files"):
        PictureFolder(root, SIZE)
    with pytest.raises(FileNotFoundError, match="0000.png is no folder"):
        PictureFolder(root / "0000.png", SIZE)
    (root / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="1 of 2 pictures in .* are broken: broken.png cannot be read as a picture"):
        PictureFolder(root, SIZE, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    for size, split in ((0, "train"), (16.5, "train"), ("16", "train"), (16, "valid")):
        with pytest.raises(ValueError, match=f"got {size!r} and {split!r}"):
            PictureFolder(root, size, split)


def test_links_to_nothing_and_odd_names(tmp_path):
    root = tmp_path / "a"
    many(root, 3)
    (root / "nowhere.png").symlink_to(root / "gone.png")
    (root / "folder.png").mkdir()
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(b"broken")
    data = both(root)[2]
    assert said(data, "1 other files skipped") and said(data, "1 broken files skipped: ?.png cannot be read")
    assert len(data) == 2
    "".join(data.said).encode()
