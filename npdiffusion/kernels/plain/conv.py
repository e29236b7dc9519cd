"""2-D convolution and transposed convolution, with their gradients: three loops over the kernel's taps.

A tap is a product of small matrices over the channels, for all pixels at once. Letters of the einsums: n sample,
g group; o channel, p row, q column on the side of the convolution's output; c channel on the side of its input.
"""

import numpy as np

from .windows import padded, taps


def conv2d(x, weight, bias, size, stride, padding, dilation, groups):
    """Cross-correlation (LeCun et al. 1989), as in PyTorch; x is 0 outside the image:

        y[n, o, p, q] = bias[o] + Σ_{c, i, j} weight[o, c, i, j] · x[n, c, p·sh + i·dh − top, q·sw + j·dw − left]

    x (N, C_in, H, W), weight (C_out, C_in/groups, kh, kw), bias (C_out,) or None -> y (N, C_out, *size).
    padding = (top, left). With groups, channels are cut into so many parts, and each part of y sees one part of x.
    """
    kernel = weight.shape[2:]
    image, _ = padded(x, size, kernel, stride, padding, dilation)
    image = by_group(image, groups)  # [n, C_in, H, W] -> [n, g, c, H, W]
    weight = weight.reshape(groups, -1, *weight.shape[1:])  # [g, o, c, kh, kw]
    y = np.zeros((len(x), groups, weight.shape[1], *size), x.dtype)  # [n, g, o, p, q]
    for i, j, at in taps(size, kernel, stride, dilation):
        y += np.einsum("goc, ngcpq -> ngopq", weight[..., i, j], image[at], optimize=True)
    y = y.reshape(len(x), -1, *size)  # [n, C_out, p, q]
    return y if bias is None else y + bias[:, None, None]


def conv2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    """dx, dweight and dbias of ``conv2d``; None for those not in ``needs``. g has y's shape.

    Let k be the tap (i, j), W_k the matrix weight[:, :, i, j], p the pixel (p, q) of y, and x̄_pk the pixel of the
    padded image that tap k meets at p. Then y_p = bias + Σ_k W_k x̄_pk, which is linear in each of the three:

        <g, δy> = Σ_p g_p · Σ_k W_k δx̄_pk = Σ_k Σ_p (W_kᵀ g_p) · δx̄_pk
        <g, δy> = Σ_p g_p · Σ_k δW_k x̄_pk = Σ_k <Σ_p g_p x̄_pkᵀ, δW_k>
        <g, δy> = Σ_p g_p · δbias = <Σ_p g_p, δbias>

    dx: each tap adds W_kᵀ g to the slice of x̄ that it read; the part of that inside x is dx. This is how a transposed
    convolution computes. dweight: tap k gets g times the slice that it read, summed over samples and pixels.
    """
    geometry = stride, padding, dilation, groups
    dx = conv_transpose2d(g, weight, None, x.shape[2:], *geometry) if needs[0] else None
    dweight = weight_gradient(g, x, weight.shape, *geometry) if needs[1] else None
    return dx, dweight, g.sum((0, 2, 3)) if needs[2] else None


def weight_gradient(g, x, shape, stride, padding, dilation, groups):
    """dweight, of this shape, of y = conv2d(x, weight) with the gradient g of y."""
    size, kernel = g.shape[2:], shape[2:]
    image, _ = padded(x, size, kernel, stride, padding, dilation)
    g, image = by_group(g, groups), by_group(image, groups)  # [n, g, o, p, q], [n, g, c, H, W]
    dweight = np.empty((groups, g.shape[2], *shape[1:]), x.dtype)  # [g, o, c, kh, kw]
    for i, j, at in taps(size, kernel, stride, dilation):
        dweight[..., i, j] = np.einsum("ngopq, ngcpq -> goc", g, image[at], optimize=True)
    return dweight.reshape(shape)


def conv_transpose2d(x, weight, bias, size, stride, padding, dilation, groups):
    """The adjoint of ``conv2d`` with this weight, as an op of its own (Dumoulin & Visin 2016, ch. 4): for all o, p, q,

        y[n, c, p·sh + i·dh − top, q·sw + j·dw − left] += weight[o, c, i, j] · x[n, o, p, q], and bias[c] everywhere.

    Each pixel of x adds its multiple of the kernel to a window of y; what falls outside y is lost.
    x (N, C_in, H, W), weight (C_in, C_out/groups, kh, kw), bias (C_out,) or None -> y (N, C_out, *size).
    """
    kernel, windows = weight.shape[2:], x.shape[2:]
    y = np.zeros((len(x), groups * weight.shape[1], *size), x.dtype)  # [n, C_out, h, w]
    image, inside = padded(y, windows, kernel, stride, padding, dilation)
    image = by_group(image, groups)  # [n, C_out, H, W] -> [n, g, c, H, W]
    x, weight = by_group(x, groups), weight.reshape(groups, -1, *weight.shape[1:])  # [n, g, o, p, q], [g, o, c, kh, kw]
    for i, j, at in taps(windows, kernel, stride, dilation):
        image[at] += np.einsum("goc, ngopq -> ngcpq", weight[..., i, j], x, optimize=True)
    y = image[inside].reshape(y.shape)  # [n, C_out, h, w]
    return y if bias is None else y + bias[:, None, None]


def conv_transpose2d_backward(g, x, weight, stride, padding, dilation, groups, needs=(True, True, True)):
    """dx, dweight and dbias of ``conv_transpose2d``; None for those not in ``needs``.

    Let A be the linear map conv2d(·, weight), so that y = Aᵀ x + bias:

        <g, Aᵀ δx> = <A g, δx>: the adjoint of the adjoint is the map itself, dx = conv2d(g, weight).
        <g, Aᵀ x> = <A g, x> = <x, conv2d(g, weight)>: for the weight this is a conv2d with the input g whose output
        has the gradient x. So dweight is conv2d's, with x and g in each other's place.
    """
    geometry = stride, padding, dilation, groups
    dx = conv2d(g, weight, None, x.shape[2:], *geometry) if needs[0] else None
    dweight = weight_gradient(x, g, weight.shape, *geometry) if needs[1] else None
    return dx, dweight, g.sum((0, 2, 3)) if needs[2] else None


def by_group(x, groups):
    """[n, C, h, w] -> [n, groups, C/groups, h, w]."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])
