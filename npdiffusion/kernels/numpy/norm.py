"""Group normalisation, alone or fused with SiLU: one pass over pieces of the batch that stay in cache."""

import numpy as np

from ...threads import parallel, scratch
from .layout import pixel_rows, sums_over_pixels, to_nchw

__all__ = ["group_norm", "group_norm_backward"]

PIECE = 1 << 18  # elements worked on at a time, so that they and the scratch buffers stay in cache


def _repeat(factor, rows):
    """Per-channel factors (n, C), repeated to multiply rows (n, R, r·C)."""
    n, c = factor.shape
    r = rows.shape[2] // c
    return np.broadcast_to(factor[:, None], (n, r, c)).reshape(n, 1, r * c)


def _group_means(sums, groups, pixels):
    """Sums per channel (n, C) -> means over each group, given to each of its channels (n, C)."""
    n, c = sums.shape
    means = sums.reshape(n, groups, -1).sum(2) / (pixels * (c // groups))
    return means.repeat(c // groups, axis=1)


def _conditioned(weight, bias, scale_shift, n):
    """Weight and bias of each sample, (n, C), and 1 + scale."""
    c = len(weight)
    if scale_shift is None:
        return np.broadcast_to(weight, (n, c)), np.broadcast_to(bias, (n, c)), 1
    scale = 1 + scale_shift[:, :c]
    return weight * scale, bias * scale + scale_shift[:, c:], scale


def group_norm(x, groups, weight, bias, eps, silu=False, scale_shift=None):
    """y = (x − μ)/√(σ² + eps)·weight + bias, then y·(1 + scale) + shift, then y·sigmoid(y) if ``silu``.

    μ and σ² are the mean and the (biased) variance over the pixels and channels of one group of one sample.
    The first two steps have again one weight and one bias, weight·(1 + scale) and bias·(1 + scale) + shift.

    Args:
        x: (N, C, H, W); groups: number of groups, divides C.
        weight, bias: (C,). scale_shift: (N, 2·C), for each sample C scales, then C shifts; or None for zeros.

    Returns y (N, C, H, W), and what backward needs besides x: μ and 1/√(σ² + eps), each (N, C).
    """
    n, c, h, w = x.shape
    xs = pixel_rows(x)
    out = np.empty((n, h, w, c), x.dtype)
    ys = out.reshape(xs.shape)
    mean, rstd = np.empty((n, c), x.dtype), np.empty((n, c), x.dtype)
    weight, bias, _ = _conditioned(weight, bias, scale_shift, n)
    step = max(1, PIECE // xs[0].size)

    def moments(x, buffer):
        mean = _group_means(sums_over_pixels(x, c), groups, h * w)
        square = _group_means(sums_over_pixels(np.multiply(x, x, out=buffer), c), groups, h * w)
        return mean, square - mean * mean

    def run(start, stop):
        for i in range(start, stop, step):
            s = slice(i, min(i + step, stop))
            y, buffer = ys[s], scratch("norm", xs[s].shape, x.dtype)
            mu, var = moments(xs[s], buffer)
            if (mu * mu > 1e3 * var).any():  # the difference would have lost digits: once more, centred
                np.subtract(xs[s], _repeat(mu, y), out=y)
                rest, var = moments(y, buffer)
                mu += rest
            mean[s], rstd[s] = mu, 1 / np.sqrt(var + eps)
            scale = weight[s] * rstd[s]
            shift = bias[s] - mu * scale
            if silu:  # with half = y/2: silu(y) = y/(1 + exp(−y)) = half·(1 + tanh(half))
                scale, shift = 0.5 * scale, 0.5 * shift
            np.multiply(xs[s], _repeat(scale, y), out=y)
            y += _repeat(shift, y)
            if silu:
                np.tanh(y, out=buffer)
                buffer += 1
                y *= buffer

    parallel(run, n)
    return to_nchw(out), mean, rstd


def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False, scale_shift=None, onto=None):
    """Gradients of ``group_norm`` from g (N, C, H, W), the gradient of its result.

    With x̂ = (x − μ)·rstd, d = g (times silu'(y) if ``silu``), means over a group, and w = weight·(1 + scale):
    dx = rstd·(d·w − mean(d·w) − x̂·mean(d·w·x̂)). With a sample's sums over the pixels A = Σ d·x̂ and B = Σ d:
    dscale = A·weight + B·bias,   dshift = B,   and, summed over the samples,
    dweight = A·(1 + scale),      dbias = B·(1 + scale).
    y is computed again, which is cheaper than keeping it.

    Returns dx (N, C, H, W), plus the array ``onto`` if given, dweight (C,), dbias (C,), dscale_shift (N, 2·C) or None.
    """
    n, c, h, w = x.shape
    xs, gs, ontos = pixel_rows(x), pixel_rows(g), None if onto is None else pixel_rows(onto)
    out = np.empty((n, h, w, c), x.dtype)
    dxs = out.reshape(xs.shape)
    along, sums = np.empty((n, c), x.dtype), np.empty((n, c), x.dtype)  # A, B
    factor, summand, scale = _conditioned(weight, bias, scale_shift, n)
    step = max(1, PIECE // xs[0].size)

    def run(start, stop):
        for i in range(start, stop, step):
            s = slice(i, min(i + step, stop))
            x, d, buffer = xs[s], dxs[s], scratch("norm", xs[s].shape, xs.dtype)
            slope = factor[s] * rstd[s]
            if silu:  # with half = y/2 and t = tanh(half): silu'(y) = (1 + t + half·(1 − t²))/2; d takes twice that
                half, t = buffer, scratch("tanh", d.shape, d.dtype)
                np.multiply(x, _repeat(0.5 * slope, d), out=half)
                half += _repeat(0.5 * (summand[s] - mean[s] * slope), d)
                np.tanh(half, out=t)
                np.multiply(t, t, out=d)
                np.subtract(1, d, out=d)
                d *= half
                d += t
                d += 1
                d *= gs[s]
            else:
                np.copyto(d, gs[s])
            part = 0.5 if silu else 1.0
            sums[s] = part * sums_over_pixels(d, c)
            along[s] = rstd[s] * (part * sums_over_pixels(np.multiply(d, x, out=buffer), c) - mean[s] * sums[s])
            along_x = rstd[s] * rstd[s] * _group_means(along[s] * factor[s], groups, h * w)
            d *= _repeat(part * slope, d)
            np.multiply(x, _repeat(along_x, d), out=buffer)
            d -= buffer
            d += _repeat(mean[s] * along_x - rstd[s] * _group_means(sums[s] * factor[s], groups, h * w), d)
            if onto is not None:
                d += ontos[s]

    parallel(run, n)
    dscale_shift = None if scale_shift is None else np.concatenate([along * weight + sums * bias, sums], 1)
    return to_nchw(out), (along * scale).sum(0), (sums * scale).sum(0), dscale_shift
