"""Pictures in and out: the user's own digit made to look like one of MNIST's, and sheets of results."""

import io
import math
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps

from ..files import atomic_write

WORK = 256    # pixels along the longer side while the ink is looked for
NOISY = 0.05  # of the contrast: with more noise than this, a picture keeps it


def load_picture(path, size=32):
    """Read a picture of any size and kind, and make it a light-on-dark grey square like MNIST's digits.

    Turned upright (EXIF), converted to grey, inverted if dark on light, stretched so that the paper is -1, the ink 1,
    padded to a square (nothing is cut off), cropped to the ink if that is less than half as large as the picture,
    resized (Lanczos). Uneven light and the grain of paper are cut off at -1, but where there is more noise than that,
    it is kept: a denoiser wants it whole, on both sides of the paper's grey.

    path: a file that Pillow can read; of an animation, the first frame is taken. size: height and width of the result.

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


def noise_sigma(image):
    """Standard deviation of the noise in an image (H, W), from the median of |second differences|.

    The mask [1, −2, 1] ⊗ [1, −2, 1] takes away what is smooth and answers to noise with 6 times its deviation
    (Immerkær 1996); the median, 0.6745 σ for Gaussians, passes over edges. 0 for images of less than 3×3 pixels.
    """
    if min(image.shape) < 3:
        return 0.0
    response = np.diff(np.diff(image, 2, axis=0), 2, axis=1)
    return float(np.median(np.abs(response))) / (6 * 0.6745)


def save_png(path, images, columns=None):
    """Write images side by side as one PNG file, by ``atomic_write``.

    images: (N, C, H, W) in [-1, 1], values outside are clipped; C is 1 (grey) or 3 (RGB), any other raises ValueError.
    columns: images in a row; by default as many as make the sheet square.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
        raise ValueError(f"save_png expects images of shape (N, 1 or 3, H, W), got {images.shape}")
    n, c, h, w = images.shape
    columns = columns or math.isqrt(n - 1) + 1
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, c, h, w), np.uint8)
    sheet[:n] = np.rint((np.clip(images, -1, 1) + 1) * 127.5)
    sheet = sheet.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    with atomic_write(path) as file:
        Image.fromarray(sheet[:, :, 0] if c == 1 else sheet).save(file, "png")


@contextmanager
def open_picture(path):
    """Pillow's picture in a file or io.BytesIO; what fails while it is open raises FileNotFoundError or ValueError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture at {path}: check the name") from error
    except Exception as error:  # decoders of damaged files raise anything: SyntaxError, EOFError ...
        name = "the file" if isinstance(path, io.BytesIO) else path
        raise ValueError(f"{name} cannot be read as a picture ({error or type(error).__name__}): "
                         "give a whole TIFF or PNG or JPEG file") from error


def deep_values(picture):
    """The pixels of a Pillow picture of 16 or more bits, whose full scale is unknown: float32; None of any other."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return None
    values = np.asarray(picture, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not finite numbers")
    return values


def _read_grey(path):
    """The upright picture as (H, W) float32 in [0, 1], the longer side at most WORK, and what was done."""
    with open_picture(path) as picture:
        said = [f"{picture.width}×{picture.height} {picture.mode} picture"]
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            said.append("turned upright (EXIF)")
        picture = ImageOps.exif_transpose(picture)
        grey = deep_values(picture)
        if grey is not None:
            grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-12)
        else:
            if picture.mode not in ("1", "L"):
                said[0] += ": converted to grey"
            picture = picture.convert("RGBA")
            bands = picture.convert("L"), picture.getchannel("A")
            grey, alpha = (np.asarray(band, np.float32) / 255 for band in bands)
            if alpha.min() < 1:  # what can be seen is the ink: lay it on the paper it stands out from
                white = (alpha * grey).sum() < 0.5 * alpha.sum()
                grey = alpha * grey + (1 - alpha) * white
                said.append(f"transparent: laid on {'white' if white else 'black'}")
    grey = Image.fromarray(grey)
    grey.thumbnail((WORK, WORK), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(grey), 0, 1), said
