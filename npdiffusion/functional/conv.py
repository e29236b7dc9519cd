"""Convolution and transposed convolution. The array kernels do the work; here are meaning and arguments."""

from ..backend import kernels
from ..tensor import record
from ._arguments import check_float, check_image, check_not_empty, pair

__all__ = ["conv2d", "conv_transpose2d"]


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, onto=None):
    """y[n, o, p] = b[o] + Σ_{i, k} w[o, i, k] · x[n, i, p·stride + k·dilation − padding].

    Args:
        input: (N, C_in, H, W) or (C_in, H, W).
        weight: (C_out, C_in/groups, kh, kw). bias: (C_out,) or None.
        stride, dilation: int or pair. padding: int, pair, "valid" (none) or "same" (stride 1 only; the
            output has the input's size, an odd pixel of padding goes behind).
        groups: the channels fall into so many groups that do not see each other.
        onto: a Tensor of the result's shape to add to it (a residual block's skip), or None; cheaper than afterwards.

    Returns (N, C_out, H_out, W_out) with H_out = ⌊(H + 2·padding − dilation·(kh − 1) − 1)/stride⌋ + 1.
    Raises ValueError for shapes that do not fit, TypeError for different dtypes.
    """
    check_float("conv2d", input=input, weight=weight, bias=bias, onto=onto)
    check_not_empty("conv2d", input)
    single = check_image("conv2d", input)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    if weight.ndim != 4:
        raise ValueError(f"conv2d expects a weight of shape (C_out, C_in/groups, kh, kw), got {weight.shape}")
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be an integer, a pair, 'same' or 'valid', got {padding!r}")
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got {stride}")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:])]
        edges = tuple((t // 2, t - t // 2) for t in total)
    else:
        edges = tuple((p, p) for p in pair(padding, "padding", least=0))
    _check_groups("conv2d", groups, weight.shape[0])
    if input.shape[-3] != weight.shape[1] * groups:
        raise ValueError(f"conv2d with weight {weight.shape} and groups={groups} expects {weight.shape[1] * groups} "
                         f"input channels, got input {input.shape}")
    _check_bias("conv2d", bias, weight.shape[0])
    for size, k, d, (before, behind) in zip(input.shape[-2:], weight.shape[2:], dilation, edges):
        if size + before + behind < d * (k - 1) + 1:
            raise ValueError(f"conv2d: the padded input {input.shape}, padding {edges} is smaller than the kernel "
                             f"{weight.shape[2:]} with dilation {dilation}")
    if onto is not None:
        shape = *input.shape[:-3], len(weight), *(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(input.shape[-2:], weight.shape[2:], stride, edges, dilation))
        if onto.shape != shape:
            raise ValueError(f"conv2d's result has the shape {shape}, got onto of shape {onto.shape}")
    x, w = input.data[None] if single else input.data, weight.data
    b, r = None if bias is None else bias.data, None if onto is None else onto.data[None] if single else onto.data
    settings = stride, edges, dilation, groups
    y = kernels(x).conv2d(x, w, b, *settings, r)
    needs = input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad

    def backward(g):
        dx, dw, db = kernels(x).conv2d_backward(g[None] if single else g, x, w, *settings, *needs)
        return dx[0] if single and dx is not None else dx, dw, *(() if b is None else (db,)), g

    return record(y[0] if single else y, "conv2d", _given(input, weight, bias, onto), backward)


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
    check_float("conv_transpose2d", input=input, weight=weight, bias=bias)
    check_not_empty("conv_transpose2d", input)
    single = check_image("conv_transpose2d", input)
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    padding, extra = pair(padding, "padding", least=0), pair(output_padding, "output_padding", least=0)
    if weight.ndim != 4:
        raise ValueError(f"conv_transpose2d expects a weight of shape (C_in, C_out/groups, kh, kw), got {weight.shape}")
    _check_groups("conv_transpose2d", groups, weight.shape[0])
    if input.shape[-3] != weight.shape[0]:
        raise ValueError(f"conv_transpose2d with weight {weight.shape} expects {weight.shape[0]} input channels, "
                         f"got input {input.shape}")
    _check_bias("conv_transpose2d", bias, weight.shape[1] * groups)
    for size, k, s, p, d, e in zip(input.shape[-2:], weight.shape[2:], stride, padding, dilation, extra):
        if e >= max(s, d):
            raise ValueError(f"output_padding must be smaller than stride or dilation, got {extra} with stride "
                             f"{stride} and dilation {dilation}")
        if (size - 1) * s - 2 * p + d * (k - 1) + e + 1 < 1:
            raise ValueError(f"conv_transpose2d: padding {padding} leaves no output of an input {input.shape}")
    x, w = input.data[None] if single else input.data, weight.data
    settings = stride, tuple((p, p) for p in padding), extra, dilation, groups
    y = kernels(x).conv_transpose2d(x, w, None if bias is None else bias.data, *settings)
    needs = input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad

    def backward(g):
        g = g[None] if single else g
        dx, *others = kernels(x).conv_transpose2d_backward(g, x, w, *settings, *needs)
        return dx[0] if single and dx is not None else dx, *others

    return record(y[0] if single else y, "conv_transpose2d", _given(input, weight, bias), backward)


def _given(*tensors):
    return tuple(x for x in tensors if x is not None)


def _check_groups(op, groups, channels):
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"{op}: groups must be a positive integer that divides {channels} channels, got {groups!r}")


def _check_bias(op, bias, channels):
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"{op} expects a bias of shape ({channels},), got {bias.shape}")
