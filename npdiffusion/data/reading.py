"""Picture files as arrays: TIFF by tifffile; all other kinds, and what it cannot unpack, by Pillow."""

import io
import logging
import math
import os
import re
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf  # bytes
LOSSY = "JPEG", "MPO", "JPEG2000", 6, 7, 33003, 33004, 33005, 34712  # Pillow's formats, and TIFF's compressions
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = range(4)  # TIFF's photometric interpretations
OTHER_ORDER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}

limit = threading.Lock()  # of Pillow's Image.MAX_IMAGE_PIXELS
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=limit.acquire, after_in_parent=limit.release, after_in_child=limit.release)
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong with a file is said by an error


class Frame(NamedTuple):
    """One picture of a file, upright.

    values: (H, W) grey or (H, W, 3) RGB, white above black. Samples of up to 8 bits are uint8 and fill 0 to 255 (signed
        ones int8); deeper ones, whose full scale is unknown, are as stored.
    alpha: (H, W) float32, 1 where opaque, or None. orientation: the tag by which it was turned (EXIF, TIFF), 1 for not
        at all. lossy: whether the tones are not exact, as in JPEG.
    """

    values: np.ndarray
    alpha: np.ndarray
    orientation: int
    lossy: bool

    def luminance(self):
        """(H, W) uint8, or deeper: unsigned from 0, or floating."""
        values = self.values.view(np.uint8) ^ 128 if self.values.dtype == np.int8 else self.values
        if values.dtype == np.uint8:
            return values if values.ndim == 2 else np.asarray(Image.fromarray(values).convert("L"))
        if values.ndim == 3:
            return values @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow
        if values.dtype.kind == "f":
            return values
        return (values - values.min()).view(f"u{values.itemsize}")  # exact: signed differences wrap around

    def grey(self):
        """(H, W) uint8. More than 8 bits are stretched: the darkest thousandth becomes 0, the brightest 255."""
        return _stretched(self.luminance())

    def rgb(self):
        """(H, W, 3) uint8, stretched as by :meth:`grey`."""
        return _stretched(self.values) if self.values.ndim == 3 else np.dstack([self.grey()] * 3)


def _stretched(values):
    if values.dtype == np.uint8:
        return values
    low = np.float64(np.quantile(values, 0.001, method="higher"))
    high = np.float64(np.quantile(values, 0.999, method="lower"))
    scale = 255 / max(high - low, 1e-300)
    return np.stack([np.rint((np.clip(row, low, high) - low) * scale).astype(np.uint8) for row in values])


def read_frames(source):
    """Each picture in a file (a path or io.BytesIO) as a :class:`Frame`; thumbnails and transparency masks are skipped.

    Raises FileNotFoundError, or ValueError with the reason: the file is damaged, or it is whole but not supported.
    """
    name = "the file" if isinstance(source, io.BytesIO) else source
    try:
        frames = _frames(source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes())
        frame = _next(frames)
        if frame is None:
            raise ValueError("no picture is in it, or only thumbnails")
        while frame:
            yield frame
            frame = _next(frames)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture at {name}: check the name") from error
    except (NotImplementedError, MemoryError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error or 'it does not fit into memory'}") from error
    except Exception as error:  # decoders of damaged files raise anything: SyntaxError, EOFError ...
        said = str(error).partition(" <_io")[0] or type(error).__name__  # Pillow names a BytesIO by its address
        raise ValueError(f"{name} cannot be read as a picture ({said}): "
                         "give a whole TIFF or PNG or JPEG file") from error


def _next(frames):
    """The next frame or None, without Pillow's warnings and its limit on the number of pixels: memory is the limit."""
    with limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return next(frames, None)
        finally:
            Image.MAX_IMAGE_PIXELS = pixels


def _frames(data):
    """The frames of a file, given as bytes."""
    from tifffile import TiffFile, TiffFileError  # here, for a quick import of npdiffusion.data

    pillow = cache(lambda: Image.open(io.BytesIO(data)))  # opened if need be, and once for all pages
    try:
        pages = TiffFile(io.BytesIO(data), is_ome=False).pages  # OME-TIFF may speak of pages in other files
    except TiffFileError:
        for i, picture in enumerate(ImageSequence.Iterator(pillow())):
            yield _by_pillow(picture, data, i)
        return
    for page in pages:
        if page.subfiletype & 0b101:  # a thumbnail or a transparency mask
            continue
        if 0 in page.databytecounts or len(page.dataoffsets) < math.prod(page.chunked):
            raise ValueError("parts of it are missing")
        _check_memory(page.imagewidth, page.imagelength, page.samplesperpixel * page.bitspersample / 8)
        try:
            yield from _by_tifffile(page, page.parent.series[0] if len(pages) == 1 else page)
        except (NotImplementedError, ValueError) as error:
            if not re.search("requires|not supported", str(error)):
                raise
            try:
                pillow().seek(page.index)
                frame = _by_pillow(pillow(), data, page.index)
            except (SyntaxError, UnidentifiedImageError):
                raise NotImplementedError(str(error)) from error
            values = frame.values
            if page.bitspersample > 8 or page.sampleformat != 1:  # Pillow holds some in another type, inverts none
                values = _above_black(values.astype(page.dtype), page.photometric)
            yield frame._replace(values=values, lossy=page.compression in LOSSY)


