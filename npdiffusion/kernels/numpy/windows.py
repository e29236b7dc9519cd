"""What the kernels that slide windows over images share: cache-sized chunks and zero padding."""

from ...threads import scratch, threads_for


def threads_for_columns(pixels, taps, channels):
    """``threads_for`` the products of a convolution's columns with its weights, and for moving columns and results."""
    return threads_for(pixels * (taps * channels + 64 * (taps + channels)))


def chunks(images, rows, row_bytes, chunk_bytes, threads):
    """Cut images of so many rows into pieces (n0, n1, r0, r1) of about chunk_bytes.

    A piece is a few whole images, or rows of a single one: large images, or fewer images than threads.
    """
    if images >= threads and rows * row_bytes <= chunk_bytes:
        pieces = min(images, -(-images * rows * row_bytes // (chunk_bytes * threads)) * threads)
        edges = [images * i // pieces for i in range(pieces + 1)]
        return [(n0, n1, 0, rows) for n0, n1 in zip(edges, edges[1:])]
    pieces = min(rows, max(-(-rows * row_bytes // chunk_bytes), -(-threads // images)))
    edges = [rows * i // pieces for i in range(pieces + 1)]
    return [(n, n + 1, r0, r1) for n in range(images) for r0, r1 in zip(edges, edges[1:])]


def bytes_for(least, weights):
    """Bytes of a chunk: the least, or 2 to 4 times it, not more than the weights have, which BLAS packs anew for each
    chunk (Winograd, 4×32², 256 to 256 channels: 13 ms with 2 MiB, 11 with 8; columns, 4×8², 512 to 256: 4.8, now 3.9).
    """
    return least * min(max(weights.nbytes // least, 1), 4)


def padded(x, first, size):
    """The rectangle of x (N, H, W, C) with this first (row, column) and size, zeros outside x (scratch)."""
    (top, left), (n, h, w, channels) = first, x.shape
    rectangle = scratch("padded", (n, *size, channels), x.dtype)
    t, b = (min(max(edge - top, 0), size[0]) for edge in (0, h))  # rows t to b of it lie inside x
    l, r = (min(max(edge - left, 0), size[1]) for edge in (0, w))
    rectangle[:, :t] = rectangle[:, b:] = 0
    rectangle[:, t:b, :l] = rectangle[:, t:b, r:] = 0
    rectangle[:, t:b, l:r] = x[:, top + t : top + b, left + l : left + r]
    return rectangle
