"""Losses: functions of a prediction and a target, with PyTorch's ``reduction`` (mean, sum or none)."""

import math

import numpy as np

from ..device import array_module, to_device
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import as_tensor, check_affine, check_probability, floats
from .activation import log_softmax, softplus
from .arithmetic import abs, mul, weighted
from .reduction import mean, sum


def _product(weight, x):
    """weight·x; where the weight is 0, x does not count, be it ∞ or NaN, nor does a gradient."""
    w, a, needs_dw = weight.data, x.data, weight.requires_grad
    return record(weighted(w, a), "product", (weight, x),
                  lambda g: (weighted(g, a) if needs_dw else None, weighted(w, g)))


def _reduced(loss, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return mean(loss) if reduction == "mean" else sum(loss) if reduction == "sum" else loss


def _check_same(op, input, target):
    target = as_tensor(target)
    floats(op, input=input, target=target)
    if input.shape != target.shape:
        raise ValueError(f"{op} expects input and target of one shape, got {input.shape} and {target.shape}")
    return target


def mse_loss(input, target, reduction="mean"):
    """(input − target)², averaged by default."""
    target = _check_same("mse_loss", input, target)
    x, y, needs_dy = input.data, target.data, target.requires_grad
    if reduction not in ("mean", "sum") or not x.size:
        difference = input - target
        return _reduced(mul(difference, difference), reduction)
    scale = 1 / x.size if reduction == "mean" else 1.0

    def backward(g):
        dx = kernels(g).squared_error_backward(g, x, y, scale)
        return dx, -dx if needs_dy else None

    return record(kernels(x).squared_error(x, y, scale), "mse_loss", (input, target), backward)


def l1_loss(input, target, reduction="mean"):
    """|input − target|, averaged by default."""
    return _reduced(abs(input - _check_same("l1_loss", input, target)), reduction)


def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    """−w·[p·y·log σ(x) + (1 − y)·log(1 − σ(x))], with −log σ(x) = softplus(−x) and −log(1 − σ(x)) = softplus(x).

    Args:
        input: logits x; target: y in [0, 1], of the same shape.
        weight (w), pos_weight (p): Tensors that broadcast to that shape, or None for 1.
    """
    op = "binary_cross_entropy_with_logits"
    target = _check_same(op, input, target)
    floats(op, input=input, weight=weight, pos_weight=pos_weight)
    positive = target if pos_weight is None else _product(target, pos_weight)
    loss = _product(positive, softplus(-input, threshold=math.inf))
    loss = loss + _product(1 - target, softplus(input, threshold=math.inf))
    return _reduced(loss if weight is None else _product(weight, loss), reduction)


def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """−Σ_c w_c·q_c·log softmax(input)_c, with q the target's distribution; where w_c·q_c = 0, any logit will do.

    Args:
        input: logits (N, C, …) or (C,). target: class numbers (N, …) or (), integers; or probabilities of the
            input's shape. Class numbers may be on the CPU while the input is not, and are checked only there.
        weight: w, a Tensor (C,), or None for 1.
        ignore_index: class number that counts as no target. label_smoothing: ε in q = (1 − ε)·target + ε/C.
        reduction: "mean" divides by the number of targets, or by Σ w of the class numbers that count.
    """
    op, target = "cross_entropy", as_tensor(target)
    x, _ = floats(op, input=input, weight=weight)
    if not input.ndim:
        raise ValueError(f"{op} expects an input (N, C, ...) or (C,), got {input.shape}")
    check_probability("cross_entropy's label_smoothing", label_smoothing)
    axis = 0 if input.ndim == 1 else 1
    xp, classes, shape = array_module(x), x.shape[axis], x.shape[:axis] + x.shape[axis + 1:]
    check_affine(op, (classes,), weight=weight)
    along = classes, *[1] * (x.ndim - axis - 1)
    w = Tensor(xp.ones(along, x.dtype)) if weight is None else weight.reshape(along)
    if target.dtype.kind == "f":
        q, total = _check_same(op, input, target), None
    else:
        labels = target.data
        if labels.shape != shape or labels.dtype.kind not in "iu":
            raise ValueError(f"{op} expects class numbers of shape {shape} or probabilities of shape {input.shape}, "
                             f"got {labels.dtype} {labels.shape}")
        if isinstance(labels, np.ndarray) and not ((labels >= 0) & (labels < classes) | (labels == ignore_index)).all():
            raise ValueError(f"{op} expects class numbers from 0 to {classes - 1}, "
                             f"got {int(labels.min())} to {int(labels.max())}")
        labels = xp.expand_dims(to_device(labels, x), axis)
        q = Tensor((xp.arange(classes).reshape(along) == labels).astype(x.dtype))
        w = w * Tensor((labels != ignore_index).astype(x.dtype))
        total = sum(w * q)
    q = _product(w, q * (1 - label_smoothing) + label_smoothing / classes)
    loss = -sum(_product(q, log_softmax(input, axis)), axis)
    return sum(loss) / total if total is not None and reduction == "mean" else _reduced(loss, reduction)
