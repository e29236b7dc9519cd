"""Electron micrographs with their mitochondria: two public sets, the user's own, and drawn ones."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from .download import DataNotFoundError, data_dirs, fetch, find
from .reading import Frame, read_frames

SSTEM_NAME = "groundtruth-drosophila-vnc"
SSTEM_URL = f"https://github.com/unidesigner/{SSTEM_NAME}/archive/refs/heads/master.zip"
SSTEM_SECTIONS, SSTEM_SIDE = 20, 1024
TRAIN_SECTIONS = 16  # sections are numbered from 0; neighbours look alike, so the test sections lie together at the end

# Of each section's pixels followed by its mask (0 or 1), one byte for each pixel. Sections 18 and 19 are not known.
SSTEM_SHA256 = (
    "ec022b4f6dad1b36653259a04ba0fc5c6f48603fc2f73ec63ff7995ed4649a51",
    "b9f478a34a44b64a97ca28a7569d5d23536688630aba0370170cd31daed8c3ea",
    "3da75b96821bf18bb462fdd0369cecda387f9ebf70ff466d8a8abb8a2bbde35b",
    "d731e7b16137e51e8bc1b61207dcd641e594ac308c92576a6a8477f0f753df39",
    "38e5a44f1f53ff4be96e120106f8e9fb077c6d9573981d058871479c76720132",
    "8440e84ded008e00e2f77ed7224c7abbd36c7feb573bcf2c46bbe5ae4ba6060b",
    "161f79129f17ec795eb2cc5f667e4aceb5f3bde04569b715dab9e2fb15aae16e",
    "687e6f600f73e700250fbb6e38fec24173db2a0c17b815f43f0f2ce8ed9b9818",
    "58ac79326008e107d8a73ae3566544fd2c8df379360b097ee433102621692844",
    "7ba2cce958d24d8594d2845f21168bc1a81aa6b3b3c975134813b6af3efc1e25",
    "908782ed495c6eb388057eb22b8ab8c7ceca459fc24a3d90ff1929815e0cdb2b",
    "a86f716b400fe47ebde392cd0e246c312d9894ad3595db997c7ccbc5b4d39ef2",
    "bb5e71299ea141802ca4677638b5e552b6b6d366e37b1a4e86b094b4ffe7356e",
    "993dc5a4eebf397bfb9e678ce9ac7d85c76dbe26937485d2ad7b4b91c5f22bf9",
    "6d83a06d1896096df0c42f83d9fb55f1e71b3008452dbc7a30017c1ca07432fe",
    "1ab72d594bfb551c397f679b8f81581c995640d2ad972e0b0ec96fa766c7d3a0",
    "6c911b6415ba6ba6a20b79cc1849e6bf8eb78451403afae3a7d1e38e0bc678e8",
    "40c22245ee4892dd49831de169cc7d42baaf009220fda518430ed47b4c070d38",
)

LUCCHI_URL = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
LUCCHI_SHAPE = (165, 768, 1024)


class Micrographs:
    """Grey pictures with a mask each: ``images`` uint8 (n, H, W), ``masks`` bool (n, H, W), ``names`` n strings."""

    def __init__(self, images, masks, names):
        self.images, self.masks, self.names = images, masks, list(names)

    def __len__(self):
        return len(self.names)


class SSTEM(Micrographs):
    """Sections of the *Drosophila* larva's ventral nerve cord: ssTEM, 1024×1024 pixels of 4.6 nm, mitochondria marked.

    Gerhard, Funke, Martel, Cardona and Fetter 2013, figshare 856713, licence CC BY-NC-SA 3.0: whoever shows the
    pictures names the authors and the licence. The sections follow each other every 45–50 nm; ``names`` are
    "00" to "19". Sections 00 to 17 are checked against their known SHA-256 each time they are read.

    root: directory whose subdirectory ``groundtruth-drosophila-vnc`` holds stack1/raw/NN.tif and
        stack1/mitochondria/NN.png, as many as there are. Default: first ``$NPDIFFUSION_DATA``, then the cache.
    download: whether a set found nowhere may be downloaded (about 70 MB) into the last of these directories.

    Raises DataNotFoundError, which says what to do, if the sections are not here and cannot be downloaded.
    """

    def __init__(self, root=None, download=True):
        directories = [directory / SSTEM_NAME for directory in data_dirs(root)]
        super().__init__(*find(
            "the ssTEM sections", [directory / "stack1" for directory in directories], _sstem_sections,
            download and (lambda: _sstem_download(directories[-1])),
            f"Unpack {SSTEM_URL} so that there is {directories[0] / 'stack1'}, or set NPDIFFUSION_DATA to a directory "
            f"that has {SSTEM_NAME} in it"))


def _sstem_sections(stack):
    """Images, masks and names of the sections under stack1, those with both files, each verified."""
    raw, marked = stack / "raw", stack / "mitochondria"
    names = sorted({path.stem for path in raw.glob("*.tif")} & {path.stem for path in marked.glob("*.png")})
    if not names:
        raise ValueError("no section with both stack1/raw/NN.tif and stack1/mitochondria/NN.png")
    images = [read_micrograph(raw / f"{name}.tif") for name in names]
    masks = [_single(marked / f"{name}.png", _not_black) for name in names]
    for name, image, mask in zip(names, images, masks):
        if not image.shape == mask.shape == (SSTEM_SIDE, SSTEM_SIDE):
            raise ValueError(f"section {name}: expected {SSTEM_SIDE} pixels both ways, got {image.shape} and a mask "
                             f"of {mask.shape}")
        known = SSTEM_SHA256[int(name)] if name.isdigit() and int(name) < len(SSTEM_SHA256) else None
        if known and hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() != known:
            raise ValueError(f"section {name}: not the known pixels or not the known mask")
    return np.stack(images), np.stack(masks), names


def _sstem_download(directory):
    """Fetch the archive, unpack what is needed beside ``directory``, verify it, and only then move it there."""
    if directory.exists():
        raise FileExistsError(f"{directory} is in the way of a download: move it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=directory.parent) as temporary:
        unpacked = Path(temporary) / f"{SSTEM_NAME}-master"
        wanted = ["README.md", *(f"stack1/{kind}" for n in range(SSTEM_SECTIONS)
                                 for kind in (f"raw/{n:02d}.tif", f"mitochondria/{n:02d}.png"))]

        def check(data):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(temporary, [f"{unpacked.name}/{name}" for name in wanted])
            return _sstem_sections(unpacked / "stack1")

        sections = fetch([SSTEM_URL], Path(temporary) / "master.zip", check)
        os.replace(unpacked, directory)
    return sections


class Lucchi(Micrographs):
    """EPFL's hippocampus, mitochondria marked: FIB-SEM, 165 sections of 768×1024 pixels of 5 nm (Lucchi et al. 2013).

    split: "training" (or "train"), "testing" (or "test").
    root, download: as for :class:`SSTEM`; the subdirectory is ``lucchi``, with EPFL's files training.tif,
        training_groundtruth.tif, testing.tif and testing_groundtruth.tif (130 MB each).

    Raises DataNotFoundError as :class:`SSTEM`, ValueError for another split.
    """

    def __init__(self, split="training", root=None, download=True):
        full = {"train": "training", "test": "testing"}.get(split, split)
        if full not in ("training", "testing"):
            raise ValueError(f"split must be 'training' or 'testing', got {split!r}")
        images = _lucchi_stack(full, Frame.grey, root, download)
        masks = _lucchi_stack(f"{full}_groundtruth", _not_black, root, download)
        super().__init__(images, masks, [f"{full}-{i:03d}" for i in range(len(images))])


def _lucchi_stack(name, convert, root, download):
    """One of the four files as an array (165, 768, 1024)."""
    def stack(source):
        frames = _read(source, convert)
        if frames.shape != LUCCHI_SHAPE:
            raise ValueError(f"expected (sections, height, width) = {LUCCHI_SHAPE}, got {frames.shape}")
        return frames

    paths = [directory / "lucchi" / f"{name}.tif" for directory in data_dirs(root)]
    urls = [f"{LUCCHI_URL}{name}.tif"]
    return find(f"EPFL's {name}.tif", paths, stack,
                download and (lambda: fetch(urls, paths[-1], lambda data: stack(io.BytesIO(data)))),
                f"Put it (from {LUCCHI_URL}) there")


def load_micrographs(name):
    """The micrographs behind ``--data``: the pair (train, test), both :class:`Micrographs`.

    "sstem" (sections 00–15, and from 16 on), "lucchi" (its own two volumes) or "synthetic" (8 and 2 drawn ones).

    Raises DataNotFoundError as :class:`SSTEM` and if all its sections are on one side, ValueError for other names.
    """
    if name == "sstem":
        data = SSTEM()
        train = np.array([int(section) < TRAIN_SECTIONS for section in data.names])
        if train.all() or not train.any():
            raise DataNotFoundError(f"training needs ssTEM sections below and from {TRAIN_SECTIONS}, there are only "
                                    f"{', '.join(data.names)}; get the others, or use --data synthetic")
        return tuple(Micrographs(data.images[part], data.masks[part], np.array(data.names)[part].tolist())
                     for part in (train, ~train))
    if name == "lucchi":
        return Lucchi("training"), Lucchi("testing")
    if name == "synthetic":
        return SyntheticMicrographs(8, (512, 512), seed=0), SyntheticMicrographs(2, (512, 512), seed=1)
    raise ValueError(f"data must be 'sstem', 'lucchi' or 'synthetic', got {name!r}")


def load_pairs(images_dir, masks_dir):
    """The user's own micrographs and masks: files with the same name (but for the ending) in two directories.

    Images are read as by :func:`read_micrograph`; of a file with several frames, each counts as a picture. In masks,
    all that is neither black nor transparent is foreground: any number of a label, any colour; of fractions and in
    JPEG, whose tones are not exact, what is at least half white. All pictures must have one size.

    Raises ValueError: no files, names that do not match, sizes that differ, masks that are all empty or all foreground,
    a damaged file.
    """
    folders = [Path(images_dir), Path(masks_dir)]
    files = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no directory")
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
        files.append({path.stem: path for path in paths})
        if not paths:
            raise ValueError(f"{folder} has no files; put pictures (TIFF, PNG, …) there")
        if len(files[-1]) < len(paths):
            raise ValueError(f"{folder} has several files of one name that differ only in their ending")
    if alone := sorted(set(files[0]) ^ set(files[1])):
        raise ValueError(f"each image in {folders[0]} needs a mask of the same name in {folders[1]}, and each mask an "
                         f"image; alone are: {', '.join(alone[:8])}{' …' if len(alone) > 8 else ''}")
    images, masks, names = [], [], []
    for stem, path in files[0].items():
        image, mask = _read(path, Frame.grey), _read(files[1][stem], _foreground)
        if image.shape != mask.shape:
            raise ValueError(f"{path} and its mask differ in (frames, height, width): {image.shape} and {mask.shape}")
        images.extend(image)
        masks.extend(mask)
        if image[0].shape != images[0].shape:
            raise ValueError(f"{path} is {image[0].shape} pixels large, the pictures before it {images[0].shape}: "
                             "crop them all to one size")
        names += [stem] if len(image) == 1 else [f"{stem}-{i:03d}" for i in range(len(image))]
    if not np.any(masks):
        raise ValueError(f"the masks in {folders[1]} are all empty: expected some pixels that are not black")
    if np.all(masks):
        raise ValueError(f"the masks in {folders[1]} are foreground all over: expected a black or transparent ground")
    return Micrographs(np.stack(images), np.stack(masks), names)


def read_micrograph(path):
    """Read one grey picture as uint8 (H, W).

    It is turned upright, and colours to grey; transparency is not looked at. 8 bits are taken as they are (signed ones
    plus 128). Pictures of more bits, whose full scale is unknown, are stretched: their darkest thousandth of pixels
    becomes 0, the brightest 255.

    Raises FileNotFoundError; ValueError for no picture, a damaged one, one with several frames or values not finite, or
    one in a form that is not supported: its message says so.
    """
    return _single(path, Frame.grey)


def _single(path, convert):
    frames = _read(path, convert)
    if len(frames) > 1:
        raise ValueError(f"{path} has {len(frames)} frames, expected one: split it, or give the folder it lies in")
    return frames[0]


def _read(source, convert):
    """All frames of a picture file (a path or io.BytesIO), each through ``convert``: an array (n, H, W)."""
    frames = [convert(frame) for frame in read_frames(source)]
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{source} has frames of different sizes")
    return np.stack(frames)


def _not_black(frame):
    """What is neither black nor transparent in a frame: bool (H, W). Stray grey edges count, as do all colours."""
    values = np.atleast_3d(frame.values).max(2) > 0
    return values if frame.alpha is None else values & (frame.alpha >= 0.5)


def _foreground(frame):
    """As :func:`_not_black`, but where tones are not exact (JPEG) or fractions of 1, from one half on."""
    values = np.atleast_3d(frame.values)
    if frame.lossy and values.dtype == np.uint8:
        values = values >= 128
    elif values.dtype.kind == "f" and (values % 1 != 0).any():
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"a mask holds fractions beyond 0 and 1, from {values.min()} to {values.max()}: "
                             "save it as 0 and 255")
        values = values >= 0.5
    return _not_black(frame._replace(values=values))


class SyntheticMicrographs(Micrographs):
    """``n`` drawn pictures that look somewhat like neural tissue under the electron microscope; ``seed`` fixes all.

    Cells are the regions of a Voronoi diagram (Worley 1996) over smoothly warped coordinates, membranes its borders;
    in some cells lies a mitochondrion, an ellipse with a dark rim and stripes (cristae); specks and grain lie over all.
    A stand-in where no real micrographs can be had: results on it say nothing about real ones.

    Raises ValueError for n < 1 or sides below 32 pixels.
    """

    def __init__(self, n, size=(1024, 1024), seed=0):
        if n < 1 or min(size) < 32:
            raise ValueError(f"expected n >= 1 pictures of at least 32×32 pixels, got n={n}, size={size}")
        rng = np.random.default_rng(seed)
        images, masks = zip(*(_draw(*size, rng) for _ in range(n)))
        super().__init__(np.stack(images), np.stack(masks), [f"synthetic-{i:02d}" for i in range(n)])


GRID = 80  # pixels between the cells' seeds


def _draw(height, width, rng):
    """One micrograph (height, width) uint8, and where its mitochondria are."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y += _smooth(height, width, 60, 17, rng) + _smooth(height, width, 20, 3, rng)
    x += _smooth(height, width, 60, 17, rng) + _smooth(height, width, 20, 3, rng)

    rows, columns = height // GRID + 4, width // GRID + 4  # a rim of two seeds beyond each edge
    seeds = (np.mgrid[:rows, :columns] - 1.5).transpose(1, 2, 0) + rng.uniform(-0.4, 0.4, (rows, columns, 2))
    seeds = (seeds.reshape(-1, 2) * GRID)[rng.random(rows * columns) < 0.7].astype(np.float32)
    first, second = np.full((2, height, width), 1e9, np.float32)  # distances to the nearest seeds
    for sy, sx in seeds:
        reach = 2 * GRID + 60  # no pixel's second nearest seed is likely to be farther
        box = tuple(slice(max(0, int(v) - reach), max(0, int(v) + reach)) for v in (sy, sx))
        distance = np.hypot(y[box] - sy, x[box] - sx)
        second[box] = np.minimum(second[box], np.maximum(first[box], distance))
        first[box] = np.minimum(first[box], distance)
    border = second - first  # about twice the distance to the membrane

    tone = _smooth(height, width, 120, 14, rng)
    image = 172 + tone + _smooth(height, width, 12, 9, rng) - _specks(height, width, rng) * (border > 12)
    mask = np.zeros((height, width), bool)
    for sy, sx in seeds[rng.random(len(seeds)) < 0.25]:
        long, short, angle = rng.uniform(24, 48), rng.uniform(15, 25), rng.uniform(0, np.pi)
        box = tuple(slice(max(0, int(v) - 80), max(0, int(v) + 80)) for v in (sy, sx))
        cos, sin, dy, dx = np.cos(angle), np.sin(angle), y[box] - sy, x[box] - sx
        along, across = (cos * dx + sin * dy).astype(np.float32), (cos * dy - sin * dx).astype(np.float32)
        radius = np.hypot(along / long, across / short)
        inside = (radius < 1) & (border[box] > 10)
        stripes = np.sin(along * (2 * np.pi / rng.uniform(8, 13)) + 0.06 * across + tone[box] / 6)
        filling = 104 + 18 * stripes * (radius < 0.8) - 50 * np.exp(-((radius - 0.95) / 0.07) ** 2)
        image[box] = np.where(inside, filling + (image[box] - 172) * 0.4, image[box])
        mask[box] |= inside
    thickness = 7 + np.maximum(_smooth(height, width, 80, 5, rng), -3)  # dark bands here and there
    image -= 125 * np.exp(-(border / thickness) ** 2) * ~mask
    image += 14 * _blurred(rng.standard_normal((height, width), dtype=np.float32))
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask


def _smooth(height, width, wavelength, deviation, rng):
    """A smooth random field (height, width) float32: normal knots every ``wavelength`` pixels, bicubic between."""
    knots = rng.normal(0, deviation, (height // wavelength + 4, width // wavelength + 4)).astype(np.float32)
    box = (1, 1, 1 + width / wavelength, 1 + height / wavelength)
    return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _specks(height, width, rng):
    """Darkness of vesicles and ribosomes: blurred dots scattered over the picture."""
    dots = np.zeros((height, width), np.float32)
    count = height * width // 250
    dots[rng.integers(0, height, count), rng.integers(0, width, count)] = rng.uniform(100, 400, count)
    return _blurred(_blurred(dots))


def _blurred(image):
    """The image (H, W) under the binomial filter [1, 2, 1]/4 along both axes, edges repeated."""
    for _ in range(2):
        padded = np.pad(image, [(1, 1), (0, 0)], mode="edge")
        image = ((padded[:-2] + 2 * image + padded[2:]) / 4).T
    return image
