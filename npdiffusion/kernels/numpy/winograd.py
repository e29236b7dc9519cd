"""3x3, stride 1 convolution by Winograd's minimal filtering F(4x4, 3x3), with its gradients.

A tile of 4x4 outputs needs 6x6 inputs d and, written directly, 16 * 9 = 144 products for each pair of
channels. With the 3x3 filter f it is also (Lavin & Gray 2015, arXiv:1509.09308, equation 8)

    Y = A' [(G f G') * (B' d B)] A        * elementwise, ' transposed: 36 products, a quarter of them.

Summed over channels, the elementwise product of many tiles becomes 36 matrix products, one for each
element of the 6x6 transform: (tiles, C_in) @ (C_in, C_out). The transforms are matrix products as well,
first over tile rows, then over tile columns: (6, 6) @ (6, all tiles and channels). BLAS is faster there
than the few additions written as array operations, each of which would pass over the memory again.

The expression is linear in f, so <g, Y> has the gradient (g cut into 4x4 tiles)

    df = G' [sum over tiles of (A g A') * (B' d B)] G

which shares B' d B with Y itself. The factors up to 8 in A and 5 in B cost about one digit: in float32
the largest error is 4e-6 to 8e-6 of the largest output, against 5e-7 for direct summation. All outputs of a
tile share it: those that see pixels k times smaller than others in the tile lose 3e-7 k to 1e-6 k of their
own size (root mean square; single ones ten times that), and infinity or NaN fills the tile. ``fits_winograd``.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...threads import parallel, scratch, threads_for
from .elementwise import MOVED
from .layout import channels_last, to_nchw
from .windows import bytes_for, chunks, padded, threads_for_columns

# Section 4.3 of the paper: interpolation at the points 0, 1, -1, 2, -2 and infinity.
_BT = np.array([[4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1]])
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]])
_CONTRAST = 1e-5  # times 1/eps: 84 in float32, at which the darkest outputs lose up to 1e-4
_CHUNK_BYTES = 1 << 21  # bytes of the transforms of x and y for one chunk of tiles
_AT_ONCE = 64  # input channels whose filters are transformed at a time, in cache (512 to 256: 3 ms at once, now 2)


def winograd_pays(images, weight_shape, size, stride, dilation, groups):
    """Whether ``winograd`` applies and beats im2col, for an output of this size = (H, W).

    Measured limits: with few channels the transforms cost more than the products they save; with few
    tiles the transformed filters, 4 times the weights, do; and tiles that hang over waste products.
    """
    (o, c, kh, kw), (h, w) = weight_shape, size
    tiles = -(-h // 4) * -(-w // 4)
    possible = (kh, kw) == (3, 3) and tuple(stride) == tuple(dilation) == (1, 1) and groups == 1
    return possible and min(c, o) >= 16 and images * tiles >= 32 and 16 * tiles <= 2 * h * w


def fits_winograd(x, even):
    """Whether x (N, C, H, W) is finite, and if it is to be ``even``, no pixel (a vector of channels) _CONTRAST/eps
    times as large as another."""
    pixels, limit = channels_last(x).reshape(-1, x.shape[1]), _CONTRAST / np.finfo(x.dtype).eps
    squares_of = lambda start, stop: np.vecdot(pixels[start:stop], pixels[start:stop])
    squares = np.concatenate(parallel(squares_of, len(pixels), threads_for(MOVED * x.size)))
    return squares.max() < np.inf and (not even or squares.max() <= limit ** 2 * squares.min())


def winograd(x, weight, bias, cotangent, size, padding, need_y=True):
    """Convolution y (N, C_out, *size) of x with a 3x3 weight, and the gradient dweight of <cotangent, y>.

    x (N, C_in, H, W); weight (C_out, C_in, 3, 3); padding (top, left), the far padding follows from size = (h, w).
    Returns (y or None, dweight or None): y if need_y, dweight if a cotangent (shaped like y) is given.
    """
    x, cotangent = channels_last(x), channels_last(cotangent)
    (count, _, _, c), o, (h, w) = x.shape, len(weight), size
    across, down = -(-w // 4), -(-h // 4)  # tiles in a row and rows of tiles; the last ones may overhang
    bt, g, a = (matrix.astype(x.dtype) for matrix in (_BT, _G, _A))
    threads = threads_for_columns(count * h * w, 9 * c, o)
    filters = np.empty((6, 6, c * o), x.dtype)
    pieces = chunks(count, down, 36 * across * (c + o) * x.itemsize, bytes_for(_CHUNK_BYTES, filters), threads)
    y = np.empty((count, h, w, o), x.dtype) if need_y else None

    def transform_filters(start, stop):  # for input channels start to stop
        for first in range(start, stop, _AT_ONCE):
            last = min(first + _AT_ONCE, stop)
            taps = weight[:, first:last].transpose(2, 3, 1, 0).reshape(3, 3, -1)
            _transform(g, taps, out=filters[:, :, first * o : last * o])

    def run(start, stop):
        dfilters = 0
        for n0, n1, r0, r1 in pieces[start:stop]:
            n, rows = n1 - n0, r1 - r0
            tiles, band = n * rows * across, slice(4 * r0, 4 * r1)
            d = padded(x[n0:n1], (4 * r0 - padding[0], -padding[1]), (4 * rows + 2, 4 * across + 2))
            d = _tiles(d, 6, rows, across)
            d = _transform(bt, d, out=scratch("input", d.shape, x.dtype)).reshape(36, tiles, c)
            products = scratch("products", (36, tiles, o), x.dtype)
            if need_y:
                np.matmul(d, filters.reshape(36, c, o), out=products)
                if bias is not None:
                    products[7] += bias  # element (1, 1), which A' takes to every output with factor 1
                outputs = scratch("outputs", (4, 4, tiles * o), x.dtype)
                _transform(a.T, products.reshape(6, 6, -1), out=outputs)
                _store(outputs.reshape(4, 4, n, rows, across, o), y[n0:n1, band])
            if cotangent is not None:
                upstream = cotangent[n0:n1, band]
                if upstream.shape[1:3] != (4 * rows, 4 * across):
                    upstream = padded(upstream, (0, 0), (4 * rows, 4 * across))
                _transform(a, _tiles(upstream, 4, rows, across), out=products.reshape(6, 6, -1))
                total = scratch("total", (36, c, o), x.dtype)
                dfilters += np.matmul(d.swapaxes(1, 2), products, out=total)
        return dfilters

    def transform_gradient(start, stop):  # of the filters of input channels start to stop
        total = sum(part[:, start:stop] for part in parts)  # in the threads' order: always the same bits
        taps = _transform(g.T, total.reshape(6, 6, -1), out=np.empty((3, 3, (stop - start) * o), x.dtype))
        dweight[..., start:stop] = taps.reshape(3, 3, -1, o).transpose(3, 0, 1, 2)

    if need_y:
        parallel(transform_filters, c, threads_for(MOVED * filters.size))
    parts = parallel(run, len(pieces), threads)
    if cotangent is not None:
        dweight = np.empty((o, 3, 3, c), x.dtype)
        parallel(transform_gradient, c, threads_for(MOVED * filters.size))
    return to_nchw(y) if need_y else None, None if cotangent is None else to_nchw(dweight)


def _tiles(image, side, down, across):
    """Tiles of side x side pixels, 4 apart: (n, H, W, C) -> (side, side, n * down * across * C)."""
    (n, _, _, c), (first, row, pixel, item) = image.shape, image.strides
    shape = side, side, n, down, across, c
    tiles = scratch("tiles", shape, image.dtype)
    np.copyto(tiles, as_strided(image, shape, (row, pixel, first, 4 * row, 4 * pixel, item)))
    return tiles.reshape(side, side, -1)


def _transform(matrix, tiles, out):
    """out = matrix @ tile @ matrix' for every tile: (k, k, length) -> (m, m, length)."""
    half = scratch("half", (len(matrix), *tiles.shape[1:]), tiles.dtype)
    np.matmul(matrix, tiles.swapaxes(0, 1), out=half.swapaxes(0, 1))  # columns of the tiles
    return np.matmul(matrix, half, out=out)  # rows of the tiles


def _store(m, y):
    """Output tiles (4, 4, n, down, across, O) -> rows of y (n, h, w, O), without what hangs over."""
    _, _, n, down, across, o = m.shape
    tiles = m.transpose(2, 3, 0, 4, 1, 5)
    if y.shape[1:3] == (4 * down, 4 * across):
        y.reshape(tiles.shape)[...] = tiles
    else:
        y[...] = tiles.reshape(n, 4 * down, 4 * across, o)[:, : y.shape[1], : y.shape[2]]
