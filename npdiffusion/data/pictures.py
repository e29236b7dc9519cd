"""Pictures in and out: the user's own digit made to look like one of MNIST's, and sheets of results."""

import math
from functools import reduce

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from ..files import atomic_write
from .reading import read_frames

WORK = 256    # pixels along the longer side while the ink is looked for
NOISY = 0.05  # of the contrast: with more noise than this, a picture keeps it


def load_picture(path, size=32):
    """Read a picture of any size and kind, and make it a light-on-dark grey square like MNIST's digits.

    Turned upright (EXIF, TIFF), converted to grey, cleared of hot pixels, inverted if dark on light, stretched so that
    the paper is -1, the ink 1, padded to a square (nothing is cut off), cropped to the ink if that is less than half as
    large as the picture, resized (Lanczos). Uneven light and the grain of paper are cut off at -1, but where there is
    more noise than that, it is kept: a denoiser wants it whole, on both sides of the paper's grey.

    path: a file that Pillow or tifffile can read; of several frames, the first is taken. size: of the result's sides.

    Returns (1, 1, size, size) float32 in [-1, 1] (beyond, where noise is kept), and a list of short sentences that say
    what was done. Raises FileNotFoundError, or ValueError for a file that is no picture, or a damaged one.
    """
    grey, said = _read_grey(path)
    height, width = grey.shape
    noise = noise_sigma(grey)
    noisy = noise > NOISY * np.ptp(grey)
    judged, window = grey, max(grey.shape) // 64 | 1  # a window in which strokes survive (one of 1 can crash Pillow 12)
    if noisy and window > 1:  # tell ink from paper without single noisy pixels
        judged = np.asarray(Image.fromarray(grey).filter(ImageFilter.MedianFilter(window)))
    low, ink = np.quantile(judged, (0.02, 0.98)) if noisy else (grey.min(), grey.max())
    border = np.concatenate([judged[0], judged[-1], judged[:, 0], judged[:, -1]])
    if np.median(border) - low > ink - np.median(border):
        grey, judged, border, ink = 1 - grey, 1 - judged, 1 - border, 1 - low
        said.append("dark ink on light paper: inverted")
    paper, ink = float(np.median(border)), float(ink)
    if ink - paper < 0.1:
        said.append("warning: hardly any contrast, so there may be nothing to see")
    else:  # uneven light and grain of the paper go to -1 too, up to a quarter of the contrast
        if not noisy:
            paper += min(float(np.quantile(border, 0.95)) - paper, (ink - paper) / 4)
        if paper > 0.02 or ink < 0.98:
            said.append("stretched to full contrast")
        grey, judged = (grey - paper) / (ink - paper), (judged - paper) / (ink - paper)
        if noisy:
            said.append(f"noise of {noise / (ink - paper):.0%} of the contrast: kept")
        else:
            grey = judged = np.clip(grey, 0, 1)
        paper = 0.0

    side = max(height, width)
    if (height, width, size) == (28, 28, 32):
        side = 32
        said.append("28×28 pixels, MNIST's own size: padded by 2 on each side")
    elif height != width:
        said.append("padded to a square")
    top, left = (side - height) // 2, (side - width) // 2
    margins = (top, side - height - top), (left, side - width - left)
    grey, judged = (np.pad(a, margins, constant_values=paper) for a in (grey, judged))

    rows, columns = (np.flatnonzero((judged > paper + 0.5).any(axis)) for axis in (1, 0))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1 if len(rows) else side
    box = (0, 0, side, side)
    if extent < side / 2:
        x, y = (columns[0] + columns[-1] + 1) / 2 + side, (rows[0] + rows[-1] + 1) / 2 + side
        half = 0.8 * extent  # so that the ink is 20 of 32 pixels high or wide, as in MNIST
        said.append(f"the ink fills {extent / side:.0%} of the picture: cropped to it")
        grey = np.pad(grey, side, constant_values=paper)
        box = (x - half, y - half, x + half, y + half)
    small = Image.fromarray(grey).resize((size, size), Image.Resampling.LANCZOS, box=box)
    if side != size:
        said.append(f"resized to {size}×{size}")
    array = np.asarray(small)[None, None] * 2 - 1
    return (array if noisy else np.clip(array, -1, 1)), said


