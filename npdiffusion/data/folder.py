"""A folder of the user's own pictures as a data set: each is decoded once, into a file that training reads from."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..distributed import broadcast
from ..files import atomic_write
from ..threads import get_num_threads
from .download import cache_dir, reason
from .mnist import Dataset
from .pictures import cut_out
from .reading import read_frames

VERSION = 1  # of what is made from a picture: with another one, all are decoded again
MANY = 200   # pictures for which it pays to start processes
FEW = 1000   # pictures, fewer than which are too few to learn from
START = 128  # of the first picture in a cache file: the .npy header takes less, and is padded
DIGEST = 32  # bytes of the SHA-256 at its end
SHOWN = 3    # broken files that are named


class PictureFolder(Dataset):
    """The pictures of a folder and of its subfolders, as ``dataset[i]`` = (images, labels); see :class:`Dataset`.

    Of any size and kind that Pillow or tifffile reads. Of each file the first picture is turned upright, brought to
    8 bits (deeper ones are stretched), laid on white where it is transparent; the largest square in its middle is
    resized (Lanczos). As in torchvision's ImageFolder, subfolders are classes, in sorted order, with all that lies
    below them; where pictures lie beside the subfolders, there are no classes, and all count.

    root: the folder. Hidden files, files without a picture's ending and broken ones are skipped.
    size: of the images' sides, in pixels.
    split: "train" or "test": a tenth of the pictures, at least 1, drawn by a permutation with a fixed seed. It depends
        on nothing but how many pictures can be read.
    grey: whether to make grey what has colours. By default images are RGB, or grey if all pictures are stored so.
    cache: directory for the decoded pictures, by default ``pictures`` in the user's cache: size² or 3·size² bytes for
        each. They are made again if any name, length or time of change in the folder is another, or if the cache is
        damaged. Of several MPI ranks rank 0 makes them: those on other machines must see the directory too.
    progress: whether to show a bar.

    images: (N, C, size, size) float32 in [-1, 1], C = 1 or 3, read from the cache when asked for: memory is for what
    is asked for alone. ``labels``: (N,) int64, 0 if there are no classes. ``classes``: their names. ``shape``: (C,
    size, size). ``said``: a list of short sentences that say what was found and done.

    Raises FileNotFoundError or ValueError: no such folder, fewer than 2 pictures in it, another split or size.
    """

    def __init__(self, root, size, split="train", grey=False, cache=None, progress=True):
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be an integer of at least 1 pixel, got {size!r}")
        cache = Path(cache or cache_dir() / "pictures").expanduser()
        self._path, self.shape, self.classes, labels, self.said = broadcast(
            partial(_prepare, Path(root).expanduser(), int(size), bool(grey), cache, progress))
        shuffled = np.random.RandomState(0).permutation(len(labels))  # whose stream never changes
        tests = max(1, len(labels) // 10)
        self._rows = np.sort(shuffled[:tests] if split == "test" else shuffled[tests:])
        self.labels = labels[self._rows]

    def __getitem__(self, index):
        rows = np.load(self._path, mmap_mode="r")[self._rows[index]]  # mapped anew: what was read does not stay
        images = np.array(rows, np.float32)
        images /= 127.5
        images -= 1
        return images, self.labels[index]


def _prepare(root, size, grey, cache, progress):
    """The cache file, the shape of a picture in it, the classes, a label for each picture, and what there is to say."""
    if not root.exists():
        raise FileNotFoundError(f"no folder at {root}: check the name")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give the folder that holds the pictures")
    names, others, key = _listing(root, [VERSION, size, grey])
    found = f"{root} holds {len(names)} pictures and {others} other files"
    if len(names) < 2:
        raise ValueError(f"{found}: put at least 2 pictures (PNG, JPEG, TIFF, …) there, better thousands")
    path, said, facts = cache.absolute() / f"{root.resolve().name[:40]}-{size}-{key[:16]}.npy", [], None
    if path.exists():
        try:
            facts = _facts(path)
        except (OSError, ValueError) as error:
            said = [f"the decoded pictures in {path} were damaged ({reason(error)}): made again"]
    if facts is None:
        _decode_all(path, root, names, size, grey, progress)
        facts = _facts(path)
    shape, broken, done = tuple(facts["shape"]), dict(facts["broken"]), facts["done"]

    names = [name for i, name in enumerate(names) if i not in broken]
    tops, direct = sorted({name.partition("/")[0] for name in names if "/" in name}), sum("/" not in n for n in names)
    classes = [] if direct else tops
    numbers = {name: i for i, name in enumerate(classes)}
    labels = np.array([numbers.get(name.partition("/")[0], 0) for name in names], np.int64)

    said += [f"{len(names):,} {'grey' if shape[0] == 1 else 'RGB'} pictures of {size}×{size}"]
    if classes:
        said += [f"{len(classes)} classes, by subfolder: {', '.join(classes[:10])}{', …' * (len(classes) > 10)}"]
    elif tops:
        said += [f"no classes: {direct:,} pictures lie beside the subfolders"]
    if others:
        said += [f"{others:,} other files skipped: hidden, or without a picture's ending"]
    if broken:
        said += [f"{len(broken):,} broken files skipped: {'; '.join([*broken.values()][:SHOWN])}"
                 + "; …" * (len(broken) > SHOWN)]
    said += [f"{count:,} {what}" for what, count in done]
    if len(names) < FEW:
        said += [f"warning: {len(names)} pictures are few: a network may learn them by heart"]
    said += [f"decoded into {path}, {path.stat().st_size / 1e6:,.0f} MB"]
    return path, shape, classes, labels, [line.encode(errors="replace").decode() for line in said]


def _listing(root, more):
    """The sorted names of a folder's pictures, relative to it; how many other files there are; a digest of them."""
    from tifffile import TIFF  # here, for a quick import of npdiffusion.data

    endings = {f".{ending}" for ending in TIFF.FILE_EXTENSIONS}
    endings |= {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    pictures, others = [], 0
    for entry in _files(root):
        name = Path(entry.path)
        if name.name.startswith(".") or name.suffix.lower() not in endings or not entry.is_file():
            others += 1
            continue
        status = entry.stat()
        pictures.append((name.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    pictures.sort()
    digest = hashlib.sha256(repr(more).encode())
    for picture in pictures:
        digest.update(repr(picture).encode())
    return [name for name, _, _ in pictures], others, digest.hexdigest()


def _files(folder, above=()):
    """Entries of all files in a folder, and of hidden subfolders. Links that lead back above it are not followed."""
    above = *above, os.path.realpath(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir() or entry.name.startswith("."):
                yield entry
            elif os.path.realpath(entry.path) not in above:
                yield from _files(entry.path, above)


def _facts(path):
    """What a cache file says about its pictures; ValueError unless its bytes are those that were written.

    After the pictures, an array in NumPy's format, come JSON and the SHA-256 of all before it.
    """
    digest, left = hashlib.sha256(), path.stat().st_size - DIGEST
    with open(path, "rb") as file:
        while block := file.read(min(max(left, 0), 1 << 20)):
            digest.update(block)
            left -= len(block)
        if file.read() != digest.digest():
            raise ValueError("it is not what was written")
        pictures = np.load(path, mmap_mode="r")
        file.seek(pictures.offset + pictures.nbytes)
        return json.loads(file.read()[:-DIGEST]) | {"shape": pictures.shape[1:]}


def _decode_all(path, root, names, size, grey, progress):
    """Write the cache file: whole, or not at all."""
    channels, broken, done = 1 if grey else 3, {}, Counter()
    with atomic_write(path) as file:
        decode = partial(_decode, root, names, file.name, size, channels)
        with closing(_each(decode, len(names))) as results, \
                tqdm(total=len(names), desc=root.name, unit=" pictures", disable=not progress) as bar:
            for i, what in results:
                if isinstance(what, str):
                    broken[i] = what
                else:
                    done.update(what)
                bar.update()
        kept = [i for i in range(len(names)) if i not in broken]
        if len(kept) < 2:
            raise ValueError(f"only {len(kept)} of {len(names)} pictures in {root} can be read: "
                             f"{'; '.join([*broken.values()][:SHOWN])}")
        coloured, stride = done.pop("coloured"), channels * size ** 2
        length = (3 if coloured and not grey else 1) * size ** 2  # of a row, if none has colours: a channel is enough
        if grey:
            done["made grey"] = coloured
        elif coloured:
            done["grey ones made RGB"] = len(kept) - coloured
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False,
                                                    "shape": (len(kept), length // size ** 2, size, size)})
        file.seek(0)
        digest = hashlib.sha256(file.read(START))
        for new, old in enumerate(kept):
            file.seek(START + old * stride)
            row = file.read(length)
            digest.update(row)
            if (new, length) != (old, stride):
                file.seek(START + new * length)
                file.write(row)
        file.seek(START + len(kept) * length)
        facts = json.dumps({"broken": sorted(broken.items()), "done": [(w, n) for w, n in done.items() if n]}).encode()
        digest.update(facts)
        file.write(facts + digest.digest())
        file.truncate()


def _decode(root, names, out, size, channels, i):
    """Decode picture i into its row of the file ``out``. Returns i, and what was done or else why it cannot be read."""
    frames = read_frames(root / names[i])
    try:
        frame = next(frames)
        pixels = cut_out(frame, size, channels)
    except (OSError, ValueError, MemoryError) as error:
        return i, reason(error).removeprefix(f"{root}{os.sep}")
    more = False
    with suppress(ValueError):
        more = next(frames, None) is not None
    with open(out, "r+b") as file:
        file.seek(START + i * pixels.size)
        file.write(pixels.tobytes())
    height, width = frame.values.shape[:2]
    return i, {"coloured": int(frame.values.ndim == 3),
               "turned upright": int(frame.orientation in range(2, 9)),
               "cropped to a square": int(height != width),
               "reduced": int(min(height, width) > size),
               "enlarged": int(min(height, width) < size),
               "of more than 8 bits: each stretched to its own full scale": int(frame.values.dtype.itemsize > 1),
               "transparent: laid on white": int(frame.alpha is not None and frame.alpha.min() < 1),
               "of several pictures in a file: the first taken": int(more)}


def _each(function, n):
    """``function(i)`` of each i below n, in any order: of many, by as many processes as there are cores."""
    workers = get_num_threads() if n >= MANY else 1
    if workers == 1:
        yield from map(function, range(n))
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes, readers = [], []
    try:
        for k in range(workers):
            reader, writer = context.Pipe(duplex=False)
            with writer:  # closed here before the next is started, so that its end is seen
                processes.append(context.Process(target=_work, args=(function, range(k, n, workers), writer)))
                processes[-1].start()
            readers.append(reader)
        while readers:
            for reader in wait(readers):
                try:
                    result = reader.recv()
                except EOFError:
                    readers.remove(reader)
                    continue
                if isinstance(result, Exception):
                    raise result
                n -= 1
                yield result
        if n:
            raise ChildProcessError(f"a process that decodes pictures has died, with {n} of them left: is there enough "
                                    "memory?")
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(function, numbers, writer):
    """What a process does: send the results, or the error that ends it. Ctrl-C is for its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for i in numbers:
            writer.send(function(i))
    except Exception as error:
        writer.send(error)
