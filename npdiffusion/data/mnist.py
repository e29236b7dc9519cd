"""MNIST: 70 000 handwritten digits (LeCun, Cortes and Burges; licence CC BY-SA 3.0)."""

import gzip
import hashlib
import zlib

import numpy as np

from .download import data_dirs, fetch, find

__all__ = ["Dataset", "MNIST"]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}

# Of the unpacked files: the .gz copies in the world were packed in different ways.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Dataset:
    """Pictures with a label each.

    ``images`` is float32 of shape (N, 1, 32, 32) in [-1, 1], background -1; ``labels`` is int64 of
    shape (N,), 0 to 9. ``dataset[i]`` is the pair (images[i], labels[i]); i may be a slice or an array.
    """

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class MNIST(Dataset):
    """The MNIST digits, padded from 28×28 to 32×32 pixels and scaled from 0..255 to [-1, 1].

    Args:
        split: "train" (60 000 digits) or "test" (10 000).
        root: directory whose subdirectory ``mnist`` holds the files, packed (.gz) or not. Default: first
            ``$NPDIFFUSION_DATA``, then the user's cache.
        download: whether files found nowhere may be downloaded into the last of these directories.

    Every file is checked against its known SHA-256 each time it is read.

    Raises:
        DataNotFoundError: the files are not here and cannot be downloaded; the message says what to do.
        ValueError: ``split`` is neither of the two.
    """

    def __init__(self, split="train", root=None, download=True):
        if split not in FILES:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        pixels, labels = (parse_idx(_find(name, root, download)) for name in FILES[split])
        images = np.full((len(pixels), 1, 32, 32), -1, np.float32)
        inside = images[:, 0, 2:30, 2:30]
        np.divide(pixels, 127.5, out=inside, dtype=np.float32)
        inside -= 1
        super().__init__(images, labels.astype(np.int64))


def parse_idx(raw):
    """The array in an idx file: bytes 0, 0, 8 (uint8), ndim; ndim big-endian int32 sizes; the data."""
    ndim = raw[3]
    shape = np.frombuffer(raw, ">i4", ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _find(name, root, download):
    """The verified raw bytes of one of the four files, from disk or else from a mirror."""
    directories = [directory / "mnist" for directory in data_dirs(root)]
    urls, wanted = [mirror + name + ".gz" for mirror in MIRRORS], ", ".join(f"{file}.gz" for file in SHA256)
    return find(
        f"MNIST's {name}", [directory / file for directory in directories for file in (name, f"{name}.gz")],
        lambda path: _verify(path.read_bytes(), name),
        download and (lambda: fetch(urls, directories[-1] / f"{name}.gz", lambda data: _verify(data, name))),
        f"Put {wanted} (from {MIRRORS[0]}) into {directories[0]}, or set NPDIFFUSION_DATA to a directory that has them "
        "in its subdirectory mnist")


def _verify(data, name):
    """Unpack if packed; ValueError unless these are the bytes that the world knows under ``name``."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cut short or damaged ({error})") from error
    if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
        raise ValueError(f"not the known file: its unpacked bytes have SHA-256 {found[:12]}…, "
                         f"expected {SHA256[name][:12]}…")
    return data
