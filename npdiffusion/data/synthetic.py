"""Drawn stand-ins where real data cannot be had: digits in printed fonts, and pictures somewhat like neural tissue.

What is measured on them says nothing about real data.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .micrographs import Micrographs
from .mnist import Dataset

# Matplotlib brings these along. (The monospaced faces have a dot inside the zero.)
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral",
         "STIXGeneralItalic", "cmss10", "cmtt10")
SIZE = 32    # of the digits' pictures
DIGIT = 20   # height (or width) of a digit in pixels, as in MNIST
FIELD = 96   # samples of a glyph's picture along each axis, two for each pixel
CHUNK = 64   # digits drawn together: their coordinates stay in cache
CELL = 70    # pixels between the middles of cells in a micrograph, about


class SyntheticDigits(Dataset):
    """``n`` ≥ 1 drawn digits with the interface and the value range of :class:`MNIST`; ``seed`` fixes all of it."""

    def __init__(self, n=60000, seed=0):
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        rng = np.random.default_rng(seed)
        labels = rng.integers(10, size=n)
        super().__init__(draw_digits(labels, rng), labels)


def draw_digits(labels, rng):
    """Draw one digit for each label, in a random face, slant, size, place, thickness and wobble.

    labels: (N,) integers 0 to 9. rng: ``np.random.Generator`` that draws everything random.
    Returns (N, 1, 32, 32) float32 in [-1, 1], ink 1 on background -1.
    """
    glyphs, n = _glyphs(), len(labels)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *shape, 1, 1)).astype(np.float32)

    faces = rng.integers(len(FONTS), size=n)
    angle, slant, scale = uniform(-0.25, 0.25), uniform(-0.25, 0.35), 2 / uniform(0.85, 1.05)
    width, shift = scale / uniform(0.8, 1.1), uniform(-1, 1, 2)
    bend, phase = uniform(-1.2, 1.2, 2), uniform(0, 2 * np.pi, 2)  # of waves along both axes
    thickness, sharpness = uniform(-0.1, 0.5), uniform(2, 3)  # (1 - 0.5)·2 = 1: the ground is -1
    cos, sin = np.cos(angle), np.sin(angle)
    images = np.empty((n, SIZE, SIZE), np.float32)
    grid = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    for start in range(0, n, CHUNK):
        s = slice(start, start + CHUNK)
        x = grid + shift[s, 0] + bend[s, 0] * np.sin(0.25 * grid[:, None] + phase[s, 0])
        y = grid[:, None] + shift[s, 1] + bend[s, 1] * np.sin(0.25 * grid + phase[s, 1])
        along, down = cos[s] * x - sin[s] * y, sin[s] * x + cos[s] * y  # turned, and then slanted
        ink = _bilinear(glyphs[faces[s], labels[s]], width[s] * (along + slant[s] * down), scale[s] * down)
        np.clip((ink + thickness[s]) * sharpness[s], -1, 1, out=images[s])
    return images[:, None]


def _bilinear(glyphs, x, y):
    """glyphs (n, FIELD, FIELD) at x, y (n, h, w) in samples from their middle, clamped to their edge."""
    x, y = (np.clip(v + (FIELD - 1) / 2, 0, FIELD - 1.001) for v in (x, y))
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    at = row * FIELD + column + np.arange(len(glyphs), dtype=np.int32)[:, None, None] * FIELD ** 2
    flat = glyphs.reshape(-1)
    top, bottom = ((1 - x) * flat[i] + x * flat[i + 1] for i in (at, at + FIELD))
    return (1 - y) * top + y * bottom


@lru_cache(maxsize=1)
def _glyphs():
    """Slightly blurred pictures (faces, 10, FIELD, FIELD) float32, ink 1 on -1: a threshold makes strokes of them."""
    from matplotlib import get_data_path  # here, for a quick import of npdiffusion.data

    glyphs = np.empty((len(FONTS), 10, FIELD, FIELD), np.float32)
    for face, digit in np.ndindex(len(FONTS), 10):
        font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{FONTS[face]}.ttf"), 2 * DIGIT)
        left, top, right, bottom = font.getbbox(str(digit))
        font = font.font_variant(size=(2 * DIGIT) ** 2 / max(right - left, bottom - top))
        left, top, right, bottom = font.getbbox(str(digit))
        picture = Image.new("L", (FIELD, FIELD))
        corner = (FIELD - left - right) / 2, (FIELD - top - bottom) / 2
        ImageDraw.Draw(picture).text(corner, str(digit), fill=255, font=font)
        glyphs[face, digit] = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2))) / np.float32(127.5) - 1
    return glyphs


class SyntheticMicrographs(Micrographs):
    """``n`` drawn pictures that look somewhat like neural tissue under the electron microscope; ``seed`` fixes all.

    Cells are the regions of a Voronoi diagram (Worley 1996) over smoothly warped coordinates, membranes its borders;
    in some cells lies a mitochondrion, an ellipse with a dark rim and stripes (cristae); grain lies over all.

    Raises ValueError for n < 1 or sides below 32 pixels.
    """

    def __init__(self, n, size=(1024, 1024), seed=0):
        if n < 1 or min(size) < 32:
            raise ValueError(f"expected n >= 1 pictures of at least 32×32 pixels, got n={n}, size={size}")
        rng = np.random.default_rng(seed)
        images, masks = zip(*(_draw_micrograph(*size, rng) for _ in range(n)))
        super().__init__(np.stack(images), np.stack(masks), [f"synthetic-{i:02d}" for i in range(n)])


def _draw_micrograph(height, width, rng):
    """One micrograph (height, width) uint8, and where its mitochondria are."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + [_smooth(height, width, 60, 17, rng) for _ in range(2)]
    rows, columns = height // CELL + 4, width // CELL + 4  # a rim of two cells beyond each edge
    seeds = np.mgrid[:rows, :columns].reshape(2, -1).T - 1.5 + rng.uniform(-0.45, 0.45, (rows * columns, 2))
    seeds = (seeds * CELL).astype(np.float32)

    def box(sy, sx, reach):  # around a seed, with all pixels that are less than ``reach`` from it after warping
        return tuple(slice(max(0, int(v) - reach - 60), max(0, int(v) + reach + 60)) for v in (sy, sx))

    first, second = np.full((2, height, width), 1e3, np.float32)  # distances to the nearest seeds
    for sy, sx in seeds:
        b = box(sy, sx, 2 * CELL)
        distance = np.hypot(y[b] - sy, x[b] - sx)
        second[b] = np.minimum(second[b], np.maximum(first[b], distance))
        first[b] = np.minimum(first[b], distance)
    border = second - first  # about twice the distance to the membrane

    image, mask = 172 + _smooth(height, width, 100, 12, rng) + _smooth(height, width, 8, 12, rng), border < 0
    for sy, sx in seeds[rng.random(len(seeds)) < 0.2]:
        b, long, short, angle = box(sy, sx, 50), rng.uniform(24, 48), rng.uniform(15, 25), rng.uniform(0, np.pi)
        dy, dx = y[b] - sy, x[b] - sx
        along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        radius = np.hypot(along / long, across / short)
        inside = (radius < 1) & (border[b] > 10)
        stripes = np.sin(along * (2 * np.pi / rng.uniform(8, 13)) + 0.06 * across + image[b] / 6)
        filling = 104 + 18 * stripes * (radius < 0.8) - 50 * np.exp(-((radius - 0.95) / 0.07) ** 2)
        image[b] = np.where(inside, filling + 0.4 * (image[b] - 172), image[b])
        mask[b] |= inside
    image -= 125 * np.exp(-(border / 7) ** 2) * ~mask
    image += _smooth(height, width, 2, 9, rng)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask


def _smooth(height, width, wavelength, deviation, rng):
    """A smooth random field (height, width) float32: normal knots every ``wavelength`` pixels, bicubic between."""
    knots = rng.normal(0, deviation, (height // wavelength + 4, width // wavelength + 4)).astype(np.float32)
    box = (1, 1, 1 + width / wavelength, 1 + height / wavelength)
    return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC, box=box))
