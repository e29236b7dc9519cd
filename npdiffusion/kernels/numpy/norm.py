"""Group normalisation, alone or fused with SiLU: two walks over the batch, in pieces that stay in cache.

What is small is computed between the two for the whole batch: with threads, each call of NumPy may have to wait for
Python's lock.
"""

import numpy as np

from ...threads import get_num_threads, multiplies, parallel, scratch, threads_for
from ..plain.norm import conditioned
from .elementwise import MOVED
from .layout import pixel_rows, sums_over_pixels, to_nchw, unbuffered
from .windows import chunks

PIECE = 1 << 21  # bytes worked on at a time, so that they and the scratch buffers stay in cache
ALONE = 1 << 18  # the same for a process of one thread, which need not wait for Python's lock: in the core's own cache


def _in_pieces(function, rows):
    """[(samples, function(samples, rows))] for slices of rows (N, R, r·C), in parallel."""
    n, length, width = rows.shape
    threads = threads_for(2 * MOVED * rows.size)  # as many walks over memory, and tanh
    size = ALONE if get_num_threads() == 1 else PIECE
    pieces = [(slice(n0, n1), slice(r0, r1))
              for n0, n1, r0, r1 in chunks(n, length, width * rows.itemsize, size, threads)]

    def run(start, stop):
        with unbuffered():
            return [(piece[0], function(*piece)) for piece in pieces[start:stop]]

    return sum(parallel(run, len(pieces), threads), [])


def _sums(function, rows, c):
    """Two sums over the pixels of each sample and channel, (2, N, C), from a function that gives them for a piece."""
    total = np.zeros((2, len(rows), c), rows.dtype)
    for samples, sums in _in_pieces(function, rows):  # in the same order every time
        total[:, samples] += sums
    return total


def _repeat(factor, rows):
    """Per-channel factors (n, C), repeated to multiply rows (n, R, r·C)."""
    n, c = factor.shape
    return factor[:, None].repeat(rows.shape[2] // c, 1).reshape(n, 1, -1)


def _group_means(sums, groups, pixels):
    """Sums per channel (..., C) -> means over each group, given to each of its channels (..., C)."""
    *outer, c = sums.shape
    means = sums.reshape(*outer, groups, -1).sum(-1) / (pixels * (c // groups))
    return means.repeat(c // groups, axis=-1)


@multiplies
def group_norm(x, groups, weight, bias, eps, silu=False, scale_shift=None):
    """See ``plain.group_norm``. The scale and shift are again one weight and one bias, weight·(1 + scale) and
    bias·(1 + scale) + shift; means and 1/√(σ² + eps) are computed between the two walks."""
    n, c, h, w = x.shape
    xs = pixel_rows(x)
    out = np.empty((n, h, w, c), x.dtype)
    ys = out.reshape(xs.shape)
    weight, bias, _ = conditioned(weight, bias, scale_shift)

    def moments(rows):
        square = np.multiply(rows, rows, out=scratch("norm", rows.shape, rows.dtype))
        return sums_over_pixels(rows, c), sums_over_pixels(square, c)

    def centred_moments(samples, rows):
        return moments(np.subtract(xs[samples, rows], _repeat(mu[samples], xs), out=ys[samples, rows]))

    mu, squares = _group_means(_sums(lambda *s: moments(xs[s]), xs, c), groups, h * w)
    var = squares - mu * mu
    if (mu * mu > 1e3 * var).any():  # the difference has lost digits: once more, centred
        rest, squares = _group_means(_sums(centred_moments, xs, c), groups, h * w)
        var = squares - rest * rest
        mu = mu + rest
    rstd = 1 / np.sqrt(var + eps)
    scale = weight * rstd
    shift = bias - mu * scale
    if silu:  # with half = y/2: silu(y) = y/(1 + exp(−y)) = half·(1 + tanh(half))
        scale, shift = 0.5 * scale, 0.5 * shift
    scale, shift = _repeat(scale, xs), _repeat(shift, xs)

    def normalise(samples, rows):
        y = np.multiply(xs[samples, rows], scale[samples], out=ys[samples, rows])
        y += shift[samples]
        if silu:
            t = np.tanh(y, out=scratch("norm", y.shape, y.dtype))
            t += 1
            y *= t

    _in_pieces(normalise, xs)
    return to_nchw(out), mu, rstd


@multiplies
def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False, scale_shift=None):
    """See ``plain.group_norm_backward``, also for A and B. y is computed again, which is cheaper than keeping it."""
    n, c, h, w = x.shape
    xs, gs = pixel_rows(x), pixel_rows(g)
    out = np.empty((n, h, w, c), x.dtype)
    dxs = out.reshape(xs.shape)
    factor, summand, scale = conditioned(weight, bias, scale_shift)
    slope = factor * rstd
    part = 0.5 if silu else 1.0  # of y that half is, and of d that is first computed
    half_slope, half_level = _repeat(part * slope, xs), _repeat(part * (summand - mean * slope), xs)

    def undo_silu(samples, rows):
        x, g, d = xs[samples, rows], gs[samples, rows], dxs[samples, rows]
        buffer = scratch("norm", x.shape, x.dtype)
        if silu:  # with half = y/2 and t = tanh(half): silu'(y) = (1 + t + half·(1 − t²))/2; d takes twice that
            half = np.multiply(x, half_slope[samples], out=buffer)
            half += half_level[samples]
            t = np.tanh(half, out=scratch("tanh", d.shape, d.dtype))
            np.multiply(t, t, out=d)
            np.subtract(1, d, out=d)
            d *= half
            d += t
            d += 1
            d *= g
        else:
            np.copyto(d, g)
        return sums_over_pixels(d, c), sums_over_pixels(np.multiply(d, x, out=buffer), c)

    sums, products = part * _sums(undo_silu, xs, c)  # B, and Σ d x
    along = rstd * (products - mean * sums)  # A
    means = _group_means(np.stack([along * factor, sums * factor]), groups, h * w)
    along_x = rstd * rstd * means[0]
    level = mean * along_x - rstd * means[1]
    along_x, level = _repeat(along_x, xs), _repeat(level, xs)

    def undo_norm(samples, rows):
        d = dxs[samples, rows]
        d *= half_slope[samples]
        d -= np.multiply(xs[samples, rows], along_x[samples], out=scratch("norm", d.shape, d.dtype))
        d += level[samples]

    _in_pieces(undo_norm, xs)
    dscale_shift = None if scale_shift is None else np.concatenate([along * weight + sums * bias, sums], 1)
    return to_nchw(out), (along * scale).sum(0), (sums * scale).sum(0), dscale_shift
