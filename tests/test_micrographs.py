"""Micrographs: found, verified, downloaded, drawn, or the user's own in every kind of file."""

import hashlib
import io
import urllib.error
import zipfile

import numpy as np
import pytest
from PIL import Image

from npdiffusion.data import (SSTEM, DataNotFoundError, Lucchi, SyntheticMicrographs, download, load_micrographs,
                              load_pairs, micrographs, read_micrograph)

SIDE = 16
TOP = "groundtruth-drosophila-vnc-master"


def no_network(url, timeout):
    raise urllib.error.URLError("Temporary failure in name resolution")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data on this machine, and no network."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "user"))
    monkeypatch.delenv("NPDIFFUSION_DATA", raising=False)
    monkeypatch.setattr(download, "urlopen", no_network)


def serve(monkeypatch, data):
    """Stand in for the network: every url delivers ``data``. Returns the list of urls asked for."""
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        response = io.BytesIO(data)
        response.headers = {"Content-Length": str(len(data))}
        return response

    monkeypatch.setattr(download, "urlopen", urlopen)
    return asked


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def small(monkeypatch):
    """A small ssTEM set of 20 sections: {path: bytes}, images, masks; with checksums to match for the first 18."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, SIDE, SIDE), np.uint8)
    masks = rng.random((20, SIDE, SIDE)) < 0.3
    files = {"README.md": b"licence"}
    for n in range(20):
        grey = np.where(masks[n], rng.integers(1, 256, (SIDE, SIDE)), 0).astype(np.uint8)  # stray grey edges
        files[f"stack1/raw/{n:02d}.tif"] = encoded(images[n], "tiff")
        files[f"stack1/mitochondria/{n:02d}.png"] = encoded(masks[n] if n in (1, 7, 18) else grey, "png")
    monkeypatch.setattr(micrographs, "SSTEM_SIDE", SIDE)
    monkeypatch.setattr(micrographs, "SSTEM_SHA256", {
        f"{n:02d}": hashlib.sha256(images[n].tobytes() + masks[n].tobytes()).hexdigest() for n in range(18)})
    return files, images, masks


def fill(root, files):
    for name, data in files.items():
        path = root / micrographs.SSTEM_NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def packed(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{TOP}/stack2/raw/00.tif", b"not wanted")
        for name, data in files.items():
            archive.writestr(f"{TOP}/{name}", data)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------- ssTEM


@pytest.mark.parametrize("how", ["root", "environment", "cache"])
def test_sections_are_found(small, tmp_path, monkeypatch, how):
    files, images, masks = small
    root = fill(download.cache_dir() if how == "cache" else tmp_path / "own", files)
    if how == "environment":
        monkeypatch.setenv("NPDIFFUSION_DATA", str(root))
    data = SSTEM(root=root if how == "root" else None, download=False)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.masks, masks)
    assert data.images.dtype == np.uint8 and data.masks.dtype == bool and len(data) == 20
    assert data.names == [f"{n:02d}" for n in range(20)]


def test_sections_that_are_there_are_used(small, tmp_path, monkeypatch):
    files, images, masks = small
    some = {name: data for name, data in files.items() if name[-6:-4] in ("03", "15", "16", "18")}
    del some["stack1/mitochondria/18.png"]
    monkeypatch.setenv("NPDIFFUSION_DATA", str(fill(tmp_path, some)))
    train, test = load_micrographs("sstem")
    assert train.names == ["03", "15"] and test.names == ["16"]
    np.testing.assert_array_equal(train.images, images[[3, 15]])
    np.testing.assert_array_equal(test.masks, masks[[16]])
    (tmp_path / micrographs.SSTEM_NAME / "stack1/raw/16.tif").unlink()
    with pytest.raises(DataNotFoundError, match="there are only 03, 15; .*--data synthetic"):
        load_micrographs("sstem")


def test_download_unpacks_what_is_needed_once(small, monkeypatch, capsys):
    files, images, masks = small
    asked = serve(monkeypatch, packed(files))
    data = SSTEM()
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.masks, masks)
    cache = download.cache_dir()
    assert [path.name for path in cache.iterdir()] == [micrographs.SSTEM_NAME]  # no archive, nothing temporary
    assert {str(path.relative_to(cache / micrographs.SSTEM_NAME)) for path in cache.rglob("*.*") if path.is_file()
            } == set(files)
    assert "master.zip" in capsys.readouterr().err  # the progress bar
    SSTEM()
    assert asked == [micrographs.SSTEM_URL]


def damaged(files, kind):
    """What a bad server sends instead of ``packed(files)``, or bad sections."""
    other = np.zeros((SIDE, SIDE), np.uint8)
    if kind == "web page":
        return b"<html>Please log in to this network</html>"
    if kind == "cut short":
        return packed(files)[:-40]
    if kind == "file missing":
        return packed({name: data for name, data in files.items() if name != "stack1/raw/19.tif"})
    if kind == "flipped":
        return packed(files).replace(files["stack1/raw/05.tif"][50:100], bytes(50))
    name, data = {"other pixels": ("stack1/raw/05.tif", encoded(other, "tiff")),
                  "other mask": ("stack1/mitochondria/05.png", encoded(other, "png")),
                  "other size": ("stack1/raw/19.tif", encoded(other[1:], "tiff")),
                  "no picture": ("stack1/raw/19.tif", b"II*")}[kind]
    return packed({**files, name: data})


@pytest.mark.parametrize("kind", ["web page", "cut short", "file missing", "flipped", "other pixels", "other mask",
                                  "other size", "no picture"])
def test_bad_download_leaves_nothing(small, monkeypatch, tmp_path, kind):
    serve(monkeypatch, damaged(small[0], kind))
    with pytest.raises(DataNotFoundError, match="could not be downloaded") as caught:
        SSTEM()
    assert micrographs.SSTEM_URL in str(caught.value).split("\n", 1)[1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_network_says_what_to_do(small, monkeypatch, tmp_path):
    monkeypatch.setenv("NPDIFFUSION_DATA", str(tmp_path / "own"))
    with pytest.raises(DataNotFoundError) as caught:
        load_micrographs("sstem")
    for words in (str(tmp_path / "own"), str(download.cache_dir()), "--data synthetic", "NPDIFFUSION_DATA",
                  "name resolution", micrographs.SSTEM_URL):
        assert words in str(caught.value)
    with pytest.raises(DataNotFoundError, match="--data synthetic") as caught:
        SSTEM(download=False)
    assert "name resolution" not in str(caught.value)


def test_damaged_sections_on_disk_are_not_used_and_not_replaced(small, monkeypatch, tmp_path):
    files, images, _ = small
    own = fill(tmp_path / "own", {**files, "stack1/raw/05.tif": files["stack1/raw/04.tif"]})
    serve(monkeypatch, packed(files))
    with pytest.warns(UserWarning, match="section 05"), pytest.raises(DataNotFoundError, match="in the way"):
        SSTEM(root=own)
    monkeypatch.setenv("NPDIFFUSION_DATA", str(own))  # the download goes to the cache
    with pytest.warns(UserWarning, match="is not used: section 05"):
        np.testing.assert_array_equal(SSTEM().images, images)
    assert (own / micrographs.SSTEM_NAME / "stack1/raw/05.tif").read_bytes() == files["stack1/raw/04.tif"]


# ---------------------------------------------------------------------------------------------- Lucchi


@pytest.fixture
def stacks(monkeypatch, tmp_path):
    """EPFL's four files as tiny multipage TIFFs of 3 sections, in tmp_path/lucchi; the arrays by name."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(micrographs, "LUCCHI_SHAPE", (3, 10, 12))
    (tmp_path / "lucchi").mkdir()
    arrays = {}
    for split in ("training", "testing"):
        arrays[split] = rng.integers(0, 256, (3, 10, 12), np.uint8)
        arrays[f"{split}_groundtruth"] = np.where(rng.random((3, 10, 12)) < 0.2, 255, 0).astype(np.uint8)
    for name, array in arrays.items():
        save_stack(tmp_path / "lucchi" / f"{name}.tif", array)
    return arrays


