"""A folder of the user's own pictures as a data set: each is decoded once, into a file that training reads from."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..distributed import broadcast
from ..files import atomic_write
from ..threads import get_num_threads
from .download import cache_dir
from .mnist import Dataset
from .pictures import cut_out
from .reading import read_frames

VERSION = 1  # of what is made from a picture: with another one, all are decoded again
MANY = 200   # pictures, from which on it pays to start processes
FEW = 1000   # pictures, below which a warning is due
DONE = ("had colours", "turned upright", "cropped to a square", "reduced", "enlarged", "transparent: laid on white",
        "of more than 8 bits: each stretched to its full scale", "of several in a file: the first taken")


class PictureFolder(Dataset):
    """Pictures of any size and kind in a folder: ``dataset[i]`` is the pair (images, labels), read when asked for.

    Of each file the first picture is turned upright, brought to 8 bits (deeper ones are stretched), laid on white where
    it is transparent, cropped to the square in its middle and resized (Lanczos). As in torchvision's ImageFolder,
    subfolders are classes, in sorted order; if pictures lie beside them, there are no classes, and all count.

    root: the folder. What is hidden, has no picture's ending or is broken is skipped. size: of the images' sides.
    split: "test" is a tenth of the pictures, at least one, drawn by a permutation of their sorted names with seed 0;
        "train" is the rest.
    grey: whether to make all grey. Else they are RGB, but for folders in which all are stored as grey.
    cache: directory for the decoded pictures (size² bytes each with ``grey``, else 3·size²), by default ``pictures`` in
        the user's cache. Used again until a name, a length or a time of change differs. All MPI ranks must see it.
    progress: whether to show a bar.

    images: (N, C, size, size) float32 in [-1, 1]. ``labels``: (N,) int64, 0 without classes. ``classes``: their names.
    ``shape``: (C, size, size). ``said``: short sentences on what was found and done in the whole folder.
    Raises FileNotFoundError without such a folder, ValueError for fewer than 2 pictures or another split or size.
    """

    def __init__(self, root, size, split="train", grey=False, cache=None, progress=True):
        if split not in ("train", "test") or not isinstance(size, int) or size < 1:
            raise ValueError(f"expected a size in pixels and split 'train' or 'test', got {size!r} and {split!r}")
        root, cache = Path(root).expanduser(), Path(cache or cache_dir() / "pictures").expanduser().absolute()
        names, others, self._path, facts, damaged = broadcast(lambda: _decoded(root, size, grey, cache, progress))
        broken, (coloured, *done) = dict(facts["broken"]), facts["done"]
        rows = np.array([i for i in range(len(names)) if i not in broken])
        n, tops = len(rows), [names[i].rpartition("/")[0].partition("/")[0] for i in rows]  # "" in the folder itself
        folders, labels = np.unique(tops, return_inverse=True)
        self.classes = folders.tolist() if folders[0] else []
        self.shape = (3 if coloured and not grey else 1, size, size)

        said = [(n, f"{'RGB' if self.shape[0] == 3 else 'grey'} pictures, {size}×{size}"),
                (len(self.classes), f"classes, by subfolder: {_first(self.classes, 10)}"),
                (0 if folders[0] else len(folders) - 1, "subfolders, but no classes: pictures lie beside them"),
                (others, "other files skipped: hidden, or without a picture's ending"),
                (len(broken), f"broken files skipped: {_first([*broken.values()], 3)}"), *zip(done, DONE[1:]),
                (coloured, "made grey") if grey else (coloured and n - coloured, "grey ones made RGB"),
                (max(1, self._path.stat().st_size // 10**6), f"MB in {self._path}" + ": damaged, made again" * damaged)]
        self.said = [f"{count:,} {what}".encode(errors="replace").decode() for count, what in said if count]
        self.said += [f"warning: {n} pictures are few: a network may learn them by heart"] * (n < FEW)

        shuffled, tests = np.random.RandomState(0).permutation(n), max(1, n // 10)  # RandomState's streams never change
        mine = np.sort(shuffled[:tests] if split == "test" else shuffled[tests:])
        self._rows, self.labels = rows[mine], labels[mine] * bool(self.classes)

    def __getitem__(self, index):
        pictures = np.load(self._path, mmap_mode="r")  # anew: what has been read of a map stays in memory
        return np.float32(pictures[self._rows[index], :self.shape[0]]) / 127.5 - 1, self.labels[index]


def _first(texts, n):
    return "; ".join(texts[:n]) + "; …" * (len(texts) > n)


def _decoded(root, size, grey, cache, progress):
    """Names of a folder's pictures, number of other files, file of what is decoded, facts, whether it was damaged."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give the one that holds the pictures")
    pictures, others = _listing(root)
    if len(pictures) < 2:
        raise ValueError(f"{root} holds {len(pictures)} pictures and {others} other files: put more pictures there")
    key = hashlib.sha256(repr((VERSION, size, bool(grey), pictures)).encode()).hexdigest()
    names, path = [name for name, *_ in pictures], cache / f"{root.resolve().name[:40]}-{size}-{key[:16]}.npy"
    about = path.with_suffix(".json")
    damaged = about.exists()
    with suppress(Exception):
        known = json.loads(about.read_text())
        if known["crc32"] == _checksum(path, known["facts"]):
            return names, others, path, known["facts"], False
    with atomic_write(path) as file:
        facts = _decode_all(root, names, file.name, size, 1 if grey else 3, progress)
        known = {"facts": facts, "crc32": _checksum(file.name, facts)}
    with atomic_write(about) as file:
        file.write(json.dumps(known).encode())
    return names, others, path, facts, damaged


