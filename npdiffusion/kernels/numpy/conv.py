"""2-D convolution and transposed convolution as matrix products (im2col), with their gradients.

The columns of x are the matrix with a row for each output pixel (n, p, q) and a column for each tap
(i, j) and channel c, so that y = columns @ weight and dweight = columns.T @ dy. They are built a chunk
at a time in a buffer that stays in cache. Convolution is bilinear, so two loops serve all the kernels:

    gather     y = columns(x) @ weight                conv; gradient of a transposed conv
    scatter    windows of y += x @ weight             transposed conv; gradient of a conv

and where the stride is 1, scattering is gathering with flipped taps, which is faster.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...threads import multiplies, parallel, scratch, threads_for
from .elementwise import MOVED
from .layout import channels_last, pixel_rows, sums_over_pixels, to_nchw
from .windows import bytes_for, chunks, padded, threads_for_columns
from .winograd import fits_winograd, winograd, winograd_pays

_CHUNK_BYTES = 1 << 21  # bytes of a column buffer: larger leaves the caches, smaller costs Python time


@multiplies
def conv2d(x, weight, bias, size, stride, padding, dilation, groups):
    return _gather(x, weight, bias, None, size, stride, padding, dilation, groups, even=True)[0]


@multiplies
def conv2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    """See ``plain.conv2d_backward``.

    With stride 1, <g, conv(x, weight)> = <x, conv(g, flipped weight)>: the columns of g give both, if x is finite. Else
    its pixels would meet the zeros around g, and spoil taps that do not see them.
    """
    need_input, need_weight, need_bias = needs
    dx = dweight = None
    dbias = channel_sums(g) if need_bias else None
    if need_input and tuple(stride) == (1, 1):
        front, flipped = _flipped_padding(weight, padding, dilation), _flip(weight, groups)
        cotangent = x if need_weight else None
        dx, dflipped = _gather(g, flipped, None, cotangent, x.shape[2:], stride, front, dilation, groups)
        if need_weight and _is_finite(dflipped):
            return dx, to_nchw(channels_last(_flip(dflipped, groups))), dbias
    elif need_input:
        dx = _scatter(g, weight, None, x.shape[2:], stride, padding, dilation, groups)
    if need_weight:
        dweight = _gather(x, weight, None, g, g.shape[2:], stride, padding, dilation, groups, need_y=False)[1]
    return dx, dweight, dbias


@multiplies
def conv_transpose2d(x, weight, bias, size, stride, padding, dilation, groups):
    if tuple(stride) == (1, 1):
        padding = _flipped_padding(weight, padding, dilation)
        return _gather(x, _flip(weight, groups), bias, None, size, stride, padding, dilation, groups, even=True)[0]
    return _scatter(x, weight, bias, size, stride, padding, dilation, groups)


@multiplies
def conv_transpose2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    """See ``plain.conv_transpose2d_backward``. One gather gives dx and dweight."""
    need_input, need_weight, need_bias = needs
    g, cotangent = to_nchw(channels_last(g)), x if need_weight else None
    dx, dweight = _gather(g, weight, None, cotangent, x.shape[2:], stride, padding, dilation, groups, need_input)
    return dx, dweight, channel_sums(g) if need_bias else None


def _gather(x, weight, bias, cotangent, size, stride, padding, dilation, groups, need_y=True, even=False):
    """Convolution y of x, and the gradient dweight of <cotangent, y> if a cotangent is given.

    size is y's (H, W); padding (top, left): the far padding follows from the size. Winograd's way is not taken where
    ∞ or NaN would spread over its tiles (with a cotangent they show in dweight, too), nor, if x is to be ``even``,
    where dark pixels beside bright ones would lose digits.
    """
    if winograd_pays(len(x), weight.shape, size, stride, dilation, groups):
        x = to_nchw(channels_last(x))
        if cotangent is not None or fits_winograd(x, even):
            y, dweight = winograd(x, weight, bias, cotangent, size, padding, need_y)
            if dweight is None or _is_finite(dweight):
                return y, dweight
    if cotangent is None and tuple(stride) == (1, 1) and len(weight) == 1 and x.shape[1] >= 8:
        # One channel out: a product for each tap, added with shifts, is less memory than the columns.
        padding = _flipped_padding(weight, padding, dilation)
        return _scatter(x, _flip(weight, groups), bias, size, stride, padding, dilation, groups), None
    x, cotangent = channels_last(x), channels_last(cotangent)
    (out_channels, c, kh, kw), (h, w) = weight.shape, size
    o, taps = out_channels // groups, kh * kw * c
    matrix = weight.reshape(groups, o, c, kh, kw).transpose(0, 3, 4, 2, 1).reshape(groups, taps, o)
    y = np.empty((len(x), h, w, out_channels), x.dtype) if need_y else None
    bias_row = None if bias is None else bias[None].repeat(w, 0).ravel()  # one long run adds faster than w short ones
    threads = threads_for_columns(len(x) * h * w, taps, out_channels)
    row_bytes = w * kh * kw * x.shape[3] * x.itemsize
    pieces = chunks(len(x), h, row_bytes, bytes_for(_CHUNK_BYTES, weight), threads)

    def run(start, stop):
        dmatrix = None if cotangent is None else np.zeros((groups, o, taps), x.dtype)
        for chunk in pieces[start:stop]:
            n0, n1, r0, r1 = chunk
            columns = _columns(x, chunk, (kh, kw), w, stride, padding, dilation, groups)
            if need_y:
                rows = y[n0:n1, r0:r1]
                np.matmul(columns, matrix, out=rows.reshape(-1, groups, o).swapaxes(0, 1))
                if bias is not None:
                    rows = rows.reshape(-1, w * out_channels)
                    np.add(rows, bias_row, out=rows)
            if cotangent is not None:
                rows = cotangent[n0:n1, r0:r1].reshape(-1, groups, o).swapaxes(0, 1)
                product = scratch("product", dmatrix.shape, x.dtype)
                dmatrix += np.matmul(rows.swapaxes(1, 2), columns, out=product)
        return dmatrix

    parts = parallel(run, len(pieces), threads)
    y = to_nchw(y) if need_y else None
    if cotangent is None:
        return y, None
    dmatrix = sum(parts)  # in the order of the threads: the same bits every time
    return y, to_nchw(dmatrix.reshape(out_channels, kh, kw, c))


def _is_finite(dweight):
    """Whether the gradient is finite, its squares too."""
    flat = channels_last(dweight)  # as it lies in memory: vdot would copy anything else, twice
    return np.isfinite(np.vdot(flat, flat))


def _columns(x, chunk, kernel, w, stride, padding, dilation, groups):
    """The chunk's columns (groups, pixels, taps * channels of a group) of x (N, H, W, C)."""
    (n0, n1, r0, r1), (kh, kw), (sh, sw), (dh, dw) = chunk, kernel, stride, dilation
    n, rows, c = n1 - n0, r1 - r0, x.shape[3] // groups
    unpadded = tuple(padding) == (0, 0) and r1 <= x.shape[1] and w == x.shape[2]
    if kernel == (1, 1) and (sh, sw) == (1, 1) and unpadded:
        return x[n0:n1, r0:r1].reshape(-1, groups, c).swapaxes(0, 1)  # x itself is the matrix

    # The rectangle of x that the windows of these rows cover, with zeros outside x.
    size = (rows - 1) * sh + (kh - 1) * dh + 1, (w - 1) * sw + (kw - 1) * dw + 1
    rectangle = padded(x[n0:n1], (r0 * sh - padding[0], -padding[1]), size)
    image, row, pixel, item = rectangle.strides
    windows = as_strided(rectangle, (groups, n, rows, w, kh, kw, c),
                         (c * item, image, sh * row, sw * pixel, dh * row, dw * pixel, item))
    pixels, taps = n * rows * w, kh * kw * c
    if kw * c >= 8:
        columns = scratch("columns", (groups, pixels, taps), x.dtype)
        np.copyto(columns.reshape(windows.shape), windows)  # runs of kw * c numbers
        return columns
    columns = scratch("columns", (groups, taps, pixels), x.dtype)  # few channels: runs of w numbers
    np.copyto(columns.reshape(groups, kh, kw, c, n, rows, w), windows.transpose(0, 4, 5, 6, 1, 2, 3))
    return columns.swapaxes(1, 2)