def _by_tifffile(page, whole):
    """Frames of a TIFF page, or of the stack ``whole``: ImageJ tells of large ones in one page."""
    colours = page.photometric if "PhotometricInterpretation" in page.tags else BLACK_IS_ZERO
    count, known = (3, page.samplesperpixel >= 3) if colours == RGB else (1, page.samplesperpixel <= 2)
    if not known or colours > PALETTE or page.bitspersample < 8 or page.imagedepth > 1:
        raise NotImplementedError(f"photometric interpretation {colours} in {page.shape} samples is not supported")
    for samples in whole.asarray(maxworkers=1).reshape(-1, *page.shape):
        samples = np.moveaxis(samples, page.axes.index("S"), -1) if "S" in page.axes else samples[..., None]
        values = _above_black(samples[..., :3] if colours == RGB else samples[..., 0], colours)
        if colours == PALETTE:
            palette = page.colormap.T >> (8 if page.colormap.max() > 255 else 0)  # some writers use 8 of its 16 bits
            values = palette.astype(np.uint8)[values]
        alpha = [samples[..., k] for k, kind in enumerate(page.extrasamples, count) if kind in (1, 2)]
        yield _frame(values, alpha[0] if alpha else None, page.tags.valueof("Orientation", 1),
                     page.compression in LOSSY)


def _above_black(values, colours):
    """Values with white above black."""
    if colours != WHITE_IS_ZERO:
        return values
    return -values if values.dtype.kind == "f" else ~values


def _by_pillow(picture, data, i):
    """Frame i of a file, which Pillow has opened as ``picture``."""
    _check_memory(*picture.size, 4)
    args = picture.tile[0].args if picture.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args  # how samples are packed in the file
    if raw in ("L;2", "L;4") and "transparency" in picture.info:
        picture.info["transparency"] *= 85 if raw == "L;2" else 17
    if raw == "LA;16B":  # Pillow would keep the upper byte of each sample alone
        samples = _packed_as("RGBA", data, i).view(">u2").astype(np.uint16)
    elif raw in OTHER_ORDER:  # the same, but it keeps the lower byte if asked for the other byte order
        samples = np.asarray(picture).astype(np.uint16) << 8 | _packed_as(OTHER_ORDER[raw], data, i)
    elif picture.mode == "F" or picture.mode.startswith("I"):
        samples = np.asarray(picture)
    elif picture.mode == "LAB" or ";16" in str(raw):
        raise NotImplementedError(f"{picture.mode} colours packed as {raw} are not supported")
    else:
        grey = picture.mode in ("1", "L", "LA", "La")
        samples = np.asarray(picture.convert(("L" if grey else "RGB") + "A" * picture.has_transparency_data))
    samples = np.atleast_3d(samples)
    values = samples[..., :3] if samples.shape[2] > 2 else samples[..., 0]
    alpha = samples[..., -1] if samples.shape[2] in (2, 4) else None
    if "transparency" in picture.info and samples.dtype != np.uint8:  # one grey or colour of 16 bits
        alpha = (samples != np.array(picture.info["transparency"])).any(2)
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)  # Pillow turns TIFF itself, and removes the tag
    return _frame(values, alpha, orientation, picture.format in LOSSY)


def _packed_as(raw, data, i):
    """Frame i as Pillow reads it if its samples were packed as ``raw``."""
    picture = Image.open(io.BytesIO(data))
    picture.seek(i)
    tile = picture.tile[0]
    picture.tile = [tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))]
    return np.asarray(picture)


def _check_memory(width, height, pixel_bytes):
    if 3 * width * height * pixel_bytes > MEMORY:  # the file's samples, and what is made from them
        raise MemoryError(f"{width}×{height} pixels do not fit into {MEMORY / 1e9:.0f} GB of memory")


def _frame(values, alpha, orientation, lossy):
    """The upright frame of values and alpha as they lie in a file; the ends of an integer alpha's type are 0 and 1."""
    if values.dtype.kind == "f":
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)  # float16 overflows soon
    if values.dtype.kind == "c" or values.dtype.kind == "f" and not np.ptp(values) < 1e306:
        raise NotImplementedError("some pixels are complex or not finite numbers, or too far apart to compute with")
    if alpha is not None:
        alpha = np.float32(alpha) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)
        alpha = _upright(alpha, orientation)
    return Frame(_upright(values, orientation), alpha, orientation, lossy)


def _upright(a, orientation):
    """An array (H, W, …) turned and mirrored as the orientation tag says, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        a = a.swapaxes(0, 1)
    return a[::-1 if orientation in (3, 4, 7, 8) else 1, ::-1 if orientation in (2, 3, 6, 7) else 1]
