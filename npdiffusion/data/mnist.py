"""MNIST: 70 000 handwritten digits (LeCun, Cortes and Burges; licence CC BY-SA 3.0)."""

import gzip
import hashlib

import numpy as np

from .download import DIGESTS, fetch, find

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/",
           "https://storage.googleapis.com/cvdf-datasets/mnist/")

FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}

SHA256 = DIGESTS["mnist"]


class Dataset:
    """Pictures with a label each: ``dataset[i]`` is the pair (images[i], labels[i]); i may be a slice or an array.

    images: (N, 1, 32, 32) float32 in [-1, 1], background -1. labels: (N,) int64, 0 to 9.
    """

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class MNIST(Dataset):
    """The MNIST digits, padded from 28×28 to 32×32 pixels and scaled from 0..255 to [-1, 1].

    split: "train" (60 000 digits) or "test" (10 000).
    root: directory whose subdirectory ``mnist`` holds the files, packed (.gz) or not, each checked against its known
        SHA-256 whenever it is read. Default: first ``$NPDIFFUSION_DATA``, then the user's cache.
    download: whether files found nowhere may be downloaded into the last of these directories.

    Raises DataNotFoundError, which says what to do, if files cannot be had; ValueError for another split.
    """

    def __init__(self, split="train", root=None, download=True):
        if split not in FILES:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        # An idx file: 4 bytes that tell the type, the size along each axis as 4 bytes, then the array.
        pixels, labels = (np.frombuffer(_find(name, root, download), np.uint8) for name in FILES[split])
        images = np.pad(pixels[16:].reshape(-1, 1, 28, 28), [(0, 0), (0, 0), (2, 2), (2, 2)]).astype(np.float32)
        images /= 127.5
        images -= 1
        super().__init__(images, labels[8:].astype(np.int64))


def _find(name, root, download):
    """The verified raw bytes of one of the four files, from disk or else from a mirror."""
    urls, wanted = [mirror + name + ".gz" for mirror in MIRRORS], ", ".join(f"{file}.gz" for file in SHA256)
    return find(
        f"MNIST's {name}", root, [f"mnist/{name}", f"mnist/{name}.gz"], lambda path: _verify(path.read_bytes(), name),
        download and (lambda path: fetch(urls, path, lambda data: _verify(data, name))),
        f"Put {wanted} (from {MIRRORS[0]}) there")


def _verify(data, name):
    """Unpack if packed; ValueError unless these are the bytes that the world knows under ``name``."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
        raise ValueError(f"not the known file: its unpacked bytes have SHA-256 {found[:12]}…, "
                         f"expected {SHA256[name][:12]}…")
    return data
