"""Digits and micrographs to train on, and pictures to read and write. Everything here is plain NumPy arrays."""

from .download import DataNotFoundError
from .micrographs import (SSTEM, Lucchi, Micrographs, SyntheticMicrographs, load_micrographs, load_pairs,
                          read_micrograph)
from .mnist import MNIST, Dataset
from .pictures import load_picture, noise_sigma, save_png
from .synthetic import SyntheticDigits, draw_digits

__all__ = ["DataNotFoundError", "Dataset", "Lucchi", "MNIST", "Micrographs", "SSTEM", "SyntheticDigits",
           "SyntheticMicrographs", "draw_digits", "load_digits", "load_micrographs", "load_pairs", "load_picture",
           "noise_sigma", "read_micrograph", "save_png"]


def load_digits(name, split="train"):
    """The digits behind ``--data``: "mnist" (:class:`MNIST`) or "synthetic" (:class:`SyntheticDigits`).

    Raises as :class:`MNIST`, and ValueError for another name.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name == "mnist":
        return MNIST(split)
    if name == "synthetic":
        return SyntheticDigits(60000, seed=0) if split == "train" else SyntheticDigits(10000, seed=1)
    raise ValueError(f"data must be 'mnist' or 'synthetic', got {name!r}")