def _scatter(x, weight, bias, size, stride, padding, dilation, groups):
    """Adjoint of _gather: pixel (h, w) of x times tap (i, j) adds to y[h sh + i dh - top, ...].

    size is y's (H, W). Taps as large as the stride tile y without overlap and are stored directly.
    """
    x = channels_last(x)
    (count, h, w, channels), (_, o, kh, kw) = x.shape, weight.shape
    c, taps = channels // groups, kh * kw * o
    matrix = weight.reshape(groups, c, o, kh, kw).transpose(0, 1, 3, 4, 2).reshape(groups, c, taps)
    y = np.empty((count, *size, groups * o), x.dtype)
    row_bytes = w * taps * groups * x.itemsize
    bias = np.zeros(groups * o, x.dtype) if bias is None else bias

    def products(n0, n1, r0, r1):  # -> (images, rows, w, kh, kw, groups, o)
        buffer = scratch("columns", (groups, (n1 - n0) * (r1 - r0) * w, taps), x.dtype)
        np.matmul(x[n0:n1, r0:r1].reshape(-1, groups, c).swapaxes(0, 1), matrix, out=buffer)
        return buffer.reshape(groups, n1 - n0, r1 - r0, w, kh, kw, o).transpose(1, 2, 3, 4, 5, 0, 6)

    def tile(start, stop):
        bias_taps = np.tile(bias, kw).reshape(kw, groups, o)
        for n0, n1, r0, r1 in pieces[start:stop]:
            tiles = y[n0:n1, r0 * kh : r1 * kh].reshape(n1 - n0, r1 - r0, kh, w, kw, groups, o)
            np.add(products(n0, n1, r0, r1).swapaxes(2, 3), bias_taps, out=tiles)

    def accumulate(start, stop):
        y[start:stop] = bias
        for n0, n1, r0, r1 in chunks(stop - start, h, row_bytes, _CHUNK_BYTES, 1):
            n0, n1 = n0 + start, n1 + start
            values, target = products(n0, n1, r0, r1), y[n0:n1].reshape(n1 - n0, *size, groups, o)
            for i, j in np.ndindex(kh, kw):
                source_rows, rows = _landing(i * dilation[0] - padding[0], stride[0], size[0], r0, r1)
                source_pixels, pixels = _landing(j * dilation[1] - padding[1], stride[1], size[1], 0, w)
                target[:, rows, pixels] += values[:, source_rows, source_pixels, i, j]

    threads = threads_for_columns(count * h * w, channels, taps)
    untouched = tuple(dilation) == (1, 1) and tuple(padding) == (0, 0) and tuple(size) == (h * kh, w * kw)
    if tuple(stride) == (kh, kw) and untouched:
        pieces = chunks(count, h, row_bytes, _CHUNK_BYTES, threads)
        parallel(tile, len(pieces), threads)
    else:
        parallel(accumulate, count, threads)
    return to_nchw(y)