def _listing(root):
    """A folder's pictures, sorted, as (name relative to it, bytes, time of change), and the number of other files."""
    from tifffile import TIFF  # here, for a quick import of npdiffusion.data

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    endings |= {f".{ending}" for ending in TIFF.FILE_EXTENSIONS}
    pictures, others = [], 0
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder).resolve()  # links may lead back to where they are
        subfolders[:] = [s for s in subfolders if s[0] != "." and not here.is_relative_to(Path(folder, s).resolve())]
        inside = "".join(f"{part}/" for part in Path(folder).relative_to(root).parts)
        for name in files:
            path = os.path.join(folder, name)
            if name[0] != "." and os.path.splitext(name)[1].lower() in endings and os.path.isfile(path):
                status = os.stat(path)
                pictures.append((inside + name, status.st_size, status.st_mtime_ns))
            else:
                others += 1
    return sorted(pictures), others


def _checksum(path, facts):
    """CRC-32 of the decoded pictures and of the facts about them."""
    checksum = zlib.crc32(json.dumps(facts).encode())
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _decode_all(root, names, out, size, channels, progress):
    """Write all pictures as an array (N, channels, size, size) into ``out``. Returns what holds of how many."""
    n, broken, done = len(names), [], np.zeros(len(DONE), int)
    start = np.lib.format.open_memmap(out, "w+", np.uint8, (n, channels, size, size)).offset
    with ProcessPoolExecutor(get_num_threads(), initializer=_start) as pool:
        each = map if n < MANY else partial(pool.map, chunksize=n // 4096 + 1)
        try:
            results = each(partial(_decode, root, out, size, channels, start), range(n), names)
            for i, result in enumerate(tqdm(results, root.name, n, unit=" pictures", disable=not progress)):
                if isinstance(result, str):
                    broken.append((i, result))
                else:
                    done += result
        finally:
            pool.shutdown(cancel_futures=True)
    if n - len(broken) < 2:
        raise ValueError(f"{len(broken)} of {n} pictures in {root} are broken: {_first([*dict(broken).values()], 3)}")
    return {"broken": broken, "done": done.tolist()}


def _decode(root, out, size, channels, start, i, name):
    """Write picture i into its row of the file ``out``. Returns which of ``DONE`` holds, or why it cannot be read."""
    frames, more = read_frames(root / name), False
    try:
        frame = next(frames)
        pixels = cut_out(frame, size, channels)
    except (ValueError, OSError, MemoryError) as error:
        return str(error).removeprefix(f"{root}{os.sep}")
    with suppress(ValueError):
        more = next(frames, None) is not None
    with open(out, "r+b") as file:
        file.seek(start + i * pixels.size)
        file.write(pixels.tobytes())
    height, width = frame.values.shape[:2]
    return (frame.values.ndim == 3, frame.orientation in range(2, 9), height != width, min(height, width) > size,
            min(height, width) < size, frame.alpha is not None and frame.alpha.min() < 1,
            frame.values.dtype.itemsize > 1, more)


def _start():
    """In a new process: Ctrl-C is for its parent, and it ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: os._exit(multiprocessing.parent_process().join() or 1), daemon=True).start()
