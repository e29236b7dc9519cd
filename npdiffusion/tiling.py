"""Predictions for pictures of any size, made tile by tile and blended so that no seams show."""

import numpy as np


def predict_tiled(predict, image, tile=256, overlap=64, batch_size=4):
    """Cut a picture into overlapping tiles, predict each, and blend the results.

    Where tiles overlap, each result counts with a smooth weight, the weights summing to 1: none on the outermost
    overlap/4 pixels, where a network sees the tile's edge, then half a cosine over overlap/2 pixels up to 1. Beyond
    its edges the picture is mirrored, by overlap/2 pixels and as many more as fill the last tiles.

    All arrays are NumPy's: a ``predict`` that computes on a GPU brings its result back (``npdiffusion.to_device``).

    predict: called with tiles (N, C, tile, tile) float32, N ≤ batch_size; returns an array (N, K, tile, tile).
    image: (C, H, W) of any size, smaller than a tile too; becomes float32.
    tile: side of a tile in pixels. overlap: pixels that neighbours share, less than ``tile``.
    batch_size: tiles predicted together.

    Returns (K, H, W) float32. Raises ValueError for options out of range or another shape of image or prediction.
    """
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"predict_tiled expects an image of shape (C, H, W), got {image.shape}")
    if not 0 <= overlap < tile or batch_size < 1:
        raise ValueError(f"predict_tiled expects 0 <= overlap < tile and batch_size >= 1, "
                         f"got overlap={overlap}, tile={tile}, batch_size={batch_size}")
    stride, margin = tile - overlap, overlap // 2
    h, w = image.shape[1:]
    rows, columns = (range(0, max(1, size + 2 * margin - overlap), stride) for size in (h, w))  # where tiles start
    sizes = rows[-1] + tile, columns[-1] + tile
    pad = [(0, 0), (margin, sizes[0] - margin - h), (margin, sizes[1] - margin - w)]
    padded = np.pad(image.astype(np.float32), pad, mode="reflect")
    ramp = np.interp(np.arange(tile) + 0.5, [overlap / 4, 3 * overlap / 4], [0, 1])
    edge = 0.5 - 0.5 * np.cos(np.pi * ramp)
    window = np.outer(edge * edge[::-1], edge * edge[::-1])

    corners = [(y, x) for y in rows for x in columns]
    total, weights = None, np.zeros(sizes)  # float64: the weights' rounding stays below float32's
    for start in range(0, len(corners), batch_size):
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
    blended = total[:, margin:margin + h, margin:margin + w] / weights[margin:margin + h, margin:margin + w]
    return blended.astype(np.float32)
