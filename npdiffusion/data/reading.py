"""Picture files as arrays: TIFF by tifffile; all other kinds, and what it cannot unpack, by Pillow."""

import io
import logging
import math
import os
import re
import threading
import warnings
from contextlib import ExitStack, contextmanager
from functools import cache
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
            return values.astype(np.promote_types(values.dtype, np.float32))  # float16 overflows soon
        return (values - values.min()).view(f"u{values.itemsize}")  # exact: signed differences wrap around

    def grey(self):
        """(H, W) uint8. More than 8 bits are stretched: the darkest thousandth becomes 0, the brightest 255."""
        values = self.luminance()
        if values.dtype == np.uint8:
            return values
        half = np.float64(0.5)  # differences of halves cannot overflow
        low = half * np.quantile(values, 0.001, method="higher")
        high = half * np.quantile(values, 0.999, method="lower")
        scale = 255 / max(high - low, 1e-300)
        return np.stack([np.rint((np.clip(half * row, low, high) - low) * scale).astype(np.uint8) for row in values])


def read_frames(source):
    """Each picture in a file (a path or io.BytesIO) as a :class:`Frame`; thumbnails and transparency masks are skipped.

    Raises FileNotFoundError, or ValueError with the reason: the file is damaged, or it is whole but not supported.
    """
    name, frame = "the file" if isinstance(source, io.BytesIO) else source, None
    try:
        for frame in _frames(source):
            if frame.values.dtype.kind == "c" or frame.values.dtype.kind == "f" and not np.isfinite(frame.values).all():
                raise NotImplementedError("some pixels are complex or not finite numbers")
            yield frame._replace(values=_upright(frame.values, frame.orientation),
                                 alpha=None if frame.alpha is None else _upright(frame.alpha, frame.orientation))
        if frame is None:
            raise ValueError("no picture is in it, or only thumbnails")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture at {name}: check the name") from error
    except (NotImplementedError, MemoryError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error or 'it does not fit into memory'}") from error
    except Exception as error:  # decoders of damaged files raise anything: SyntaxError, EOFError ...
        raise ValueError(f"{name} cannot be read as a picture ({error or type(error).__name__}): "
                         "give a whole TIFF or PNG or JPEG file") from error


def _upright(a, orientation):
    """An array (H, W, …) turned and mirrored as the orientation tag says, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        a = a.swapaxes(0, 1)
    return a[::-1 if orientation in (3, 4, 7, 8) else 1, ::-1 if orientation in (2, 3, 6, 7) else 1]


def _frames(source):
    """The frames of a file as they lie in it, not yet upright."""
    from tifffile import TiffFile, TiffFileError  # here, for a quick import of npdiffusion.data

    try:
        file = TiffFile(source, is_ome=False)  # OME-TIFF may speak of pages in other files
    except TiffFileError:
        with _open(source) as picture:
            for i, part in enumerate(ImageSequence.Iterator(picture)):
                yield _from_picture(part, source, i)
        return
    with file, ExitStack() as stack:
        pillow = cache(lambda: stack.enter_context(_open(source)))  # opened if need be, and once for all pages
        for page in file.pages:
            if page.subfiletype & 0b101:  # a thumbnail or a transparency mask
                continue
            if 0 in page.databytecounts or len(page.dataoffsets) < math.prod(page.chunked):
                raise ValueError("parts of it are missing")
            _check_memory(page.imagewidth, page.imagelength, page.samplesperpixel * page.bitspersample / 8)
            try:
                whole = file.series[0] if len(file.pages) == 1 else page  # ImageJ tells of large stacks in one page
                yield from _from_samples(page, whole)
            except (NotImplementedError, ValueError) as error:
                if not re.search("requires|not supported", str(error)):
                    raise
                yield _from_page(page, source, pillow, error)


# ---------------------------------------------------------------------------------------------- TIFF


def _from_samples(page, whole):
    """Frames of a TIFF page, or of the stack ``whole`` that it stands for, by tifffile."""
    colours = page.photometric if "PhotometricInterpretation" in page.tags else BLACK_IS_ZERO
    count, known = (3, page.samplesperpixel >= 3) if colours == RGB else (1, page.samplesperpixel <= 2)
    if not known or colours > PALETTE or page.bitspersample < 8 or page.imagedepth > 1:
        raise NotImplementedError(f"photometric interpretation {colours} in {page.shape} samples is not supported")
    for samples in whole.asarray(maxworkers=1).reshape(-1, *page.shape):
        samples = np.moveaxis(samples, page.axes.index("S"), -1) if "S" in page.axes else samples[..., None]
        values = samples[..., :3] if colours == RGB else samples[..., 0]
        if colours == PALETTE:
            palette = page.colormap.T >> (8 if page.colormap.max() > 255 else 0)  # some writers use 8 of its 16 bits
            values = palette.astype(np.uint8)[values]
        if colours == WHITE_IS_ZERO:
            values = _inverted(values)
        alpha = [_fraction(samples[..., k]) for k, kind in enumerate(page.extrasamples, count) if kind in (1, 2)]
        yield Frame(values, alpha[0] if alpha else None, page.tags.valueof("Orientation", 1), page.compression in LOSSY)


def _from_page(page, source, pillow, error):
    """A frame of a TIFF page by Pillow; NotImplementedError, for the reason of ``error``, if it cannot either."""
    try:
        _quietly(pillow().seek, page.index)
        frame = _from_picture(pillow(), source, page.index)
    except (SyntaxError, UnidentifiedImageError):
        raise NotImplementedError(str(error)) from error
    values = frame.values
    if page.bitspersample > 8 or page.sampleformat != 1:  # Pillow holds some in another type, inverts none
        values = values.astype(page.dtype)
        values = _inverted(values) if page.photometric == WHITE_IS_ZERO else values
    return frame._replace(values=values, lossy=page.compression in LOSSY)


def _inverted(values):
    return -values if values.dtype.kind == "f" else ~values


# ---------------------------------------------------------------------------------------------- Pillow


def _quietly(function, *args):
    """function(*args) without Pillow's warnings, and without its limit on the number of pixels: memory is the limit."""
    with limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return function(*args)
        finally:
            Image.MAX_IMAGE_PIXELS = pixels


