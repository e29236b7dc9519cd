"""Electron micrographs with their mitochondria: two public sets, and the user's own."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .download import DIGESTS, fetch, find
from .reading import Frame, read_frames

SSTEM_NAME = "groundtruth-drosophila-vnc"
SSTEM_URL = f"https://github.com/unidesigner/{SSTEM_NAME}/archive/refs/heads/master.zip"
SSTEM_SECTIONS, SSTEM_SIDE = 20, 1024
TRAIN_SECTIONS = 16  # sections are numbered from 0; neighbours look alike, so the test sections lie together at the end
SSTEM_SHA256 = DIGESTS["sstem"]

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
        super().__init__(*find(
            "the ssTEM sections", root, [f"{SSTEM_NAME}/stack1"], _sstem_sections, download and _sstem_download,
            f"Unpack {SSTEM_URL} so that its stack1 is there"))


def _sstem_sections(stack):
    """Images, masks and names of the sections under stack1, those with both files, each verified."""
    raw, marked = stack / "raw", stack / "mitochondria"
    names = sorted({path.stem for path in raw.glob("*.tif")} & {path.stem for path in marked.glob("*.png")})
    if not names:
        raise ValueError("no section with both stack1/raw/NN.tif and stack1/mitochondria/NN.png")
    images = [read_micrograph(raw / f"{name}.tif") for name in names]
    masks = [_single(marked / f"{name}.png", _foreground) for name in names]
    for name, image, mask in zip(names, images, masks):
        if not image.shape == mask.shape == (SSTEM_SIDE, SSTEM_SIDE):
            raise ValueError(f"section {name}: expected {SSTEM_SIDE} pixels both ways, got {image.shape} and a mask "
                             f"of {mask.shape}")
        known = SSTEM_SHA256.get(name)
        if known and hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() != known:
            raise ValueError(f"section {name}: not the known pixels or not the known mask")
    return np.stack(images), np.stack(masks), names


def _sstem_download(stack):
    """Fetch the archive, unpack what is needed beside the directory of ``stack``, verify it, and only then move it."""
    directory = stack.parent
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
        masks = _lucchi_stack(f"{full}_groundtruth", _foreground, root, download)
        super().__init__(images, masks, [f"{full}-{i:03d}" for i in range(len(images))])


def _lucchi_stack(name, convert, root, download):
    """One of the four files as an array (165, 768, 1024)."""
    def stack(source):
        frames = _read(source, convert)
        if frames.shape != LUCCHI_SHAPE:
            raise ValueError(f"expected (sections, height, width) = {LUCCHI_SHAPE}, got {frames.shape}")
        return frames

    return find(f"EPFL's {name}.tif", root, [f"lucchi/{name}.tif"], stack,
                download and (lambda path: fetch([LUCCHI_URL + path.name], path, lambda data: stack(io.BytesIO(data)))),
                f"Put it (from {LUCCHI_URL}) there")


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
        raise ValueError(f"{path} has {len(frames)} frames, expected one: save each as a file of its own")
    return frames[0]


def _read(source, convert):
    """All frames of a picture file (a path or io.BytesIO), each through ``convert``: an array (n, H, W)."""
    frames = [convert(frame) for frame in read_frames(source)]
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{source} has frames of different sizes")
    return np.stack(frames)


def _foreground(frame):
    """What is neither black nor transparent in a frame: bool (H, W). Stray grey edges count, as do all colours; but
    where tones are not exact (JPEG) or fractions of 1, what is at least half white."""
    values = np.atleast_3d(frame.values)
    if frame.lossy and values.dtype == np.uint8:
        values = values >= 128
    elif values.dtype.kind == "f" and (values % 1 != 0).any():
        if values.min() < 0 or values.max() > 1:
            raise ValueError(f"a mask holds fractions beyond 0 and 1, from {values.min()} to {values.max()}: "
                             "save it as 0 and 255")
        values = values >= 0.5
    seen = values.max(2) > 0
    return seen if frame.alpha is None else seen & (frame.alpha >= 0.5)
