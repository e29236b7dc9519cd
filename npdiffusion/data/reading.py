"""Picture files as arrays: TIFF by tifffile; all other kinds, and what tifffile cannot decompress, by Pillow."""

import io
import logging
import math
import os
import threading
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError

MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf  # bytes
TIFF = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"  # how these files begin
JPEG = 6, 7, 33003, 33004, 33005, 34712, 34892  # TIFF's lossy compressions, JPEG 2000 among them
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, _, CMYK = range(6)  # TIFF's photometric interpretations
OTHER_ORDER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}

limit = threading.Lock()  # of Pillow's Image.MAX_IMAGE_PIXELS
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong with a file is said by an error


class Frame(NamedTuple):
    """One picture of a file, upright.

    values: (H, W) grey or (H, W, 3) RGB, white above black. Samples of up to 8 bits are uint8 and fill 0 to 255 (signed
        ones int8); deeper ones, whose full scale is unknown, are as stored.
    alpha: (H, W) float32, 1 where opaque, or None. mode: a word for the kind of picture. orientation: the tag by which
        it was turned (EXIF, TIFF), 1 for not at all. lossy: whether tones are not exact, as in JPEG.
    """

    values: np.ndarray
    alpha: np.ndarray
    mode: str
    orientation: int
    lossy: bool

    def grey(self):
        """(H, W) uint8, or deeper as stored; red, green and blue weigh 0.299, 0.587 and 0.114 (ITU-R BT.601)."""
        values = self.values.view(np.uint8) ^ 128 if self.values.dtype == np.int8 else self.values
        if values.ndim == 2:
            return values
        if values.dtype == np.uint8:
            return np.asarray(Image.fromarray(values).convert("L"))
        return values @ np.array([0.299, 0.587, 0.114])


def read_frames(source):
    """Each picture in a file (a path or io.BytesIO) as a :class:`Frame`; thumbnails and transparency masks are skipped.

    Raises FileNotFoundError, or ValueError with the reason: the file is damaged, or it is whole but not supported.
    """
    name = "the file" if isinstance(source, io.BytesIO) else source
    try:
        frames = 0
        for frame in (_tiff if _start(source) in TIFF else _pillow)(source):
            if frame.values.dtype.kind == "c" or frame.values.dtype.kind == "f" and not np.isfinite(frame.values).all():
                raise NotImplementedError("some pixels are complex or not finite numbers")
            values, alpha = (a if a is None else _upright(a, frame.orientation) for a in frame[:2])
            yield frame._replace(values=values, alpha=alpha)
            frames += 1
        if not frames:
            raise NotImplementedError("it holds nothing but thumbnails and masks of other pictures")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture at {name}: check the name") from error
    except (NotImplementedError, MemoryError) as error:
        raise ValueError(f"{name} cannot be read as a picture: {error or 'it does not fit into memory'}") from error
    except Exception as error:  # decoders of damaged files raise anything: SyntaxError, EOFError ...
        raise ValueError(f"{name} cannot be read as a picture ({error or type(error).__name__}): "
                         "give a whole TIFF or PNG or JPEG file") from error


def _start(source):
    """The first four bytes."""
    if isinstance(source, io.BytesIO):
        return bytes(source.getbuffer()[:4])
    with open(source, "rb") as file:
        return file.read(4)


