"""Figures of pictures, NumPy arrays, as a paper would print them."""

import numpy as np
from matplotlib.figure import Figure

from .files import atomic_write


def picture_rows(rows, row_labels, column_labels=(), group=None, cell=0.62, fontsize=9):
    """A matplotlib Figure of pictures, grey or RGB, in rows; ``figure.axes`` are the pictures, row by row.

    rows: one array (columns, 1 or 3, H, W) in [−1, 1] for each row. row_labels: a text for each, written on its left.
    column_labels: a text for each column, or for each group of columns, written above it.
    group: columns in a group; groups are set apart. None: no groups. cell: width of a picture in inches.
    """
    if any(np.asarray(row).dtype.kind != "f" or np.shape(row)[1] not in (1, 3) for row in rows):
        raise ValueError("picture_rows expects floating-point pictures of 1 or 3 channels in [-1, 1]: scale uint8 by "
                         "x / 127.5 - 1")
    pitch, gap = 1.03 * cell, 0.18 * cell if group else 0  # from picture to picture; and between groups
    group, column = group or 1, np.arange(len(rows[0]))
    margin = 0.078 * fontsize / 9 * max(map(len, row_labels)) + 0.13
    lefts, top = margin + pitch * column + gap * (column // group), 0.35 if column_labels else 0.05
    width, height = lefts[-1] + pitch + 0.05, top + pitch * len(rows) + 0.05
    figure = Figure(figsize=(width, height))
    for i, (pictures, label) in enumerate(zip(rows, row_labels)):
        bottom = height - top - cell - pitch * i
        figure.text((margin - 0.06) / width, (bottom + cell / 2) / height, label, ha="right", va="center",
                    fontsize=fontsize)
        for left, picture in zip(lefts, pictures):
            axes = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
            shown = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0).clip(-1, 1) / 2 + 0.5
            axes.imshow(shown, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    for left, label in zip(lefts[::group], column_labels):
        figure.text((left + group * pitch / 2) / width, 1 - 0.08 / height, label, ha="center", va="top",
                    fontsize=fontsize)
    return figure


def save_figure(figure, path, dpi=150):
    """Write a matplotlib figure as PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, format="png")