def save_stack(path, array):
    first, *others = map(Image.fromarray, array)
    first.save(path, save_all=True, append_images=others)


def test_lucchi(stacks, tmp_path, monkeypatch):
    monkeypatch.setenv("NPDIFFUSION_DATA", str(tmp_path))
    for data, split in zip(load_micrographs("lucchi"), ("training", "testing")):
        np.testing.assert_array_equal(data.images, stacks[split])
        np.testing.assert_array_equal(data.masks, stacks[f"{split}_groundtruth"] > 0)
        assert data.masks.dtype == bool and data.names == [f"{split}-{i:03d}" for i in range(3)]
    np.testing.assert_array_equal(Lucchi("test").images, stacks["testing"])
    with pytest.raises(ValueError, match="'training' or 'testing', got 'valid'"):
        Lucchi("valid")


def test_lucchi_download(stacks, tmp_path, monkeypatch):
    data = (tmp_path / "lucchi/training.tif").read_bytes()
    asked = serve(monkeypatch, data)
    Lucchi("training")
    assert asked == [micrographs.LUCCHI_URL + name for name in ("training.tif", "training_groundtruth.tif")]
    assert (download.cache_dir() / "lucchi/training.tif").read_bytes() == data
    for bad in (data[:300], encoded(stacks["training"][0], "tiff"), b"<html>"):
        serve(monkeypatch, bad)
        with pytest.raises(DataNotFoundError, match=r"(?s)EPFL's testing.tif .*--data synthetic.*ElectronMicroscopy"):
            Lucchi("testing")
    assert not (download.cache_dir() / "lucchi/testing.tif").exists()


