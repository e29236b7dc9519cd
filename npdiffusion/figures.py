"""Figures of pictures, NumPy arrays, as a paper would print them."""

import numpy as np

from .files import atomic_write

__all__ = ["picture_rows", "save_figure"]


def picture_rows(rows, row_labels, column_labels=(), group=None, cell=0.62, fontsize=9):
    """A figure of grey pictures in rows.

    Args:
        rows: one array (columns, 1, H, W) in [−1, 1] for each row.
        row_labels: a text for each row, written on its left.
        column_labels: a text for each column, or for each group of columns, written above it.
        group: columns in a group; groups are set apart. None: no groups.
        cell: width of a picture in inches.

    Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    count = len(rows[0])
    gap, pad = (0.18 if group else 0), 0.03  # in cells, between groups and between pictures
    group = group or 1
    margin = 0.075 * fontsize / 9 * max(map(len, row_labels)) + 0.1
    width = margin + cell * (count * (1 + pad) + gap * ((count - 1) // group)) + 0.05
    top = 0.35 if column_labels else 0.05
    height = top + cell * len(rows) * (1 + pad) + 0.05
    figure = Figure(figsize=(width, height))
    for i, (pictures, label) in enumerate(zip(rows, row_labels)):
        bottom = height - top - cell * (1 + (1 + pad) * i)
        figure.text((margin - 0.06) / width, (bottom + cell / 2) / height, label, ha="right", va="center",
                    fontsize=fontsize)
        for j, picture in enumerate(pictures):
            left = margin + cell * (j * (1 + pad) + gap * (j // group))
            axes = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
            axes.imshow(np.asarray(picture)[0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    for k, label in enumerate(column_labels):
        middle = margin + cell * (k * group * (1 + pad) + gap * k + group * (1 + pad) / 2)
        figure.text(middle / width, 1 - 0.08 / height, label, ha="center", va="top", fontsize=fontsize)
    return figure


def save_figure(figure, path, dpi=150):
    """Write a matplotlib figure as PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, format="png")