def _landing(offset, stride, size, start, stop):
    """Slices of the k in [start, stop) with 0 <= k stride + offset < size, and of where they land."""
    first = max(start, -(offset // stride))  # -(a // b) is ceil(-a / b)
    last = max(first, min(stop, (size - 1 - offset) // stride + 1))
    landed = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
    return slice(first - start, last - start), landed if last > first else slice(0)


def _flip(weight, groups):
    """(groups * o, c, kh, kw) -> (groups * c, o, kh, kw) with both taps reversed; its own inverse."""
    out_channels, c, kh, kw = weight.shape
    grouped = weight.reshape(groups, out_channels // groups, c, kh, kw)[..., ::-1, ::-1]
    return grouped.swapaxes(1, 2).reshape(-1, out_channels // groups, kh, kw)


def _flipped_padding(weight, padding, dilation):
    """Padding in front for the convolution with flipped taps that undoes the shifts of one with this padding."""
    return [d * (k - 1) - p for k, d, p in zip(weight.shape[2:], dilation, padding)]


def channel_sums(x):
    """Σ x over samples and pixels, the gradient of a bias: (N, C, H, W) -> (C,)."""
    rows, c, threads = pixel_rows(x), x.shape[1], threads_for(MOVED * x.size)
    return sum(parallel(lambda start, stop: sums_over_pixels(rows[start:stop], c).sum(0), len(rows), threads))
