"""Losses: functions of a prediction and a target, with PyTorch's ``reduction`` (mean, sum or none)."""

import math

import numpy as np

from ..device import array_module, to_device
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import as_tensor, check_float
from .activation import log_softmax, logistic
from .arithmetic import abs, mul
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

    With l = softplus(−x): (1 − y)·x + (1 + (p − 1)·y)·l, and d/dx = (1 − y) − (1 + (p − 1)·y)·(1 − σ(x)).

    Args:
        input: logits x; target: y, of the same shape.
        weight (w), pos_weight (p): Tensors that broadcast to that shape, or None for 1; no gradient for them.
    """
    op = "binary_cross_entropy_with_logits"
    target = _check_same(op, input, target)
    x, y = input.data, target.data
    check_float(op, input=input, weight=weight, pos_weight=pos_weight)
    if target.requires_grad or any(p is not None and p.requires_grad for p in (weight, pos_weight)):
        raise ValueError(f"{op} gives a gradient for the input only: detach() the others")
    w = 1.0 if weight is None else weight.data
    p = 1.0 if pos_weight is None else pos_weight.data
    xp = array_module(x)
    scale = 1 + (p - 1) * y
    loss = w * ((1 - y) * x + scale * xp.logaddexp(-x, 0.0).astype(x.dtype, copy=False))
    out = record(loss, op, (input,), lambda g: (g * w * ((1 - y) - scale * (1 - logistic(x))),))
    return _reduced(out, reduction)


def cross_entropy(input, target, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """−Σ_c q_c·log softmax(input)_c, with q the target's distribution.

    Args:
        input: logits (N, C, …) or (C,). target: class numbers (N, …) or (), integers; or probabilities of the
            input's shape. Class numbers may be on the CPU while the input is not, and are checked only there.
        ignore_index: class number that counts as no target. label_smoothing: ε in q = (1 − ε)·onehot + ε/C.
        reduction: "mean" divides by the number of targets that count.
    """
    target = as_tensor(target)
    check_float("cross_entropy", input=input)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
    axis = 0 if input.ndim == 1 else 1
    classes, xp = input.shape[axis], array_module(input.data)
    if target.dtype.kind == "f":
        _check_same("cross_entropy", input, target)
        if target.requires_grad:
            raise ValueError("cross_entropy gives a gradient for the input only: detach() the target")
        q, counts, number = target.data, None, math.prod(input.shape[:axis] + input.shape[axis + 1:])
    else:
        labels = target.data
        if labels.shape != input.shape[:axis] + input.shape[axis + 1:] or labels.dtype.kind not in "iu":
            raise ValueError(f"cross_entropy expects class numbers of shape "
                             f"{input.shape[:axis] + input.shape[axis + 1:]} or probabilities of shape {input.shape}, "
                             f"got {labels.dtype} {labels.shape}")
        on_cpu = array_module(labels) is np
        if on_cpu and not ((labels >= 0) & (labels < classes) | (labels == ignore_index)).all():
            raise ValueError(f"cross_entropy expects class numbers from 0 to {classes - 1}, "
                             f"got {int(labels.min())} to {int(labels.max())}")
        number = int((labels != ignore_index).sum()) if on_cpu else None
        labels = to_device(labels, input.data)
        counts = labels != ignore_index
        numbers = xp.arange(classes).reshape((-1,) + (1,) * (input.ndim - axis - 1))
        q = (numbers == xp.expand_dims(labels, axis)).astype(input.dtype)
    q = q * (1 - label_smoothing) + label_smoothing / classes
    if counts is not None:
        q = q * xp.expand_dims(counts, axis)
    loss = -sum(log_softmax(input, axis) * q, axis)
    if reduction == "mean":
        if number is not None:
            return sum(loss) * (1 / max(1, number))
        return sum(loss) / Tensor(xp.maximum(counts.sum(), 1).astype(loss.dtype))  # the count stays on the GPU
    return _reduced(loss, reduction)
