"""Group normalisation, with the scale and shift and the SiLU that a UNet puts behind it."""

import numpy as np

from . import elementwise


def group_norm(x, groups, weight, bias, eps, silu=False, scale_shift=None):
    """With the mean μ and the variance σ² over the pixels and the C/groups channels of one group of one sample:

        x̂ = (x − μ)·r,  r = 1/√(σ² + eps)                                      (Wu & He 2018, eq. 1)
        z = x̂·w + b,    w = weight·(1 + scale),  b = bias·(1 + scale) + shift   (Dhariwal & Nichol 2021, eq. 3)
        y = z·σ(z) if ``silu``, else z

    x (N, C, H, W); weight, bias (C,); scale_shift (N, 2·C), for each sample C scales, then C shifts, or None for 0.
    Returns y (N, C, H, W), and what the backward needs: μ and r, each (N, C), a group's value for all its channels.
    """
    mean = group_mean(x, groups)  # [n, c, 1, 1]
    rstd = 1 / np.sqrt(group_mean((x - mean) ** 2, groups) + eps)
    w, b, _ = conditioned(weight, bias, scale_shift)
    z = (x - mean) * rstd * w[..., None, None] + b[..., None, None]
    return elementwise.silu(z) if silu else z, mean[..., 0, 0], rstd[..., 0, 0]


def group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu=False, scale_shift=None):
    """dx, dweight, dbias and dscale_shift (or None) of ``group_norm``; m(·) is the mean over a group.

    SiLU comes first: <g, δy> = <d, δz>, d = silu_backward(g, z), or g without it. Then δz = w δx̂ + x̂ δw + δb.
    x: the mean changes by δμ = m(δx), the variance by δσ² = 2 m((x − μ)(δx − δμ)) = 2 m((x − μ) δx), as m(x − μ) = 0.

        δr = −½ r³ δσ² = −r² m(x̂ δx)
        δx̂ = r (δx − δμ) + (x − μ) δr = r (δx − m(δx) − x̂ m(x̂ δx))
        <d, w δx̂> = Σ r h (δx − m(δx) − x̂ m(x̂ δx)) with h = d·w
                  = Σ r (h − m(h) − x̂ m(h x̂)) δx, since Σ a m(b) = Σ m(a) b over a group

    w, b: they are the same for all pixels, so <d, x̂ δw + δb> = Σ A δw + B δb with A = Σ d x̂, B = Σ d over pixels.
    Where weight and bias, the same for all samples, are concerned, sum over these as well:

        δw = (1 + scale) δweight + weight δscale,            dweight = Σ A (1 + scale),  dscale = A weight + B bias
        δb = (1 + scale) δbias + bias δscale + δshift,       dbias = Σ B (1 + scale),    dshift = B
    """
    mean, rstd = mean[..., None, None], rstd[..., None, None]  # [n, c] -> [n, c, 1, 1]
    w, b, factor = conditioned(weight, bias, scale_shift)
    w, b = w[..., None, None], b[..., None, None]
    xhat = (x - mean) * rstd
    d = elementwise.silu_backward(g, xhat * w + b) if silu else g
    h = d * w
    dx = rstd * (h - group_mean(h, groups) - xhat * group_mean(h * xhat, groups))
    A, B = (d * xhat).sum((2, 3)), d.sum((2, 3))  # [n, c, h, w] -> [n, c]
    dscale_shift = None if scale_shift is None else np.concatenate([A * weight + B * bias, B], 1)
    return dx, (A * factor).sum(0), (B * factor).sum(0), dscale_shift


def group_mean(x, groups):
    """The mean over each group's channels and pixels, for each of its channels: [n, c, h, w] -> [n, c, 1, 1]."""
    means = x.reshape(len(x), groups, -1).mean(2)  # [n, groups]
    return means.repeat(x.shape[1] // groups, 1)[..., None, None]


def conditioned(weight, bias, scale_shift):
    """w and b, [c] or with a scale_shift [n, c]; and 1 + scale."""
    scale, shift = (0, 0) if scale_shift is None else np.split(scale_shift, 2, 1)  # [n, 2c] -> [n, c] twice
    return weight * (1 + scale), bias * (1 + scale) + shift, 1 + scale
