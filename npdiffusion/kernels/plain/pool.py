"""Pooling: the maximum or the mean over windows. p is a window, k a tap, x̄ the padded image."""

import numpy as np

from .windows import padded, taps


def max_pool2d(x, size, kernel, stride, padding, dilation):
    """y_p = max_k x̄_{p·stride + k·dilation}; x (N, C, H, W), outside it −∞ -> y (N, C, *size).

    A window with a NaN gives NaN, as in PyTorch.
    """
    image, _ = padded(x, size, kernel, stride, padding, dilation, -np.inf)
    return np.max([image[at] for _, _, at in taps(size, kernel, stride, dilation)], 0)  # [k, n, c, p, q] -> y


def max_pool2d_backward(g, x, y, kernel, stride, padding, dilation):
    """dx of ``max_pool2d``. Let a(p) be the place of the maximum of window p; small changes leave it where it is:

        δy_p = δx̄_a(p),  <g, δy> = Σ_p g_p δx̄_a(p) = Σ_a (Σ_{p: a(p) = a} g_p) δx̄_a

    so g_p is added where the maximum was; of equal ones that is the first, row by row. Nothing equals NaN: a window
    with one passes no gradient on.
    """
    image, inside = padded(x, y.shape[2:], kernel, stride, padding, dilation, -np.inf)
    dimage, found = np.zeros_like(image), np.zeros(y.shape, bool)  # found: an earlier tap was the maximum
    for _, _, at in taps(y.shape[2:], kernel, stride, dilation):
        first = (image[at] == y) & ~found
        dimage[at][first] += g[first]
        found |= first
    return dimage[inside]


def avg_pool2d(x, size, kernel, stride, padding, counts):
    """y_p = Σ_k x̄_{p·stride + k} / counts_p; x (N, C, H, W), 0 outside; counts (H_out, W_out) -> y (N, C, *size)."""
    image, _ = padded(x, size, kernel, stride, padding, (1, 1))
    return sum(image[at] for _, _, at in taps(size, kernel, stride, (1, 1))) / counts


def avg_pool2d_backward(g, size, kernel, stride, padding, counts):
    """dx of ``avg_pool2d`` for an x of this size: each tap adds g/counts to the slice that it read, since

        <g, δy> = Σ_p g_p/counts_p Σ_k δx̄_{p·stride + k} = Σ_k Σ_p (g_p/counts_p) δx̄_{p·stride + k}
    """
    dx, share, windows = np.zeros_like(g, shape=(*g.shape[:2], *size)), g / counts, g.shape[2:]
    dimage, inside = padded(dx, windows, kernel, stride, padding, (1, 1))
    for _, _, at in taps(windows, kernel, stride, (1, 1)):
        dimage[at] += share
    return dimage[inside]
