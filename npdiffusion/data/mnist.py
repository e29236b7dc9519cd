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
    """The MNIST digits (LeCun, Cortes and Burges; licence CC BY-SA 3.0), padded from 28×28 to 32×32, in [-1, 1].

    split: "train" (60 000 digits) or "test" (10 000).
    root: directory whose subdirectory ``mnist`` holds the files, packed (.gz) or not, each checked against its known
        SHA-256 whenever it is read. Default: first ``$NPDIFFUSION_DATA``, then the user's cache.
    download: whether files found nowhere may be downloaded into the last of these directories.

    Raises DataNotFoundError, which says what to do, if files cannot be had; ValueError for another split.
    """

    name = "mnist"
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
        urls = [f"{mirror}{file}.gz" for mirror in self.mirrors]
        wanted = ", ".join(f"{file}.gz" for files in FILES.values() for file in files)
        return find(
            f"{type(self).__name__}'s {file}", root, [f"{self.name}/{file}", f"{self.name}/{file}.gz"],
            lambda path: self._verify(path.read_bytes(), file),
            download and (lambda path: fetch(urls, path, lambda data: self._verify(data, file))),
            f"Put {wanted} (from {self.mirrors[0]}) there")

    def _verify(self, data, file):
        """Unpack if packed; ValueError unless these are the bytes that the world knows under this name."""
        raw, known = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, DIGESTS[self.name]
        file, judged = (file, raw) if file in known else (f"{file}.gz", data)
        if (found := hashlib.sha256(judged).hexdigest()) != known[file]:
            raise ValueError(f"not the known file: SHA-256 {found[:12]}…, expected {known[file][:12]}… of {file}")
        return raw


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; licence MIT): clothes in ten classes, in all else as MNIST.

    Its files are in the subdirectory ``fashion-mnist``, packed (.gz).
    """

    name = "fashion-mnist"
    mirrors = ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
               "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/")
