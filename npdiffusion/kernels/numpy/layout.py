"""Channels-last memory under NCHW shapes."""

import numpy as np

__all__ = ["channels_last", "empty_channels_last", "to_nchw"]


def channels_last(x):
    """The (N, H, W, C) C-contiguous array of an NCHW one: a view if the memory is channels-last already."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x):
    """The NCHW view of an (N, H, W, C) array."""
    return x.transpose(0, 3, 1, 2)


def empty_channels_last(n, c, h, w, dtype):
    """An uninitialised (N, H, W, C) array, whose NCHW view ``to_nchw`` gives."""
    return np.empty((n, h, w, c), dtype)
