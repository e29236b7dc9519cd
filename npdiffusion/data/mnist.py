"""MNIST, 70 000 handwritten digits, and Fashion-MNIST, as many pictures of clothes in the same format."""

import gzip
import hashlib

import numpy as np

from .download import DIGESTS, fetch, find

FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}


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

    LeCun, Cortes and Burges; licence CC BY-SA 3.0.

    split: "train" (60 000 digits) or "test" (10 000).
    root: directory whose subdirectory ``mnist`` holds the files, packed (.gz) or not, each checked against its known
        SHA-256 whenever it is read. Default: first ``$NPDIFFUSION_DATA``, then the user's cache.
    download: whether files found nowhere may be downloaded into the last of these directories.

    Raises DataNotFoundError, which says what to do, if files cannot be had; ValueError for another split.
    """

    name = "mnist"
    endings = "", ".gz"
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/",
               "https://storage.googleapis.com/cvdf-datasets/mnist/")

    def __init__(self, split="train", root=None, download=True):
        if split not in FILES:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        # An idx file: 4 bytes that tell the type, the size along each axis as 4 bytes, then the array.
        pixels, labels = (np.frombuffer(self._find(file, root, download), np.uint8) for file in FILES[split])
        images = np.pad(pixels[16:].reshape(-1, 1, 28, 28), [(0, 0), (0, 0), (2, 2), (2, 2)]).astype(np.float32)
        images /= 127.5
        images -= 1
        super().__init__(images, labels[8:].astype(np.int64))

    def _find(self, file, root, download):
        """The verified raw bytes of one of the four files, from disk or else from a mirror."""
        wanted = ", ".join(f"{file}.gz" for files in FILES.values() for file in files)
        return find(
            f"{type(self).__name__}'s {file}", root, [f"{self.name}/{file}{ending}" for ending in self.endings],
            lambda path: self._verify(path.read_bytes(), file),
            download and (lambda path: fetch([f"{mirror}{file}.gz" for mirror in self.mirrors], path,
                                             lambda data: self._verify(data, file))),
            f"Put {wanted} (from {self.mirrors[0]}) there")

    def _verify(self, data, file):
        """The raw bytes, from the packed or unpacked file; ValueError unless the world knows it under this name."""
        packed, known = data[:2] == b"\x1f\x8b", DIGESTS[self.name]
        raw = gzip.decompress(data) if packed else data
        name, judged, kind = (f"{file}.gz", data, "packed") if f"{file}.gz" in known else (file, raw, "unpacked")
        if (found := hashlib.sha256(judged).hexdigest()) != known[name]:
            raise ValueError(f"not the known file: its {kind} bytes have SHA-256 {found[:12]}…, "
                             f"expected {known[name][:12]}…")
        return raw


class FashionMNIST(MNIST):
    """Fashion-MNIST: clothes in ten classes, in all else as :class:`MNIST`.

    Xiao, Rasul and Vollgraf 2017; licence MIT. Its files are packed (.gz), in the subdirectory ``fashion-mnist``.
    """

    name = "fashion-mnist"
    endings = ".gz",
    mirrors = ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
               "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/")