def test_damaged_lucchi_on_disk(stacks, tmp_path):
    save_stack(tmp_path / "lucchi/training.tif", stacks["training"][:2])
    with pytest.warns(UserWarning, match="not used"), pytest.raises(DataNotFoundError, match=r"got \(2, 10, 12\)"):
        Lucchi("training", root=tmp_path, download=False)


# ---------------------------------------------------------------------------------------------- the user's pairs


def folders(tmp_path, images, masks):
    """Two folders with the given {file name: array or bytes}."""
    result = []
    for name, files in (("images", images), ("masks", masks)):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            elif content.ndim == 3 and content.shape[2] > 4:
                save_stack(folder / file, content)
            else:
                Image.fromarray(content).save(folder / file)
        result.append(folder)
    return result


RNG = np.random.default_rng(1)
GREY = RNG.integers(0, 256, (8, 10), np.uint8)
MASK = np.where(RNG.random((8, 10)) < 0.3, 255, 0).astype(np.uint8)


def test_pairs_by_name_whatever_the_ending(tmp_path):
    data = load_pairs(*folders(tmp_path, {"b.png": GREY, "a.tif": GREY[::-1].copy(), ".DS_Store": b"x"},
                               {"a.png": MASK > 0, "b.bmp": MASK // 200}))
    assert data.names == ["a", "b"]
    np.testing.assert_array_equal(data.images, [GREY[::-1], GREY])
    np.testing.assert_array_equal(data.masks, [MASK > 0, MASK > 0])


def test_stacks_pair_frame_by_frame(tmp_path):
    images, masks = RNG.integers(0, 256, (3, 8, 10), np.uint8), np.stack([MASK, 0 * MASK, MASK[::-1]])
    data = load_pairs(*folders(tmp_path, {"v.tif": images}, {"v.tif": masks}))
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.masks, masks > 0)
    assert data.names == ["v-000", "v-001", "v-002"]
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"v.tif and its mask differ .* \(3, 8, 10\) and \(1, 8, 10\)"):
        load_pairs(*folders(tmp_path / "other", {"v.tif": images}, {"v.tif": MASK}))


@pytest.mark.parametrize("images, masks, message", [
    ({}, {}, "images has no files"),
    ({"a.png": GREY}, {}, "masks has no files"),
    ({"a.png": GREY, "b.png": GREY, "c.png": GREY}, {"a.png": MASK, "d.png": MASK}, "alone are: b, c, d"),
    ({"a.png": GREY, "a.tif": GREY}, {"a.png": MASK}, "several files of one name"),
    ({"a.png": GREY}, {"a.png": MASK[1:]}, r"differ .* \(1, 8, 10\) and \(1, 7, 10\)"),
    ({"a.png": GREY, "b.png": GREY[1:]}, {"a.png": MASK, "b.png": MASK[1:]}, "crop them all to one size"),
    ({"a.png": GREY}, {"a.png": 0 * MASK}, "masks are all empty"),
    ({"a.png": b"no picture"}, {"a.png": MASK}, "a.png cannot be read as a picture"),
    ({"a.png": GREY}, {"a.png": encoded(MASK, "png")[:60]}, "a.png cannot be read as a picture"),
])
def test_pairs_that_do_not_work(tmp_path, images, masks, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(*folders(tmp_path, images, masks))


def test_one_empty_mask_among_others_is_fine(tmp_path):
    data = load_pairs(*folders(tmp_path, {"a.png": GREY, "b.png": GREY}, {"a.png": MASK, "b.png": 0 * MASK}))
    assert data.masks[0].any() and not data.masks[1].any()


def test_no_directory(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no directory"):
        load_pairs(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "1", "CMYK"])
def test_colours_become_grey(tmp_path, mode):
    picture = Image.fromarray(np.where(MASK, 200, 0).astype(np.uint8))
    converted = picture.convert("RGB").quantize(4) if mode == "P" else picture.convert(mode)
    converted.save(tmp_path / "a.tif")
    image = read_micrograph(tmp_path / "a.tif")
    assert image.dtype == np.uint8 and image.shape == (8, 10)
    if mode != "1":  # which dithers
        np.testing.assert_allclose(image, np.where(MASK, 200, 0), atol=2)
    if mode in ("L", "P", "RGB", "RGBA", "LA"):  # the same file as a mask
        Image.fromarray(GREY).save(tmp_path / "image.png")
        data = load_pairs(*folders(tmp_path, {"a.tif": GREY}, {"a.tif": (tmp_path / "a.tif").read_bytes()}))
        np.testing.assert_array_equal(data.masks[0], MASK > 0)


@pytest.mark.parametrize("kind, dtype", [("png", np.uint16), ("tiff", np.uint16), ("tiff", ">u2"),
                                         ("tiff", np.int32), ("tiff", np.float32)])
def test_more_than_8_bits_are_stretched(tmp_path, kind, dtype):
    """A 12-bit camera's picture with two hot pixels: the range without them fills 0 to 255."""
    values = 500.0 + np.arange(10000).reshape(100, 100) % 1000
    hot = values.copy()
    hot[0, 0], hot[50, 50] = 4095, 0
    path = tmp_path / f"a.{kind}"
    if dtype == ">u2":
        Image.frombytes("I;16B", (100, 100), hot.astype(dtype).tobytes()).save(path)
    else:
        Image.fromarray(hot.astype(dtype)).save(path)
    image = read_micrograph(path).astype(int)
    expected = np.clip((values - 500) * 255 / 999, 0, 255)
    assert np.abs(image - expected)[hot == values].max() < 2 and image[0, 0] == 255 and image[50, 50] == 0
    Image.fromarray(np.full((5, 5), 700, np.uint16)).save(tmp_path / "constant.png")
    assert np.ptp(read_micrograph(tmp_path / "constant.png")) == 0


def test_what_is_no_micrograph(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tif"):
        read_micrograph(tmp_path / "nowhere.tif")
    save_stack(tmp_path / "stack.tif", np.stack([GREY, GREY]))
    with pytest.raises(ValueError, match="stack.tif has 2 frames, expected one"):
        read_micrograph(tmp_path / "stack.tif")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match="not finite"):
        read_micrograph(tmp_path / "nan.tif")


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "bmp"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8)).save(path)
    data = path.read_bytes()
    for part in (0, 0.05, 0.5, 0.9):
        path.write_bytes(data[:int(len(data) * part)])
        with pytest.raises(ValueError, match=f"a.{suffix} cannot be read as a picture .*: give a whole TIFF or PNG"):
            read_micrograph(path)


