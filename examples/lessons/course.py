"""What the lessons share: their data, and where their figures go."""

from pathlib import Path

from npdiffusion.data import DataNotFoundError, load_digits, load_micrographs
from npdiffusion.figures import save_figure


def digits(split="train"):
    """MNIST, or where it cannot be had drawn digits: ``images`` (N, 1, 32, 32) in [−1, 1], ``labels`` (N,)."""
    try:
        return load_digits("mnist", split)
    except DataNotFoundError:
        print("MNIST cannot be had here: drawn digits stand in for it")
        return load_digits("synthetic", split)


def micrographs():
    """ssTEM sections for training and for testing, or where they cannot be had drawn ones: ``images``, ``masks``."""
    try:
        return load_micrographs("sstem")
    except DataNotFoundError:
        print("The ssTEM sections cannot be had here: drawn pictures stand in for them")
        return load_micrographs("synthetic")


def keep(figure, lesson):
    """Write the figure of a lesson (its ``__file__``) to runs/lessons."""
    path = Path("runs", "lessons", f"{Path(lesson).stem}.png")
    save_figure(figure, path)
    print(f"The figure: {path}")