@contextmanager
def _open(source, frame=0):
    """Pillow's picture at that frame."""
    again = io.BytesIO(source.getbuffer()) if isinstance(source, io.BytesIO) else source
    with _quietly(Image.open, again) as picture:
        _check_memory(*picture.size, 4)
        _quietly(picture.seek, frame)
        yield picture


def _from_picture(picture, source, i):
    """Frame i of a source, which Pillow has opened as ``picture``."""
    args = picture.tile[0].args if picture.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args  # how samples are packed in the file
    mode, alpha, transparent = picture.mode, None, picture.info.get("transparency")
    if raw == "LA;16B":  # Pillow would keep the upper byte of each sample alone
        picture.tile = [picture.tile[0]._replace(args="RGBA")]
    _quietly(picture.load)
    if raw == "LA;16B":
        values, alpha = np.moveaxis(np.asarray(picture).view(">u2").astype(np.uint16), 2, 0)
    elif raw in OTHER_ORDER:  # the same, but it keeps the lower byte if asked for the other byte order
        with _open(source, i) as again:
            other = (OTHER_ORDER[raw], *args[1:]) if isinstance(args, tuple) else OTHER_ORDER[raw]
            again.tile = [again.tile[0]._replace(args=other)]
            _quietly(again.load)
            values = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(again)
        values, alpha = values[..., :3], values[..., 3] if values.shape[2] == 4 else None
    elif mode == "F" or mode.startswith("I"):
        values = np.asarray(picture)
    elif mode == "LAB" or ";16" in str(raw):
        raise NotImplementedError(f"{mode} colours packed as {raw} are not supported")
    else:
        if raw in ("L;2", "L;4") and transparent is not None:
            picture.info["transparency"] *= 85 if raw == "L;2" else 17
        grey, transparent = mode in ("1", "L", "LA", "La"), None
        values = np.asarray(picture.convert(("L" if grey else "RGB") + "A" * picture.has_transparency_data))
        if picture.has_transparency_data:
            values, alpha = values[..., 0] if grey else values[..., :3], values[..., -1]
    if transparent is not None:  # one grey or colour of 16 bits
        alpha = np.atleast_3d(values != np.array(transparent)).any(2)
    exif = _quietly(picture.getexif)  # Pillow turns TIFF itself, and removes the tag
    return Frame(values, None if alpha is None else _fraction(alpha), exif.get(ExifTags.Base.Orientation, 1),
                 picture.format in LOSSY)


def _fraction(alpha):
    """Opacity from 0 to 1, from integers that go to the end of their type, or from bool or fractions."""
    return np.float32(alpha) / (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1)


def _check_memory(width, height, pixel_bytes):
    if 3 * width * height * pixel_bytes > MEMORY:  # the file's samples, and what is made from them
        raise NotImplementedError(f"{width}×{height} pixels do not fit into {MEMORY / 1e9:.0f} GB of memory")
