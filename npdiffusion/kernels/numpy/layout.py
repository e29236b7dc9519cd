"""Channels-last memory under NCHW shapes."""

from contextlib import contextmanager

import numpy as np

ROW = 1024  # about the length of a row of pixels, or a little less


@contextmanager
def unbuffered():
    """Context in which NumPy broadcasts along rows of 512 elements or more as they lie. By itself it copies them into
    a buffer first, unless they are longer than that (8192), which takes twice as long."""
    before = np.setbufsize(512)
    try:
        yield
    finally:
        np.setbufsize(before)


def channels_last(x):
    """The (N, H, W, C) C-contiguous array of an NCHW one (or None): a view if the memory is channels-last already."""
    return None if x is None else np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x):
    """The NCHW view of an (N, H, W, C) array."""
    return x.transpose(0, 3, 1, 2)


def pixel_rows(x):
    """x (N, C, H, W) as (N, R, r·C): r pixels side by side in each row, since ufuncs want long inner loops."""
    x = channels_last(x)
    n, h, w, c = x.shape
    pixels, r = h * w, 1
    while pixels % (2 * r) == 0 and 2 * r * c <= ROW:
        r *= 2
    return x.reshape(n, pixels // r, r * c)


def sums_over_pixels(rows, c):
    """Sums of (N, R, r·C) over the pixels: (N, C). A product with ones, since BLAS adds fastest."""
    sums = np.ones((1, rows.shape[1]), rows.dtype) @ rows
    return sums.reshape(len(rows), -1, c).sum(1)