# ---------------------------------------------------------------------------------------------- drawn micrographs


def test_synthetic_micrographs():
    data = SyntheticMicrographs(3, (200, 300), seed=4)
    assert data.images.shape == data.masks.shape == (3, 200, 300) and len(set(data.names)) == 3
    assert data.images.dtype == np.uint8 and data.masks.dtype == bool
    np.testing.assert_array_equal(SyntheticMicrographs(3, (200, 300), seed=4).images, data.images)
    assert not np.array_equal(SyntheticMicrographs(1, (200, 300), seed=5).images[0], data.images[0])
    assert 30 < data.images.std() < 70 and 100 < data.images.mean() < 170  # as the real ones


def test_synthetic_mitochondria_can_be_seen_but_not_by_their_grey_alone():
    train, test = load_micrographs("synthetic")
    assert not np.array_equal(train.images[0], test.images[0])
    images, masks = train.images.astype(float), train.masks
    assert 0.02 < masks.mean() < 0.12
    assert images[~masks].mean() - images[masks].mean() > 25  # darker than the cytoplasm
    best = 0
    for low in range(0, 200, 10):
        for high in range(low + 10, 210, 10):
            guess = (images >= low) & (images < high)
            best = max(best, (guess & masks).sum() / (guess | masks).sum())
    assert best < 0.5


def test_synthetic_arguments():
    with pytest.raises(ValueError, match="n >= 1"):
        SyntheticMicrographs(0)
    with pytest.raises(ValueError, match="32×32"):
        SyntheticMicrographs(1, (20, 400))
    with pytest.raises(ValueError, match="'sstem', 'lucchi' or 'synthetic', got 'mnist'"):
        load_micrographs("mnist")


# ---------------------------------------------------------------------------------------------- the real thing


def test_the_real_sections(monkeypatch):
    monkeypatch.undo()  # the environment as it is
    try:
        data = SSTEM(download=False)
    except DataNotFoundError as error:
        pytest.skip(f"the ssTEM sections are not on this machine: {str(error)[:90]}")
    assert data.images.shape == data.masks.shape == (len(data), 1024, 1024)
    assert 0.04 < data.masks.mean() < 0.07
