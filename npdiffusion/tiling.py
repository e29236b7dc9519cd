"""Predictions for pictures of any size, made tile by tile and blended so that no seams show."""

import numpy as np
from tqdm import tqdm

__all__ = ["predict_tiled"]


def predict_tiled(predict, image, tile=256, overlap=64, batch_size=4, progress=False):
    """Cut a picture into overlapping tiles, predict each, and blend the results.

    Where tiles overlap, each result counts with a smooth weight, the weights summing to 1: none on the outermost
    overlap/4 pixels, where a network sees the tile's edge, then half a cosine over overlap/2 pixels up to 1. Beyond
    its edges the picture is mirrored, by overlap/2 pixels and as many more as fill the last tiles.

    All arrays are NumPy's: a ``predict`` that computes on a GPU brings its result back (``npdiffusion.to_device``).

    Args:
        predict: called with tiles (N, C, tile, tile) float32, N ≤ batch_size; returns an array (N, K, tile, tile).
        image: (C, H, W) float32, of any size, smaller than a tile too.
        tile: side of a tile in pixels. overlap: pixels that neighbours share, less than ``tile``.
        batch_size: tiles predicted together. progress: show a progress bar.

    Returns (K, H, W) float32.

    Raises:
        ValueError: another shape of image, an overlap out of range, or a prediction of another shape.
    """
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"predict_tiled expects an image of shape (C, H, W), got {image.shape}")
    if not 0 <= overlap < tile or batch_size < 1:
        raise ValueError(f"predict_tiled expects 0 <= overlap < tile and batch_size >= 1, "
                         f"got overlap={overlap}, tile={tile}, batch_size={batch_size}")
    stride, margin = tile - overlap, overlap // 2
    counts = [max(1, -(-(size + 2 * margin - overlap) // stride)) for size in image.shape[1:]]
    sizes = [count * stride + overlap for count in counts]
    pad = [(margin, size - margin - inner) for size, inner in zip(sizes, image.shape[1:])]
    padded = np.pad(image, [(0, 0), *pad], mode="reflect")
    window = _ramps(tile, overlap)
    window = window[:, None] * window

    corners = [(stride * i, stride * j) for i in range(counts[0]) for j in range(counts[1])]
    total, weights = None, np.zeros(sizes)  # float64: the weights' rounding stays below float32's
    for start in tqdm(range(0, len(corners), batch_size), disable=not progress, desc="tiles"):
        some = corners[start:start + batch_size]
        results = predict(np.stack([padded[:, y:y + tile, x:x + tile] for y, x in some]))
        if results.ndim != 4 or results.shape[0] != len(some) or results.shape[2:] != (tile, tile):
            raise ValueError(f"predict_tiled expects predict to return ({len(some)}, K, {tile}, {tile}), "
                             f"got {results.shape}")
        if total is None:
            total = np.zeros((results.shape[1], *sizes))
        for (y, x), result in zip(some, results):
            total[:, y:y + tile, x:x + tile] += window * result
            weights[y:y + tile, x:x + tile] += window
    inside = tuple(slice(before, size - after) for (before, after), size in zip(pad, sizes))
    return (total[(slice(None), *inside)] / weights[inside]).astype(np.float32)


def _ramps(tile, overlap):
    """(tile,) weights: 0 over overlap/4 pixels, half a cosine over overlap/2, then 1, and the same at the other end.

    Two such windows, a stride of tile − overlap apart, add up to 1 where they overlap.
    """
    position = np.arange(overlap) + 0.5  # from 0 to overlap
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.clip(2 * position / max(overlap, 1) - 0.5, 0, 1))
    window = np.ones(tile)
    window[:overlap] = ramp
    window[tile - overlap:] *= ramp[::-1]
    return window
