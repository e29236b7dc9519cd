"""Windows that slide over a padded image x̄: pixel k (tap k) of window p is x̄ at p·stride + k·dilation.

So tap k of all windows together is one strided slice of x̄, from k·dilation on in steps of the stride.
"""

import numpy as np


def padded(x, size, kernel, stride, padding, dilation, value=0):
    """x̄: x with ``value`` around it, (top, left) = padding in front, and behind what the last of the windows needs.

    size is the number (P, Q) of windows. Also returns the index of x in it: x̄[inside] is x.
    """
    behind = padding_behind(x.shape[2:], size, kernel, stride, padding, dilation)
    image = np.pad(x, [(0, 0), (0, 0), *zip(padding, behind)], constant_values=value)
    return image, (..., *(slice(p, p + n) for p, n in zip(padding, x.shape[2:])))


def padding_behind(sides, size, kernel, stride, padding, dilation):
    """(bottom, right): what the last window needs behind an image with these sides (H, W) and the padding in front."""
    return [max(0, (o - 1) * s + d * (k - 1) + 1 - p - n)
            for o, k, s, p, d, n in zip(size, kernel, stride, padding, dilation, sides)]


def taps(size, kernel, stride, dilation):
    """For each tap: its row i, its column j, and the index of the pixels that it meets: x̄[at] is [..., P, Q]."""
    (p, q), (sh, sw), (dh, dw) = size, stride, dilation
    for i in range(kernel[0]):
        rows = slice(i * dh, i * dh + (p - 1) * sh + 1, sh)
        for j in range(kernel[1]):
            yield i, j, (..., rows, slice(j * dw, j * dw + (q - 1) * sw + 1, sw))
