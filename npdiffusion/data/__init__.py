"""Digits and micrographs to train on, and pictures to read and write. Everything here is plain NumPy arrays."""

from .download import DataNotFoundError
from .folder import PictureFolder
from .micrographs import SSTEM, TRAIN_SECTIONS, Lucchi, Micrographs, load_pairs, read_micrograph
from .mnist import MNIST, Dataset, FashionMNIST
from .pictures import load_picture, load_square, noise_sigma, save_png
from .synthetic import SyntheticDigits, SyntheticMicrographs, draw_digits


def load_digits(name, split="train"):
    """The pictures behind ``--data``: "mnist" (:class:`MNIST`), "fashion-mnist" or "synthetic" (drawn digits).

    Raises as :class:`MNIST`, and ValueError for another name.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name in ("mnist", "fashion-mnist"):
        return (MNIST if name == "mnist" else FashionMNIST)(split)
    if name == "synthetic":
        return SyntheticDigits(60000, seed=0) if split == "train" else SyntheticDigits(10000, seed=1)
    raise ValueError(f"data must be 'mnist', 'fashion-mnist' or 'synthetic', got {name!r}")


def load_micrographs(name):
    """The micrographs behind ``--data``: the pair (train, test), both :class:`Micrographs`.

    "sstem" (sections 00–15, and from 16 on), "lucchi" (its own two volumes) or "synthetic" (8 and 2 drawn ones).

    Raises DataNotFoundError as :class:`SSTEM` and if all its sections are on one side, ValueError for other names.
    """
    if name == "sstem":
        data = SSTEM()
        n = sum(int(section) < TRAIN_SECTIONS for section in data.names)  # they are in order
        if n in (0, len(data)):
            raise DataNotFoundError(f"training needs ssTEM sections below and from {TRAIN_SECTIONS}, there are only "
                                    f"{', '.join(data.names)}; get the others, or use --data synthetic")
        return tuple(Micrographs(data.images[part], data.masks[part], data.names[part])
                     for part in (slice(n), slice(n, None)))
    if name == "lucchi":
        return Lucchi("training"), Lucchi("testing")
    if name == "synthetic":
        return SyntheticMicrographs(8, (512, 512), seed=0), SyntheticMicrographs(2, (512, 512), seed=1)
    raise ValueError(f"data must be 'sstem', 'lucchi' or 'synthetic', got {name!r}")