def _upright(a, orientation):
    """An array (H, W, …) turned and mirrored as the orientation tag says, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        a = a.swapaxes(0, 1)
    return a[::-1 if orientation in (3, 4, 7, 8) else 1, ::-1 if orientation in (2, 3, 6, 7) else 1]


def _check_memory(width, height, sample_bytes):
    if 3 * width * height * sample_bytes > MEMORY:  # the file's samples, and what is made from them
        raise NotImplementedError(f"{width}×{height} pixels do not fit into this machine's {MEMORY / 1e9:.0f} GB memory")


# ---------------------------------------------------------------------------------------------- TIFF


def _tiff(source):
    """Frames of a TIFF file, not yet upright."""
    from tifffile import TiffFile  # here, for a quick import of npdiffusion.data

    with TiffFile(source, is_ome=False) as file:  # OME-TIFF may speak of pages in other files
        for page in file.pages:
            if page.is_reduced or page.subfiletype & 4:
                continue
            if 0 in page.databytecounts or len(page.dataoffsets) < math.prod(page.chunked):
                raise ValueError("parts of it are missing")
            _check_memory(page.imagewidth, page.imagelength, page.nbytes // (page.imagewidth * page.imagelength))
            many = page.samplesperpixel >= 3
            colours = page.photometric if "PhotometricInterpretation" in page.tags else RGB if many else BLACK_IS_ZERO
            orientation = page.tags.valueof("Orientation", default=1)
            mode = "RGB" if colours in (RGB, PALETTE, CMYK) else "grey"
            try:
                if colours not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK):
                    raise NotImplementedError(f"photometric interpretation {colours} is not supported")
                whole = file.series[0] if len(file.pages) == 1 else page  # ImageJ describes large stacks by one page
                stack = whole.asarray(maxworkers=1).reshape(-1, *page.shape)
            except (NotImplementedError, ValueError) as error:
                if not isinstance(error, NotImplementedError) and "imagecodecs" not in str(error):
                    raise
                frame = _tiff_by_pillow(source, page, colours, error)
                yield frame._replace(lossy=page.compression in JPEG)
            else:
                for samples in stack:
                    yield Frame(*_from_samples(samples, page, colours), mode, orientation, page.compression in JPEG)


def _tiff_by_pillow(source, page, colours, error):
    """The page as Pillow reads it; NotImplementedError, for the reason of ``error``, if it cannot."""
    try:
        picture = _open(source, page.index)
    except (SyntaxError, UnidentifiedImageError):
        raise NotImplementedError(str(error)) from error
    with picture:
        frame = _from_picture(picture, source, page.index)
    values = frame.values
    if page.bitspersample > 8 or page.dtype == np.int8:
        values = values.astype(page.dtype)  # Pillow has no unsigned 32, no signed 16 and 8 bits
        if colours == WHITE_IS_ZERO:
            values = -values if values.dtype.kind == "f" else ~values
    return frame._replace(values=values)


def _from_samples(samples, page, colours):
    """values and alpha, as in :class:`Frame`, of a TIFF page's samples."""
    samples = np.moveaxis(samples, page.axes.index("S"), -1) if "S" in page.axes else samples[..., None]
    count, full = {RGB: 3, CMYK: 4}.get(colours, 1), 1
    if samples.ndim != 3 or samples.shape[2] < count:
        raise NotImplementedError(f"{samples.shape[2:]} samples per pixel in axes {page.axes} are not supported")
    values, alpha = samples[..., :count], None
    if samples.dtype.kind in "iu":
        full = np.iinfo(samples.dtype).max
    for k, kind in enumerate(page.extrasamples, count):
        if kind in (1, 2):  # associated or unassociated alpha
            alpha = samples[..., k].astype(np.float32) / full
    if colours == PALETTE:
        palette = page.colormap.T >> (8 if page.colormap.max() > 255 else 0)  # some writers fill 8 of its 16 bits
        return palette.astype(np.uint8)[values[..., 0].astype(int)], alpha
    if page.bitspersample < 8:
        values = np.rint(values * (255 / (2 ** page.bitspersample - 1))).astype(np.uint8)
    if colours == WHITE_IS_ZERO:
        values = -values if values.dtype.kind == "f" else ~values
    if colours == CMYK:
        values = ((full - values[..., :3].astype(float)) * (full - values[..., 3:].astype(float)) / full)
        values = np.rint(values).astype(samples.dtype) if full > 1 else values
    return values[..., 0] if count == 1 else values, alpha


# ---------------------------------------------------------------------------------------------- Pillow


def _open(source, frame=0):
    """Pillow's picture. Its limit on the number of pixels is lifted meanwhile: memory is the limit."""
    with limit:
        pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(io.BytesIO(source.getbuffer()) if isinstance(source, io.BytesIO) else source)
        finally:
            Image.MAX_IMAGE_PIXELS = pixels
    _check_memory(*picture.size, 4)
    if frame:
        picture.seek(frame)
    return picture


def _pillow(source):
    """Frames of a file of any kind, not yet upright."""
    with _open(source) as picture:
        for i, frame in enumerate(ImageSequence.Iterator(picture)):
            yield _from_picture(frame, source, i)


def _from_picture(picture, source, i):
    """Frame i of a source, which Pillow has opened as ``picture``."""
    args = picture.tile[0].args if picture.tile else None
    raw = args[0] if isinstance(args, tuple) and args else args  # how samples are packed in the file
    mode, alpha, transparent = picture.mode, None, picture.info.get("transparency")
    if raw == "LA;16B":
        picture.tile = [picture.tile[0]._replace(args="RGBA")]  # the four bytes of each pixel
        values, alpha = np.moveaxis(np.asarray(picture).view(">u2").astype(np.uint16), 2, 0)
    elif raw in OTHER_ORDER:  # Pillow keeps the upper byte of each sample; in the other byte order, the lower
        with _open(source, i) as again:
            args = (OTHER_ORDER[raw], *args[1:]) if isinstance(args, tuple) else OTHER_ORDER[raw]
            again.tile = [again.tile[0]._replace(args=args)]
            values = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(again)
        values, alpha = values[..., :3], values[..., 3] if values.shape[2] == 4 else None
    elif mode == "F" or mode.startswith("I"):
        values = np.asarray(picture)
    elif mode == "LAB" or ";16" in str(raw):
        raise NotImplementedError(f"{mode} colours packed as {raw} are not supported")
    else:
        if raw in ("L;2", "L;4") and transparent is not None:
            picture.info["transparency"] *= 85 if raw == "L;2" else 17
        kind = "L" if mode in ("1", "L", "LA", "La") else "RGB"
        if picture.has_transparency_data:
            values = np.asarray(picture.convert(kind + "A"))
            values, alpha, transparent = values[..., 0] if kind == "L" else values[..., :3], values[..., -1], None
        else:
            values = np.asarray(picture.convert(kind))
    if transparent is not None:  # one grey or colour of 16 bits
        alpha = np.atleast_3d(values != np.array(transparent)).any(2)
    if alpha is not None:
        alpha = np.float32(alpha) / (1 if alpha.dtype == bool else np.iinfo(alpha.dtype).max)
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)  # Pillow turns TIFF itself, and removes the tag
    return Frame(values, alpha, mode, orientation, picture.format in ("JPEG", "MPO", "JPEG2000"))
