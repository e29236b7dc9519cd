"""Predictions for pictures of any size, made tile by tile and blended so that no seams show."""

import numpy as np

from . import distributed
from .journal import Journal


def predict_tiled(predict, image, out=None, tile=256, overlap=64, batch_size=4, journal=None):
    """Cut a picture into overlapping tiles, predict each, and blend the results.

    Where tiles overlap, each result counts with a smooth weight, the weights summing to 1: none on the outermost
    overlap/4 pixels, where a network sees the tile's edge, then half a cosine over overlap/2 pixels up to 1. Beyond
    its edges the picture is mirrored, by overlap/2 pixels and as many more as fill the last tiles.

    Pictures larger than memory: of ``image`` and ``out`` only rows are sliced, as np.memmap, zarr and h5py arrays can
    be. Two rows of tiles are in memory at a time, (K, tile, W) float64 each. Ranks share the work.

    predict: called with tiles (N, C, tile, tile) float32, N ≤ batch_size; returns a NumPy array (N, K, tile, tile).
        One that computes on a GPU brings its result back (``npdiffusion.to_device``).
    image: (C, H, W), or (H, W) for C = 1, of any size, smaller than a tile too. Tiles of it become float32.
    out: (K, H, W), or (H, W) for K = 1, of floats; written in blocks of rows, each of its ``chunks`` once.
    tile: side of a tile in pixels. overlap: pixels that neighbours share, less than ``tile``.
    batch_size: tiles predicted together.
    journal: file that notes which blocks of ``out`` are finished; for an np.memmap, by default, its file's name plus
        ".journal". The same call, with the same predict and image, goes on where the last one was stopped. At the end
        the file is removed.

    Returns out; if that is None a new array (K, H, W) float32, for all ranks. Raises ValueError for options out of
    range, another shape of image, out or prediction, an ``out`` that is not of floats, and a journal of other work.
    """
    _check(image, out, tile, overlap, batch_size, journal)
    strips = _Strips(predict, image, out, tile, overlap, batch_size)
    chunk = (getattr(out, "shards", None) or getattr(out, "chunks", None) or (1, 1))[-2]
    edges = sorted({0, image.shape[-2], *(y // chunk * chunk for y in strips.rows.starts if y > 0)})
    blocks = list(zip(edges, edges[1:]))  # from one row of tiles to the next, in whole chunks
    if out is None:
        return np.concatenate([strips.blended(*block).astype(np.float32) for block in blocks], 1)

    if journal is None and getattr(out, "filename", None):
        journal = f"{out.filename}.journal"
    journal = Journal(journal, out, {"image": image.shape, "tile": tile, "overlap": overlap, "chunk": chunk})
    left, rank, size = journal.unfinished(blocks), distributed.get_rank(), distributed.get_world_size()
    with distributed.alone():
        for start, stop in left[len(left) * rank // size:len(left) * (rank + 1) // size]:
            block = strips.blended(start, stop).astype(out.dtype)
            out[..., start:stop, :] = block if len(out.shape) == 3 else block[0]
            journal.add(start, stop)
    journal.remove()
    return out


class _Strips:
    """What each row of tiles adds to the picture: predicted when it is needed, and kept as long as it is."""

    def __init__(self, predict, image, out, tile, overlap, batch_size):
        self.predict, self.image, self.tile, self.batch_size = predict, image, tile, batch_size
        self.rows, self.columns = (_Tiles(size, tile, overlap) for size in image.shape[-2:])
        self.channels = None if out is None else (1, *out.shape)[-3]
        self.kept = {}

    def blended(self, start, stop):
        """Rows start … stop - 1 of the result, (K, stop - start, W) float64: the sum of the strips that reach them."""
        total, kept = None, {}
        for row, y in enumerate(self.rows.starts):
            if y < stop and y + self.tile > start:
                strip = self.kept.pop(row) if row in self.kept else self.strip(row)
                if total is None:
                    total = np.zeros((self.channels, stop - start, self.image.shape[-1]))
                first, last = max(start, y), min(stop, y + self.tile)
                total[:, first - start:last - start] += strip[:, first - y:last - y]
                if y + self.tile > stop:
                    kept[row] = strip
        self.kept = kept
        return total

    def strip(self, row):
        """A row of tiles, weighted and summed, (K, tile, W) float64. The ranks deal out its tiles."""
        y, starts = self.rows.pixels[row], self.columns.starts
        slab = np.asarray(self.image[..., int(y.min()):int(y.max()) + 1, :])
        slab = slab.reshape(-1, *slab.shape[-2:]).take(y - y.min(), 1)
        rank, size, margin, total = distributed.get_rank(), distributed.get_world_size(), -starts[0], None
        mine = range(len(starts))[rank::size] or range(1)  # without a tile of its own: one, to learn K
        for i in range(0, len(mine), self.batch_size):
            some = mine[i:i + self.batch_size]
            results = self.predicted(np.stack([slab.take(self.columns.pixels[column], 2) for column in some]))
            if total is None:
                total = np.zeros((self.channels, self.tile, starts[-1] + self.tile + margin))
            for column, result in zip(some, results):
                x = starts[column] + margin
                window = np.outer(self.rows.weights[row], self.columns.weights[column])
                total[:, :, x:x + self.tile] += window * result
        total = distributed.all_reduce(total if rank < len(starts) else np.zeros_like(total))
        return total[:, :, margin:margin + self.image.shape[-1]]

    def predicted(self, tiles):
        """The results for some tiles, of a shape found right."""
        with distributed.alone():  # nothing that predict calls shares its work with other ranks
            results = self.predict(tiles.astype(np.float32, copy=False))
        n, k, side = len(tiles), self.channels, self.tile
        if results.ndim != 4 or results.shape != (n, k or results.shape[1], side, side):
            raise ValueError(f"predict_tiled expects predict to return ({n}, {k or 'K'}, {side}, {side}), "
                             f"got {results.shape}; out, if given, must have K channels")
        self.channels = results.shape[1]
        return results


class _Tiles:
    """The tiles along an axis: where they start, the pixels that they show, and the weights of these."""

    def __init__(self, size, tile, overlap):
        margin = overlap // 2
        self.starts = range(-margin, max(1, size + 2 * margin - overlap) - margin, tile - overlap)
        index = np.arange(tile) + np.array(self.starts)[:, None] + margin  # counted from the first tile's start
        self.pixels = np.pad(np.arange(size), (margin, self.starts[-1] + tile - size), mode="reflect")[index]
        ramp = np.interp(np.arange(tile) + 0.5, [overlap / 4, 3 * overlap / 4], [0, 1])
        edge = 0.5 - 0.5 * np.cos(np.pi * ramp)
        window = np.broadcast_to(edge * edge[::-1], index.shape)
        total = np.bincount(index.ravel(), window.ravel())
        self.weights = window / np.maximum(total, 1e-300)[index]  # total is 0 only outside the picture


def _check(image, out, tile, overlap, batch_size, journal):
    if len(image.shape) not in (2, 3) or 0 in image.shape:
        raise ValueError(f"predict_tiled expects an image of shape (C, H, W) or (H, W), got {image.shape}")
    if not 0 <= overlap < tile or batch_size < 1:
        raise ValueError(f"predict_tiled expects 0 <= overlap < tile and batch_size >= 1, "
                         f"got overlap={overlap}, tile={tile}, batch_size={batch_size}")
    h, w = image.shape[-2:]
    if out is None and journal:
        raise ValueError("predict_tiled expects out= with journal=: what is in memory alone is lost when it stops")
    if out is not None and (len(out.shape) > 3 or tuple(out.shape[-2:]) != (h, w)):
        raise ValueError(f"predict_tiled expects out of shape (K, {h}, {w}) or ({h}, {w}), got {out.shape}")
    if out is not None and not np.issubdtype(out.dtype, np.floating):
        raise ValueError(f"predict_tiled expects out to be of floats (float32), got {out.dtype}; convert afterwards")
