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
CELL = 75   # pixels between the middles of cells in a micrograph, about


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
    Returns (N, 1, 32, 32) float32 in [-1, 1], ink 1 on background -1, of 8 bits: whole numbers over 127.5, less 1.
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
        images[s, 0] = np.rint(127.5 * np.clip(2 * ink, -1, 1) + 127.5)
    images /= 127.5
    images -= 1
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
    def smooth(wavelength, deviation):  # a random field: normal knots every ``wavelength`` pixels, bicubic between
        knots = rng.normal(0, deviation, (height // wavelength + 4, width // wavelength + 4)).astype(np.float32)
        box = (1, 1, 1 + width / wavelength, 1 + height / wavelength)
        return np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC, box=box))

    # A grid of squares with a seed in each, three of them beyond each edge. Lengths are in squares at first.
    y, x = (np.mgrid[:height, :width].astype(np.float32) + [smooth(60, 17), smooth(60, 17)]) / CELL + 3
    rows, columns = height // CELL + 7, width // CELL + 7
    seeds = np.mgrid[:rows, :columns].reshape(2, -1) + rng.uniform(0.1, 0.9, (2, rows * columns)).astype(np.float32)
    around = np.add.outer(columns * np.arange(-1, 2), np.arange(-1, 2)).reshape(9, 1, 1)
    near = y.astype(int) * columns + x.astype(int) + around  # (9, height, width): numbers of the seeds around a pixel
    distance = CELL * np.hypot(y - seeds[0][near], x - seeds[1][near])
    first, second = np.partition(distance, 1, axis=0)[:2]
    border = second - first  # about twice the distance to the membrane
    cell = np.take_along_axis(near, distance.argmin(0)[None], 0)[0]

    def of_cell(low, high):
        return rng.uniform(low, high, rows * columns).astype(np.float32)[cell]

    dy, dx, angle = CELL * (y - seeds[0][cell]), CELL * (x - seeds[1][cell]), of_cell(0, np.pi)
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    radius = np.hypot(along / of_cell(24, 48), across / of_cell(15, 25))
    mask = (radius < 1) & (border > 10) & (of_cell(0, 1) < 0.25)
    tone = smooth(100, 12) + smooth(8, 12)
    cristae = np.sin(along * 2 * np.pi / of_cell(8, 13) + across / 16 + tone / 6) * (radius < 0.8)
    mitochondrion = 104 + 18 * cristae - 50 * np.exp(-((radius - 0.95) / 0.07) ** 2) + 0.4 * tone
    cytoplasm = 172 - 125 * np.exp(-(border / np.maximum(8 + smooth(80, 5), 4)) ** 2) + tone
    image = np.where(mask, mitochondrion, cytoplasm) + smooth(2, 9)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), mask
