"""Convolution and transposed convolution. The kernels do the work (``kernels/plain/conv.py`` shows how)."""

from ..kernels import kernels
from ..tensor import record
from ._arguments import conv_geometry, needs, of_images


@of_images
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """y[n, o, p] = b[o] + Σ_{i, k} w[o, i, k] · x[n, i, p·stride + k·dilation − padding].

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight: (C_out, C_in/groups, kh, kw). bias: (C_out,) or None.
        stride, dilation: int or pair. padding: int, pair, "valid" (none) or "same" (stride 1 only; the
            output has the input's size, an odd pixel of padding goes behind).
        groups: the channels fall into so many groups that do not see each other.

    Returns (N, C_out, H_out, W_out) with H_out = ⌊(H + 2·padding − dilation·(kh − 1) − 1)/stride⌋ + 1.
    Raises ValueError for shapes that do not fit, TypeError for different dtypes.

    On the CPU, 3×3 kernels with stride 1 and 16 channels or more are computed by Winograd's filtering (Lavin & Gray
    2015), whose error in float32 is up to 1e-5 of the largest output among 4×4 neighbours. An input that is not finite,
    or in which a pixel (a vector of channels) is more than 84 times as large as another, is computed directly, and so
    are gradients of arrays that are not finite. Finite gradients are not: beside 1e6 those of 1 may be off by 1.
    """
    (x, w, b), size, *geometry = conv_geometry("conv2d", input, weight, bias, stride, padding, dilation, groups)
    needed = needs(input, weight, bias)
    return record(kernels(x).conv2d(x, w, b, size, *geometry), "conv2d", (input, weight, bias),
                  lambda g: kernels(g).conv2d_backward(g, x, w, *geometry, needed))


@of_images
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """The gradient of conv2d with respect to its input, as an op (Dumoulin & Visin 2016, ch. 4).

    y[n, o, p·stride + k·dilation − padding] += w[i, o, k] · x[n, i, p], plus b[o].

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight: (C_in, C_out/groups, kh, kw). bias: (C_out,) or None.
        stride, padding, output_padding, dilation: int or pair; output_padding adds rows and columns behind, and
            must be smaller than stride or dilation.

    Returns (N, C_out, H_out, W_out) with
    H_out = (H − 1)·stride − 2·padding + dilation·(kh − 1) + output_padding + 1.
    Raises ValueError for shapes that do not fit, TypeError for different dtypes.
    """
    (x, w, b), size, *geometry = conv_geometry("conv_transpose2d", input, weight, bias, stride, padding, dilation,
                                               groups, output_padding)
    needed = needs(input, weight, bias)
    y = kernels(x).conv_transpose2d(x, w, b, size, *geometry)
    return record(y, "conv_transpose2d", (input, weight, bias),
                  lambda g: kernels(g).conv_transpose2d_backward(g, x, w, *geometry, needed))
