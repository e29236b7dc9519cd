"""Losses: functions of a prediction and a target, with PyTorch's ``reduction`` (mean, sum or none)."""

import numpy as np

from ..device import array_module, to_device
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import as_tensor, check_affine, check_float, needs
from .activation import log_softmax, logistic
from .arithmetic import abs, mul, weighted
from .reduction import mean, sum

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "l1_loss", "mse_loss"]


def _reduced(loss, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return mean(loss) if reduction == "mean" else sum(loss) if reduction == "sum" else loss


def _check_same(op, input, target):
    target = as_tensor(target)
    check_float(op, input=input, target=target)
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
    """−w·[p·y·log σ(x) + (1 − y)·log(1 − σ(x))], computed without overflow; y in [0, 1].

    −log σ(x) = max(−x, 0) + log(1 + e^−|x|), −log(1 − σ(x)) is the same of −x, and their slopes are σ(x) − 1 and σ(x).

    Args:
        input: logits x; target: y, of the same shape.
        weight (w), pos_weight (p): Tensors that broadcast to that shape, or None for 1; no gradient for them.
    """
    op = "binary_cross_entropy_with_logits"
    target = _check_same(op, input, target)
    check_float(op, input=input, weight=weight, pos_weight=pos_weight)
    if any(needs(weight, pos_weight)):
        raise ValueError(f"{op} gives no gradient for weight and pos_weight: detach() them")
    x, y, needs_dy = input.data, target.data, target.requires_grad
    xp = array_module(x)
    w = xp.ones((), x.dtype) if weight is None else weight.data
    p = w if pos_weight is None else w * pos_weight.data
    rest = xp.log1p(xp.exp(-xp.abs(x)))
    if_true, if_false = xp.maximum(-x, 0) + rest, xp.maximum(x, 0) + rest

    def backward(g):
        s = logistic(x)
        dx = weighted(weighted(w * (1 - y), s) - weighted(p * y, 1 - s), g)
        return dx, weighted(g, weighted(p, if_true) - weighted(w, if_false)) if needs_dy else None

    loss = weighted(p * y, if_true) + weighted(w * (1 - y), if_false)
    return _reduced(record(loss, op, (input, target), backward), reduction)


def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """−Σ_c w_c·q_c·log softmax(input)_c, with q the target's distribution; where w_c·q_c = 0, any logit will do.

    Args:
        input: logits (N, C, …) or (C,). target: class numbers (N, …) or (), integers; or probabilities of the
            input's shape. Class numbers may be on the CPU while the input is not, and are checked only there.
        weight: w, a Tensor (C,), or None for 1; no gradient for it.
        ignore_index: class number that counts as no target. label_smoothing: ε in q = (1 − ε)·target + ε/C.
        reduction: "mean" divides by the number of targets, or by Σ w of the class numbers that count.
    """
    op, target = "cross_entropy", as_tensor(target)
    check_float(op, input=input, weight=weight)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
    if any(needs(weight)) or not input.ndim:
        raise ValueError(f"{op} expects an input (N, C, ...) or (C,), got {input.shape}, and gives no gradient for "
                         f"weight: detach() it")
    x, axis, epsilon = input.data, 0 if input.ndim == 1 else 1, float(label_smoothing)
    xp, classes, shape = array_module(x), x.shape[axis], x.shape[:axis] + x.shape[axis + 1:]
    check_affine(op, (classes,), weight=weight)
    along = (classes,) + (1,) * (x.ndim - axis - 1)
    w = xp.ones(along, x.dtype) if weight is None else weight.data.reshape(along)
    if target.dtype.kind == "f":
        _check_same(op, input, target)
        q, counts, total = target.data, True, None
    else:
        labels = target.data
        if labels.shape != shape or labels.dtype.kind not in "iu":
            raise ValueError(f"{op} expects class numbers of shape {shape} or probabilities of shape {input.shape}, "
                             f"got {labels.dtype} {labels.shape}")
        if array_module(labels) is np and not (
                (labels >= 0) & (labels < classes) | (labels == ignore_index)).all():
            raise ValueError(f"{op} expects class numbers from 0 to {classes - 1}, "
                             f"got {int(labels.min())} to {int(labels.max())}")
        labels = xp.expand_dims(to_device(labels, x), axis)
        q, counts = (xp.arange(classes).reshape(along) == labels).astype(x.dtype), labels != ignore_index
        total = (w * q * counts).sum()
    q = w * (q * (1 - epsilon) + epsilon / classes) * counts
    log_p, needs_dq = log_softmax(input.detach(), axis).data, target.requires_grad

    def backward(g):
        g, sums = xp.expand_dims(g, axis), q.sum(axis, keepdims=True)
        dx = weighted(xp.where(sums == 0, 0, xp.exp(log_p) * sums - q), g)
        return dx, weighted((epsilon - 1) * w * g, log_p) if needs_dq else None

    loss = record(-weighted(q, log_p).sum(axis), op, (input, target), backward)
    if total is None or reduction != "mean":
        return _reduced(loss, reduction)
    return sum(loss) / Tensor(total)  # which stays on a GPU
