"""Channels-last memory under NCHW shapes, as in the NumPy kernels."""

from ...device import cupy


def contiguous(x):
    """x itself if it is None or its memory is C-contiguous, else a copy."""
    return x if x is None or x.flags.c_contiguous else cupy().ascontiguousarray(x)


def channels_last(x):
    """The (N, H, W, C) C-contiguous array of an NCHW one: a view if the memory is channels-last already."""
    return contiguous(x.transpose(0, 2, 3, 1))


def packed(x):
    """x as kernels walk through it element by element: images channels-last, all else C-contiguous."""
    return channels_last(x) if x.ndim == 4 else contiguous(x)


def to_nchw(x):
    """The NCHW view of an (N, H, W, C) array."""
    return x.transpose(0, 3, 1, 2)