def load_square(path, size, channels=3):
    """The middle of a picture, resized (Lanczos), on white where it is transparent: (1, channels, H, W) in [-1, 1].

    path: as for :func:`load_picture`, which says what is raised. size: in pixels, the side of a square or (H, W).
    channels: 1 for grey, 3 for RGB.
    """
    return cut_out(next(read_frames(path)), size, channels)[None] / np.float32(127.5) - 1


def cut_out(frame, size, channels):
    """``load_square`` of a :class:`Frame`, as (channels, H, W) uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    picture = Image.fromarray(frame.grey() if channels == 1 else frame.rgb())
    if frame.alpha is not None:
        opaque = Image.fromarray(np.rint(frame.alpha * 255).astype(np.uint8))
        picture = Image.composite(picture, Image.new(picture.mode, picture.size, "white"), opaque)
    small = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
    return small.reshape(height, width, channels).transpose(2, 0, 1)


def noise_sigma(image):
    """Standard deviation of the noise in an image (H, W), from the median of |second differences|.

    The mask [1, −2, 1] ⊗ [1, −2, 1] takes away what is smooth and answers to noise with 6 times its deviation
    (Immerkær 1996); the median, 0.6745 σ for Gaussians, passes over edges. 0 for images of less than 3×3 pixels.
    """
    if min(image.shape) < 3:
        return 0.0
    response = np.diff(np.diff(image.astype(np.float64), 2, axis=0), 2, axis=1)  # differences of uint8 wrap around
    return float(np.median(np.abs(response))) / (6 * 0.6745)


def save_png(path, images, columns=None):
    """Write images side by side as one PNG file, by ``atomic_write``.

    images: (N, C, H, W) in [-1, 1], values outside are clipped; C is 1 (grey) or 3 (RGB); any other, and
        integers, raise ValueError.
    columns: images in a row; by default as many as make the sheet square.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0 or images.dtype.kind != "f":
        raise ValueError("save_png expects floating-point images of shape (N, 1 or 3, H, W) in [-1, 1], "
                         f"got {images.dtype} {images.shape}")
    n, c, h, w = images.shape
    columns = columns or math.isqrt(n - 1) + 1
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, c, h, w), np.uint8)
    sheet[:n] = np.rint((np.clip(images, -1, 1) + 1) * 127.5)
    sheet = sheet.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    with atomic_write(path) as file:
        Image.fromarray(sheet[:, :, 0] if c == 1 else sheet).save(file, "png")


def _read_grey(path):
    """The upright picture as (H, W) float32 in [0, 1], the longer side at most WORK, and what was done."""
    frame = next(read_frames(path))
    grey, alpha, colours = _without_hot_pixels(frame.luminance()), frame.alpha, frame.values.ndim == 3
    said = [f"{grey.shape[1]}×{grey.shape[0]} {'RGB picture: converted to grey' if colours else 'grey picture'}"]
    if frame.orientation in range(2, 9):
        said.append("turned upright (EXIF)")
    low, full = (0, 255) if grey.dtype == np.uint8 else (grey.min(), max(float(np.ptp(grey)), 1e-300))
    grey = np.float32((grey - low) / full)
    if alpha is not None and alpha.min() < 1:  # what can be seen is the ink: lay it on the paper it stands out from
        white = (alpha * grey).sum() < 0.5 * alpha.sum()
        grey = alpha * grey + (1 - alpha) * white
        said.append(f"transparent: laid on {'white' if white else 'black'}")
    grey = Image.fromarray(grey)
    grey.thumbnail((WORK, WORK), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(grey), 0, 1), said


def _without_hot_pixels(grey):
    """A picture (H, W) without hot or dead pixels, single ones or few together that stand out by half of its contrast.

    They become like the nearest of the 16 pixels two steps away, among which every stroke has some of its ink. More
    than a thousandth of all are noise, and stay.
    """
    (h, w), padded = grey.shape, np.pad(grey, 2, mode="reflect")
    near = [padded[i:i + h, j:j + w] for i in range(5) for j in range(5) if {i, j} & {0, 4}]
    usual = np.clip(grey, reduce(np.minimum, near), reduce(np.maximum, near))
    beyond = np.maximum(grey, usual) - np.minimum(grey, usual)
    hot = beyond > 0.5 * np.ptp(usual)
    if hot.any():
        hot &= beyond > 0.5 * np.ptp(usual) + 5 * noise_sigma(grey)
    return np.where(hot, usual, grey) if hot.sum() <= max(4, grey.size // 1000) else grey
