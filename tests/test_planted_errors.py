"""Wrong gradients, planted one at a time: the op's registered gradient check has to fail for each of them."""

import numpy as np
import pytest
from strategies import CASES
from test_gradients import check_gradients

import npdiffusion.tensor
from npdiffusion import functional as F
from npdiffusion.kernels import numpy as kernels

PLANTED = {}


def planted(op):
    """Register an error: a function that patches it in, and the op whose check must notice."""
    def register(function):
        PLANTED[function.__name__] = op, function
        return function
    return register


def tamper(patch, op, wrong):
    """Replace the gradients of ``op`` by wrong(g, gradients, arguments)."""
    right = getattr(F, op)

    def tampered(*args, **options):
        y = right(*args, **options)
        if y.node and y.node.name == op:
            backward = y.node.backward
            y.node.backward = lambda g: wrong(g, backward(g), args)
        return y

    patch.setattr(F, op, tampered)


@planted("softmax")
def dropped_term(patch):
    tamper(patch, "softmax", lambda g, grads, args: (g * F.softmax(args[0].detach(), *args[1:]).data,))


@planted("log_softmax")
def wrong_axis(patch):
    def wrong(g, grads, args):
        y = F.log_softmax(args[0].detach(), args[1]).data
        axis = (args[1] + 1) % y.ndim  # the sum must run along args[1]
        return (g - np.exp(y) * g.sum(axis, keepdims=True),)

    tamper(patch, "log_softmax", wrong)


@planted("sum")
def scaled(patch):
    tamper(patch, "sum", lambda g, grads, args: (grads[0] * 1.001,))


def change_settings(patch, kernel, change):
    right = getattr(kernels, kernel)
    patch.setattr(kernels, kernel, lambda *args, **options: right(*change(*args), **options))


@planted("conv2d")
def off_by_one_padding(patch):
    def change(g, x, w, stride, padding, *rest):
        top, left = padding
        return (g, x, w, stride, (top + 1, left), *rest)

    change_settings(patch, "conv2d_backward", change)


@planted("avg_pool2d")
def off_by_one_crop(patch):
    right = kernels.avg_pool2d_backward
    patch.setattr(kernels, "avg_pool2d_backward", lambda *args: np.roll(right(*args), 1, axis=3))


@planted("conv2d")
def dilation_the_wrong_way_round(patch):
    def change(g, x, w, stride, padding, dilation, *rest):
        return (g, x, w, stride, padding, dilation[::-1], *rest)

    change_settings(patch, "conv2d_backward", change)


@planted("conv2d")
def flipped_taps(patch):
    change_settings(patch, "conv2d_backward", lambda g, x, w, *rest: (g, x, w[..., ::-1, ::-1], *rest))


@planted("conv2d")
def groups_out_of_order(patch):
    right = kernels.conv2d_backward

    def wrong(g, x, w, stride, padding, dilation, groups, needs):
        dx, dw, db = right(g, x, w, stride, padding, dilation, groups, needs)
        return dx, None if dw is None else np.roll(dw, len(dw) // groups, axis=0), db

    patch.setattr(kernels, "conv2d_backward", wrong)


@planted("conv_transpose2d")
def transposed_taps(patch):
    def change(g, x, w, *rest):
        return (g, x, w.swapaxes(2, 3) if w.shape[2] == w.shape[3] else w, *rest)

    change_settings(patch, "conv_transpose2d_backward", change)


@planted("linear")
def transposed_weight(patch):
    def wrong(g, grads, args):
        w = args[1].data
        return (g @ w.T, *grads[1:]) if w.shape[0] == w.shape[1] else grads

    tamper(patch, "linear", wrong)


@planted("add")
def missing_broadcast_sum(patch):
    right = npdiffusion.tensor._fitted

    def wrong(g, edge, node):
        added = g.ndim - len(edge.shape)
        first = (0,) * added + tuple(slice(n) for n in edge.shape)
        return right(g[first], edge, node)

    patch.setattr(npdiffusion.tensor, "_fitted", wrong)


@planted("relu")
def forgotten_mask(patch):
    tamper(patch, "relu", lambda g, grads, args: (g,))


@planted("dropout")
def forgotten_dropout_scale(patch):
    tamper(patch, "dropout", lambda g, grads, args: (g * (grads[0] != 0),))


@planted("sub")
def wrong_sign(patch):
    tamper(patch, "sub", lambda g, grads, args: (g, g))


@planted("group_norm")
def wrong_group_mean(patch):
    def change(g, x, mean, rstd, groups, *rest):
        return (g, x, mean, rstd, 1, *rest)

    change_settings(patch, "group_norm_backward", change)


@planted("group_norm_silu")
def activation_left_out(patch):
    change_settings(patch, "group_norm_backward", lambda *args: (*args[:7], False, *args[8:]))


@planted("group_norm_silu")
def scale_and_shift_exchanged(patch):
    right = kernels.group_norm_backward

    def wrong(*args):
        *grads, conditions = right(*args)
        return *grads, None if conditions is None else np.roll(conditions, conditions.shape[1] // 2, 1)

    patch.setattr(kernels, "group_norm_backward", wrong)


@planted("embedding")
def repeated_rows_overwritten(patch):
    def wrong(shape, index, g):
        dw = np.zeros(shape, g.dtype)
        dw[index] = g
        return dw

    patch.setattr(kernels, "add_at", wrong)


@planted("maximum")
def winner_and_loser_alike(patch):
    tamper(patch, "maximum", lambda g, grads, args: (g, g))


@planted("layer_norm")
def bias_averaged(patch):
    def wrong(g, grads, args):
        return *grads[:-1], grads[-1] / len(args[0])

    tamper(patch, "layer_norm", wrong)


@planted("matmul")
def one_element_off(patch):
    def wrong(g, grads, args):
        dx = np.array(grads[0])
        dx.flat[-1] *= 1.001
        return dx, grads[1]

    tamper(patch, "matmul", wrong)


@pytest.mark.parametrize("error", PLANTED)
def test_planted_error_is_caught(error, monkeypatch):
    op, plant = PLANTED[error]
    check_gradients(op, shrink=False)  # passes as it should
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="backward says"):
        check_gradients(op, shrink=False)


def test_planted_errors_are_of_public_ops():
    assert {op for op, _ in PLANTED.values()} <= set(CASES) and len(PLANTED) >= 10
