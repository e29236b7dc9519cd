"""Digits drawn on this machine: fonts stand in for handwriting where MNIST cannot be downloaded.

Each digit starts as the signed distance field of a printed glyph (distance to its outline, positive in the ink). One
bilinear look-up of that field at warped coordinates, then a soft threshold, gives stroke thickness and blur for free:
ink = clip(1/2 + (distance + offset) / softness, 0, 1). The smooth random displacement is that of Simard, Steinkraus
and Platt (2003), section 2, with splines in place of their Gaussian filter.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .mnist import Dataset

# Matplotlib brings these along. (The monospaced faces have a dot inside the zero.)
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral",
         "STIXGeneralItalic", "cmss10", "cmtt10")
SIZE = 32       # of the pictures
DIGIT = 20      # height (or width) of a glyph in pixels, as in MNIST
FIELD = 48      # samples of a distance field along each axis ...
STEP = 0.75     # ... and their distance in pixels
KNOTS = 8       # of the displacement's splines along each axis, 6 pixels apart
CHUNK = 64      # pictures warped together: their coordinates stay in cache


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
    fields, half_widths = _glyphs()
    n = len(labels)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    faces = rng.integers(len(FONTS), size=n)
    # Pixel to glyph coordinates: scale, then rotation, then slant.
    angle, slant = uniform(-0.25, 0.25), uniform(-0.25, 0.35)
    scale = 1 / uniform(0.85, 1.05)
    width = scale / uniform(0.8, 1.1)
    cos, sin = np.cos(angle), np.sin(angle)
    affine = np.stack([width * (cos + slant * sin), width * (slant * cos - sin), scale * sin, scale * cos], 1)
    shift = uniform(-1, 1, 2)
    wobble = rng.normal(0, 1.6, (n, 2, KNOTS, KNOTS)).astype(np.float32)
    offset = uniform(0.9, 1.7) - half_widths[faces, labels]
    softness = uniform(1.0, 1.6)

    images = np.empty((n, SIZE, SIZE), np.float32)
    basis = _spline_basis(SIZE, KNOTS)
    grid = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    for start in range(0, n, CHUNK):
        s = slice(start, start + CHUNK)
        delta = basis @ wobble[s] @ basis.T                        # (n, 2, 32, 32) displacement in pixels
        delta += shift[s, :, None, None]
        x, y = grid + delta[:, 0], grid[:, None] + delta[:, 1]
        a, b, c, d = affine[s].T[:, :, None, None]
        distance = _bilinear(fields[faces[s], labels[s]], a * x + b * y, c * x + d * y)
        distance += offset[s, None, None]
        distance *= 2 / softness[s, None, None]
        np.clip(distance, -1, 1, out=images[s])                    # 2 * ink - 1
    return images[:, None]


def _bilinear(fields, x, y):
    """fields (n, FIELD, FIELD) at x, y (n, h, w) in pixels from the field's centre, clamped to its edge."""
    x, y = (np.clip(v / STEP + (FIELD - 1) / 2, 0, FIELD - 1.001) for v in (x, y))
    column, row = x.astype(np.int32), y.astype(np.int32)
    x -= column
    y -= row
    at = row * FIELD + column + np.arange(len(fields), dtype=np.int32)[:, None, None] * FIELD**2
    flat = fields.reshape(-1)

    def along_row(at):
        left = flat[at]
        return left + x * (flat[at + 1] - left)

    top = along_row(at)
    return top + y * (along_row(at + FIELD) - top)


def _spline_basis(n, knots):
    """(n, knots) weights of uniform cubic B-splines along n pixels: rows sum to 1, so smooth and bounded."""
    t = np.abs(np.linspace(1, knots - 2, n)[:, None] - np.arange(knots))
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0)**3 / 6).astype(np.float32)


@lru_cache(maxsize=1)
def _glyphs():
    """Distance fields (faces, 10, FIELD, FIELD) and half stroke widths (faces, 10), both in pixels."""
    from matplotlib import get_data_path  # here, for a quick import of npdiffusion.data

    directory = Path(get_data_path()) / "fonts" / "ttf"
    fields = np.stack([[_distance_field(directory / f"{name}.ttf", str(digit)) for digit in range(10)]
                       for name in FONTS])
    # A stroke of half width h and length l has area 2hl and an outline of 2l. The samples less than half a
    # pixel from the outline make a band one pixel wide, so counting them measures its length.
    half_widths = (fields > 0).sum((2, 3)) / (np.abs(fields) < 0.5).sum((2, 3))
    return fields, half_widths.astype(np.float32)


def _distance_field(font, character):
    """Signed distance in pixels to a glyph's outline, its centre of mass in the middle of the field."""
    picture = Image.new("L", (256, 256))
    face = ImageFont.truetype(font, 120)
    ImageDraw.Draw(picture).text((128, 128), character, fill=255, font=face, anchor="mm")
    ink = np.asarray(picture) > 127
    inside = ink[1:-1, 1:-1]
    neighbours = ink[:-2, 1:-1] & ink[2:, 1:-1] & ink[1:-1, :-2] & ink[1:-1, 2:]
    outline = np.argwhere(inside & ~neighbours) + 1
    scale = DIGIT / (np.ptp(outline, 0).max() + 1)                 # pixels of a digit per pixel drawn
    axis = (np.arange(FIELD) - (FIELD - 1) / 2) * STEP / scale
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2) + np.argwhere(ink).mean(0)
    squared = (points**2).sum(1)[:, None] + (outline**2).sum(1) - 2 * points @ outline.T
    distance = np.sqrt(np.maximum(squared.min(1), 0))
    row, column = np.clip(np.rint(points).astype(int), 0, 255).T
    signed = np.where(ink[row, column], distance + 0.5, 0.5 - distance)
    return (scale * signed).reshape(FIELD, FIELD).astype(np.float32)
