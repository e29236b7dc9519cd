"""Group and layer normalisation."""

from ..device import array_module
from ..kernels import kernels
from ..tensor import record
from ._arguments import check_affine, check_groups, floats, ints


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """(x − μ)/√(σ² + eps)·weight + bias over groups of channels (Wu & He 2018, eq. 1).

    μ and the biased variance σ² are taken over one sample's pixels and the C/num_groups channels of a group.

    Args:
        input: (N, C, …). num_groups: divides C. weight, bias: (C,) or None.

    Raises ValueError for shapes that do not fit and for one sample with one value in each group, as PyTorch does;
    TypeError for different dtypes.
    """
    return _group_norm("group_norm", input, num_groups, weight, bias, None, eps, silu=False)


def group_norm_silu(input, num_groups, weight=None, bias=None, scale_shift=None, eps=1e-5):
    """silu(group_norm(input, …)·(1 + scale) + shift) in one pass over memory: what a UNet's blocks spend it on.

    The conditioning is Dhariwal & Nichol 2021, eq. 3. Arguments as ``group_norm``, and
    scale_shift: (N, 2·C), for each sample C scales, then C shifts; or None for zeros.
    """
    return _group_norm("group_norm_silu", input, num_groups, weight, bias, scale_shift, eps, silu=True)


def _group_norm(op, input, num_groups, weight, bias, scale_shift, eps, silu):
    x, w, b, s = floats(op, input=input, weight=weight, bias=bias, scale_shift=scale_shift)
    if input.ndim < 2:
        raise ValueError(f"{op} expects an input of shape (N, C, ...), got {input.shape}")
    shape, (n, c) = input.shape, input.shape[:2]
    num_groups = check_groups(op, "num_groups", num_groups, c)
    check_affine(op, (c,), weight=weight, bias=bias)
    check_affine(op, (n, 2 * c), scale_shift=scale_shift)
    if not n:  # as of one sample, the sum of none
        conditions = None if scale_shift is None else scale_shift.sum(0, keepdim=True)
        return _group_norm(op, input.sum(0, keepdim=True), num_groups, weight, bias, conditions, eps, silu)[:0]
    eps = float(eps)  # one of NumPy's would make float64 of float32
    if x.size <= num_groups:
        raise ValueError(f"{op} expects more than one value in a group, got an input of shape {shape} in {num_groups} "
                         "groups: take fewer groups or more samples")
    x = x if x.ndim == 4 else x.reshape(n, c, -1, 1)
    w = array_module(x).ones(c, x.dtype) if w is None else w
    b = array_module(x).zeros(c, x.dtype) if b is None else b
    y, mean, rstd = kernels(x).group_norm(x, num_groups, w, b, eps, silu, s)

    def backward(g):
        dx, *others = kernels(g).group_norm_backward(g.reshape(x.shape), x, mean, rstd, num_groups, w, b, silu, s)
        return dx.reshape(shape), *others

    return record(y.reshape(shape), op, (input, weight, bias, scale_shift), backward)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """(x − μ)/√(σ² + eps)·weight + bias over the last axes (Ba et al. 2016, eq. 3–4).

    normalized_shape: the sizes of those axes (an int for one); weight, bias: that shape, or None.
    With d = g·weight: dx = rstd·(d − mean(d) − x̂·mean(d·x̂)).
    """
    x, w, b = floats("layer_norm", input=input, weight=weight, bias=bias)
    shape = ints(normalized_shape)
    if not shape or input.shape[-len(shape):] != shape:
        raise ValueError(f"layer_norm expects an input whose last axes are {shape}, got {input.shape}")
    check_affine("layer_norm", shape, weight=weight, bias=bias)
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdims=True)
    rstd = 1 / array_module(x).sqrt((centred * centred).mean(axes, keepdims=True) + float(eps))
    xhat = centred * rstd
    y = xhat if w is None else xhat * w

    def backward(g):
        d = g if w is None else g * w
        dx = rstd * (d - d.mean(axes, keepdims=True) - xhat * (d * xhat).mean(axes, keepdims=True))
        return dx, None if w is None else g * xhat, g

    return record(y if b is None else y + b, "layer_norm", (input, weight, bias), backward)
