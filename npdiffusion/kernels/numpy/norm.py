"""Group normalisation, alone or fused with SiLU: two walks over the batch, in pieces that stay in cache.

What is small is computed between the two for the whole batch: with threads, each call of NumPy may have to wait for
Python's lock.
"""

import numpy as np

from ...threads import one_blas_thread, parallel, scratch
from .layout import pixel_rows, sums_over_pixels, to_nchw

PIECE = 1 << 19  # elements worked on at a time, so that they and the scratch buffers stay in cache


def _in_pieces(function, rows):
    """Call function(slice of samples) for pieces of the batch, in parallel."""
    step = max(1, PIECE // rows[0].size)

    def run(start, stop):
        for i in range(start, stop, step):
            function(slice(i, min(i + step, stop)))

    parallel(run, len(rows))


def _repeat(factor, rows):
    """Per-channel factors (n, C), repeated to multiply rows (n, R, r·C)."""
    n, c = factor.shape
    return factor[:, None].repeat(rows.shape[2] // c, 1).reshape(n, 1, -1)


def _group_means(sums, groups, pixels):
    """Sums per channel (n, C) -> means over each group, given to each of its channels (n, C)."""
    n, c = sums.shape
    means = sums.reshape(n, groups, -1).sum(2) / (pixels * (c // groups))
    return means.repeat(c // groups, axis=1)


def _conditioned(weight, bias, scale_shift):
    """Weight and bias of each sample, (n, C), or (C,) if all have the same; and 1 + scale."""
    if scale_shift is None:
        return weight, bias, 1
    c = len(weight)
    scale = 1 + scale_shift[:, :c]
    return weight * scale, bias * scale + scale_shift[:, c:], scale


@one_blas_thread()
def group_norm(x, groups, weight, bias, eps, silu=False, scale_shift=None):
    """See ``plain.group_norm``. The scale and shift are again one weight and one bias, weight·(1 + scale) and
    bias·(1 + scale) + shift; means and 1/√(σ² + eps) are computed between the two walks."""
    n, c, h, w = x.shape
    xs = pixel_rows(x)
    out = np.empty((n, h, w, c), x.dtype)
    ys = out.reshape(xs.shape)
    weight, bias, _ = _conditioned(weight, bias, scale_shift)
    sums, squares = np.empty((n, c), x.dtype), np.empty((n, c), x.dtype)

    def add_up(rows, s):
        square = np.multiply(rows, rows, out=scratch("norm", rows.shape, rows.dtype))
        sums[s], squares[s] = sums_over_pixels(rows, c), sums_over_pixels(square, c)

    def add_up_centred(s):
        np.subtract(xs[s], _repeat(mu[s], xs), out=ys[s])
        add_up(ys[s], s)

    def moments():
        mean = _group_means(sums, groups, h * w)
        return mean, _group_means(squares, groups, h * w) - mean * mean

    _in_pieces(lambda s: add_up(xs[s], s), xs)
    mu, var = moments()
    if (mu * mu > 1e3 * var).any():  # the difference has lost digits: once more, centred
        _in_pieces(add_up_centred, xs)
        rest, var = moments()
        mu += rest
    rstd = 1 / np.sqrt(var + eps)
    scale = weight * rstd
    shift = bias - mu * scale
    if silu:  # with half = y/2: silu(y) = y/(1 + exp(−y)) = half·(1 + tanh(half))
        scale, shift = 0.5 * scale, 0.5 * shift
    scale, shift = _repeat(scale, xs), _repeat(shift, xs)

    def normalise(s):
        y = np.multiply(xs[s], scale[s], out=ys[s])
        y += shift[s]
        if silu:
            t = np.tanh(y, out=scratch("norm", y.shape, y.dtype))
            t += 1
            y *= t

    _in_pieces(normalise, xs)
    return to_nchw(out), mu, rstd


@one_blas_thread()
def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False, scale_shift=None):
    """See ``plain.group_norm_backward``, also for A and B. y is computed again, which is cheaper than keeping it."""
    n, c, h, w = x.shape
    xs, gs = pixel_rows(x), pixel_rows(g)
    out = np.empty((n, h, w, c), x.dtype)
    dxs = out.reshape(xs.shape)
    factor, summand, scale = _conditioned(weight, bias, scale_shift)
    slope = factor * rstd
    part = 0.5 if silu else 1.0  # of y that half is, and of d that is first computed
    half_slope, half_level = _repeat(part * slope, xs), _repeat(part * (summand - mean * slope), xs)
    sums, products = np.empty((n, c), x.dtype), np.empty((n, c), x.dtype)

    def undo_silu(s):
        d, buffer = dxs[s], scratch("norm", xs[s].shape, x.dtype)
        if silu:  # with half = y/2 and t = tanh(half): silu'(y) = (1 + t + half·(1 − t²))/2; d takes twice that
            half = np.multiply(xs[s], half_slope[s], out=buffer)
            half += half_level[s]
            t = np.tanh(half, out=scratch("tanh", d.shape, d.dtype))
            np.multiply(t, t, out=d)
            np.subtract(1, d, out=d)
            d *= half
            d += t
            d += 1
            d *= gs[s]
        else:
            np.copyto(d, gs[s])
        sums[s], products[s] = sums_over_pixels(d, c), sums_over_pixels(np.multiply(d, xs[s], out=buffer), c)

    _in_pieces(undo_silu, xs)
    sums *= part  # now B
    along = rstd * (part * products - mean * sums)  # A
    along_x = rstd * rstd * _group_means(along * factor, groups, h * w)
    level = mean * along_x - rstd * _group_means(sums * factor, groups, h * w)
    along_x, level = _repeat(along_x, xs), _repeat(level, xs)

    def undo_norm(s):
        d = dxs[s]
        d *= half_slope[s]
        d -= np.multiply(xs[s], along_x[s], out=scratch("norm", d.shape, d.dtype))
        d += level[s]

    _in_pieces(undo_norm, xs)
    dscale_shift = None if scale_shift is None else np.concatenate([along * weight + sums * bias, sums], 1)
    return to_nchw(out), (along * scale).sum(0), (sums * scale).sum(0), dscale_shift
