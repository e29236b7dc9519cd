"""Drawn stand-ins where real data cannot be had: digits in printed fonts, and pictures somewhat like neural tissue.

What is measured on them says nothing about real data.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from .micrographs import Micrographs
from .mnist import Dataset

# Matplotlib brings these along. (The monospaced faces have a dot inside the zero.)
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral",
         "STIXGeneralItalic", "cmss10", "cmtt10")
SIZE = 32   # of the digits' pictures in pixels
DIGIT = 20  # height (or width) of a digit in them, as in MNIST
FINE = 4    # samples of a glyph for each pixel: so many that the nearest will do


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
    n, glyphs = len(labels), _glyphs()
    images = np.empty((n, 1, SIZE, SIZE), np.float32)

    def uniform(low, high):
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    faces, labels = rng.integers(len(FONTS), size=(n, 1, 1)), np.reshape(labels, (n, 1, 1))
    slant, width, height, weight = uniform(-0.4, 0.5), uniform(0.8, 1.1), uniform(0.9, 1.05), uniform(-0.2, 0.5)
    right, down, bend, dip, phase = (uniform(-v, v) for v in (1, 1, 1.2, 1.2, np.pi))  # bend and dip are waves
    x = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    y, middle = x[:, None], glyphs.shape[-1] / 2
    for start in range(0, n, 64):  # so few that their coordinates stay in cache
        s = slice(start, start + 64)
        column = (x + right[s] + (slant[s] * y + bend[s] * np.sin(y / 4 + phase[s]))) * (FINE / width[s]) + middle
        row = (y + down[s] + dip[s] * np.sin(x / 4 + phase[s])) * (FINE / height[s]) + middle
        ink = glyphs[faces[s], labels[s], row.astype(int), column.astype(int)] + weight[s]
        np.clip(2 * ink, -1, 1, out=images[s, 0])
    return images


@lru_cache(maxsize=1)
def _glyphs():
    """Blurred pictures (faces, 10, H, W) float32 in [-1, 1], wide enough for all slants: a threshold gives strokes."""
    from matplotlib import get_data_path  # here, for a quick import of npdiffusion.data

    def glyph(face, digit):
        picture = Image.new("L", (400, 400))
        font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf"), 200)
        ImageDraw.Draw(picture).text((100, 100), digit, 255, font)
        picture = ImageOps.pad(picture.crop(picture.getbbox()), (DIGIT * FINE, DIGIT * FINE))
        return np.asarray(ImageOps.expand(picture, 22 * FINE).filter(ImageFilter.GaussianBlur(0.6 * FINE)))

    return np.array([[glyph(face, digit) for digit in "0123456789"] for face in FONTS], np.float32) / 127.5 - 1


class SyntheticMicrographs(Micrographs):
    """``n`` drawn pictures that look somewhat like neural tissue under the electron microscope; ``seed`` fixes all.

    Membranes are where one smooth random field changes its sign, mitochondria, with a dark rim and stripes (cristae),
    where another one is large, away from membranes; grain lies over all.

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
    def smooth(wavelength, deviation):  # a random field: normal knots every ``wavelength`` pixels, bicubic between
        knots = rng.normal(0, deviation, (height // wavelength + 4, width // wavelength + 4)).astype(np.float32)
        box = (1, 1, 1 + width / wavelength, 1 + height / wavelength)
        return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC, box=box))

    wall = np.minimum(abs(smooth(60, 1)), abs(smooth(60, 1))) / 0.18  # 1 at the edge of a membrane, 0 in its middle
    body, tone = smooth(40, 1) - 0.85, smooth(100, 12) + smooth(8, 14)
    mask = (body > 0) & (wall > 1.7)
    rim = np.exp(-np.minimum(body / 0.2, wall - 1.7) ** 2 / 0.16)
    mitochondrion = 110 + 18 * np.sin(smooth(60, 16) + tone / 6) - 50 * rim + 0.4 * tone
    cytoplasm = 172 - 125 * np.exp(-wall ** 2) + tone
    image = np.where(mask, mitochondrion, cytoplasm) + smooth(2, 9)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask
