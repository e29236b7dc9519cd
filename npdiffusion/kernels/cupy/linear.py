"""Linear layers as convolutions of images of one pixel: a CUDA graph can capture them, which cuBLAS refuses."""

from .conv import forward, input_gradient, weight_gradient

__all__ = ["linear", "linear_backward"]

SETTINGS = (1, 1), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation and groups


def linear(x, weight, bias):
    """x·Wᵀ + b: rows x (n, in), weight (out, in), bias (out,) or None -> (n, out)."""
    return forward(_images(x), _images(weight), bias, (1, 1), *SETTINGS)[:, :, 0, 0]


def linear_backward(g, x, weight, need_input=True, need_weight=True, onto=None):
    """Gradients dx (plus the array ``onto``), dweight and dbias of <g, linear(x, weight, bias)>; None for those that are
    not needed."""
    g, x, weight, onto = _images(g), _images(x), _images(weight), None if onto is None else _images(onto)
    dx = input_gradient(g, weight, None, (1, 1), *SETTINGS, onto)[:, :, 0, 0] if need_input else None
    if not need_weight:
        return dx, None, None
    dweight, dbias = weight_gradient(g, x, weight.shape, *SETTINGS)
    return dx, dweight[:, :, 0, 0], dbias


def _images(a):
    """Rows (n, k) as n images of one pixel with k channels."""
    return a[:, :, None, None]
