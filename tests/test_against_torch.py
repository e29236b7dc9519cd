"""Results and gradients against PyTorch, where it is installed: same names, argument order and conventions."""

import inspect

import numpy as np
import pytest

from npdiffusion import Tensor, gradcheck, use_kernels
from npdiffusion import functional as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed; nothing here needs it but these comparisons")
TF = torch.nn.functional


def normal(*shape, seed=0, positive=False):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    return np.abs(x) + 0.5 if positive else x


def agree(ours, theirs, *arrays, rtol=1e-4):
    """ours(Tensors) and theirs(torch tensors) agree, and so do their gradients for a random cotangent."""
    mine = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    other = [torch.tensor(a.copy(), requires_grad=a.dtype.kind == "f") for a in arrays]
    y, z = ours(*mine), theirs(*other)
    if isinstance(y, tuple):
        np.testing.assert_array_equal(y.indices.data, z.indices.numpy())
        y, z = y.values, z.values
    assert y.shape == tuple(z.shape)
    assert str(y.dtype) == str(z.dtype).removeprefix("torch.")
    close(y.data, z.detach().numpy(), rtol)
    if not z.requires_grad:
        return
    u = normal(*y.shape, seed=1)
    y.backward(np.asarray(u))
    z.backward(torch.tensor(u))
    for a, b in zip(mine, other):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            close(a.grad, b.grad.numpy(), rtol)


def close(a, b, rtol):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (1 + np.abs(b).max(initial=0)))


def same(name, *arrays, module=None, **options):
    """The op and PyTorch's of this name, with the very same arguments behind the arrays."""
    arguments = options.pop("arguments", ())
    other = getattr(module or (TF if hasattr(TF, name) else torch), name)
    agree(lambda *x: getattr(F, name)(*x, *arguments, **options), lambda *x: other(*x, *arguments, **options), *arrays)


image = normal(2, 4, 7, 6)


@pytest.mark.parametrize("name", ["abs", "exp", "neg", "relu", "sigmoid", "silu", "softplus", "tanh"])
def test_functions_of_one(name):
    same(name, 3 * normal(3, 4))
    same(name, normal())


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_functions_of_one_positive(name):
    same(name, normal(3, 4, positive=True))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum", "pow"])
def test_functions_of_two(name):
    same(name, normal(3, 4, positive=True), normal(4, positive=True), module=torch)
    same(name, normal(2, 1, 4, positive=True), normal(3, 1, positive=True), module=torch)
    if name not in ("maximum", "minimum"):
        same(name, normal(3, 4, positive=True), arguments=(2.5,), module=torch)
        same(name, normal(3, 4, positive=True), arguments=(2,), module=torch)
    same(name, np.ones((3, 2), np.float32), np.ones((3, 1), np.float32), module=torch)  # ties


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_integers(name):
    same(name, np.array([1, 2, 3]), np.array([[2], [4]]), module=torch)
    same(name, np.array([1, 2, 3]), arguments=(2,), module=torch)
    same(name, np.array([1, 2, 3]), arguments=(0.5,), module=torch)
    same(name, normal(3), np.array([1, 2, 3]), module=torch)
    same(name, np.array([1, 2, 3]), normal(3), module=torch)


def test_other_elementwise():
    for approximate in ("none", "tanh"):
        same("gelu", 3 * normal(3, 4), approximate=approximate)
    same("softplus", normal(30), arguments=(3, 0.2))
    for limits in ({"min": -0.5}, {"max": 0.5}, {"min": -0.5, "max": 0.5}):
        same("clamp", normal(3, 4), **limits)
    values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
    same("clamp", values, arguments=(0, 1))  # gradients at the limits
    for low, high in ([0, 1], [0.5, 0.5], [1, 0]):
        same("clamp", values, np.full(5, low, np.float32), np.full(1, high, np.float32), module=torch)
    same("clamp", values, np.zeros((2, 1), np.float32), module=torch)
    agree(lambda x, high: x.clamp(0, high), lambda x, high: torch.clamp(x, torch.tensor(0), high), values, values[::-1])
    same("clamp", np.array([0, 1, 5]), arguments=(0.5, 3))
    agree(lambda c, x, y: F.where(c > 0, x, y), lambda c, x, y: torch.where(c > 0, x, y),
          np.array([0, 1, 1]), normal(2, 3), normal(3))
    same("dropout", normal(3), p=0.5, training=False)
    same("dropout", normal(3), arguments=(1.0,))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmaxes(dim):
    for name in ("softmax", "log_softmax"):
        same(name, normal(3, 4, 2), arguments=(dim,), module=torch)
        same(name, normal(3, 4, 2), dim=dim)


@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions(keepdim):
    for dim in (0, -1, (0, 2), (-1, 1)):
        for name in ("sum", "mean", "var"):
            same(name, normal(3, 4, 2), dim=dim, keepdim=keepdim, module=torch)
        same("var", normal(3, 4, 2), dim=dim, correction=0, keepdim=keepdim)
    same("sum", normal(3, 4), arguments=(0, keepdim))
    same("mean", normal(3, 4), arguments=(0, keepdim))
    for name in ("max", "min"):
        same(name, normal(3, 4), arguments=(1, keepdim), module=torch)
        same(name, np.array([[1, 3, 3], [2, 2, 1]], np.float32), arguments=(1, keepdim), module=torch)  # ties
    for name in ("sum", "mean", "var", "max", "min"):
        same(name, normal(3, 4), module=torch)
    same("max", np.array([1, 3, 3], np.float32), module=torch)
    for dim in ((), [], None):
        for name in ("sum", "mean"):
            same(name, normal(3, 4), dim=dim, module=torch)
    for options in ({"unbiased": False}, {"unbiased": True}, {"correction": None}, {"correction": 0.5}):
        same("var", normal(3, 4), dim=1, **options)
    for arguments in ((False,), (True,), (1, False), (1, True, True)):
        same("var", normal(3, 4), arguments=arguments)
    for name in ("max", "min"):
        same(name, normal(3, 4), normal(4, seed=1), module=torch)
    for name in ("sum", "mean"):
        agree(lambda x: getattr(F, name)(x, 0, dtype="float64"),
              lambda x: getattr(torch, name)(x, 0, dtype=torch.double), np.array([[1, 2], [2, 4]]))
    agree(lambda x: x.sum(dtype="int32"), lambda x: x.sum(dtype=torch.int32), np.array([1, 2]))
    for dtype in (bool, np.uint8, np.int32, np.int64):
        same("sum", np.array([[1, 0, 1]]).astype(dtype), dim=1, module=torch)


@pytest.mark.parametrize("dim", [0, -1])
def test_a_number_has_no_axes_but_these(dim):
    for name in ("sum", "mean", "max", "min", "softmax", "log_softmax", "squeeze", "unsqueeze", "flatten"):
        same(name, normal(), arguments=(dim,), module=torch)
    same("sum", normal(), arguments=(dim, True))
    same("max", normal(), arguments=(dim, True), module=torch)
    same("transpose", normal(), arguments=(dim, 0), module=torch)
    for f in (lambda x: x.sum(1), lambda x: F.softmax(x, -2), lambda x: x.transpose(0, 1)):
        with pytest.raises(ValueError, match="out of bounds"):
            f(Tensor(1.0))


@pytest.mark.parametrize("shape", [(0, 4, 7, 6), (0, 4, 3, 3)])
def test_empty_batches(shape):
    x = np.zeros(shape, np.float32)
    for weight in ((6, 4, 3, 3), (2, 4, 1, 1)):
        same("conv2d", x, normal(*weight), normal(weight[0]))
        same("conv_transpose2d", x, normal(4, *weight[1:]), normal(4), stride=2)
    for name in ("max_pool2d", "avg_pool2d"):
        same(name, x, arguments=(3, 2, 1))
    same("group_norm", x, arguments=(2,))
    agree(lambda x, w, b: F.group_norm(x, 2, w, b), lambda x, w, b: TF.group_norm(x, 2, w, b), x, normal(4), normal(4))
    agree(lambda x, s: F.group_norm_silu(x, 2, None, None, s), lambda x, s: TF.silu(x) + s.sum() * 0, x, normal(0, 8))
    same("interpolate", x, arguments=(5,))
    same("layer_norm", x, arguments=(shape[-1:],))


def test_shapes():
    x = normal(2, 3, 1, 4)
    for name, *arguments in [
        ("reshape", (4, 6)), ("reshape", (-1, 4)), ("flatten",), ("flatten", 1), ("flatten", 1, 2), ("squeeze",),
        ("squeeze", 2), ("squeeze", 0), ("unsqueeze", 0), ("unsqueeze", -1), ("transpose", 1, -1),
        ("permute", (3, 0, 2, 1)),
    ]:
        same(name, x, arguments=arguments, module=torch)
    agree(lambda x: x.expand(5, -1, 3, 2, 4), lambda x: x.expand(5, -1, 3, 2, 4), x)
    for name in ("cat", "stack"):
        for dim in (0, 1, -1):
            agree(lambda *x: getattr(F, name)(x, dim), lambda *x: getattr(torch, name)(x, dim), x, normal(*x.shape))
    agree(lambda x, y: F.cat((x, y), 1), lambda x, y: torch.cat((x, y), 1), image, normal(2, 3, 7, 6))
    for padding in [(1, 2), (1, 0, 0, 2), (-1, 1), (2, -2, -1, 0), (0, 0, 1, 1, 2, 0)]:
        same("pad", image, arguments=(padding,), value=0.5)
        same("pad", image, arguments=(padding, "constant", 2))


def test_indexing():
    for index in (0, -1, slice(1, None), (slice(None), 2), (..., 0), (None, 1), (slice(None, None, 2), ..., None)):
        agree(lambda x: x[index], lambda x: x[index], image)
    rows = np.array([1, 0, 1, 1])
    agree(lambda x, i: x[i], lambda x, i: x[i], image, rows)
    agree(lambda x, i: x[:, :, i, i], lambda x, i: x[:, :, i, i], image, rows)
    agree(lambda x: x[x > 0], lambda x: x[x > 0], image)


def test_products():
    for a, b in [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3,)),
                 ((3,), (5, 3, 2)), ((4, 1, 2, 3), (5, 3, 2))]:
        same("matmul", normal(*a), normal(*b), module=torch)
    for shape in [(3,), (2, 3), (2, 4, 3)]:
        same("linear", normal(*shape), normal(5, 3), normal(5))
        same("linear", normal(*shape), normal(5, 3))
    same("embedding", np.array([[0, 2], [2, 2]]), normal(4, 3))


def test_attention():
    q, k, v = normal(2, 3, 5, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 2, seed=2)
    mask = np.random.default_rng(0).random((5, 6)) < 0.5
    mask[:, 0] = True
    name = "scaled_dot_product_attention"
    same(name, q, k, v)
    same(name, q, k, v, scale=0.5)
    same(name, q, k, v, is_causal=True)
    same(name, q, v[..., :4].repeat(2, -1), v, is_causal=True)
    same(name, q, k, v, mask)
    same(name, q, k, v, mask[:1])
    same(name, q, k, v, normal(2, 1, 5, 6))
    same(name, q[0, 0], k[0, 0], v[0, 0])


@pytest.mark.parametrize("room", ["plain", "numpy"])
@pytest.mark.parametrize("size", [1, 100], ids=["small scores", "large scores"])
def test_attention_of_queries_that_see_nothing(room, size):
    q, k, v = size * normal(2, 3, 5, 4), normal(2, 3, 6, 4, seed=1), normal(2, 3, 6, 2, seed=2)
    mask = np.random.default_rng(0).random((2, 1, 5, 6)) < 0.5
    mask[0, 0, 1] = mask[1, 0, 4] = False
    name = "scaled_dot_product_attention"
    with use_kernels(room):
        for m in (mask, mask[0, 0], mask[0, 0, 1:2], mask[0, 0, :, :1]):
            same(name, q, k, v, m)
            same(name, q, k, v, np.where(m, normal(*m.shape), -np.inf).astype(np.float32))
        same(name, q, k[:, :, :0], v[:, :, :0])
        same(name, q[:, :, :0], k, v)
        same(name, q[..., :0], k[..., :0], v)
        for length in (1, 3, 5):
            same(name, q[:, :, :length], k[:, :, :4], v[:, :, :4], is_causal=True)


@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"stride": (2, 1), "padding": (0, 2)}, {"padding": 1}, {"dilation": (2, 1), "padding": 2},
    {"groups": 2}, {"groups": 4, "padding": 1}, {"padding": "same"}, {"padding": "valid"},
    {"padding": "same", "dilation": 2}, {"padding": "same", "dilation": (1, 2), "groups": 2}], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 4), (4, 2)])
def test_conv2d(options, kernel):
    x = normal(2, 4, 9, 10)
    w = normal(8, 4 // options.get("groups", 1), *kernel)
    same("conv2d", x, w, normal(8), **options)
    same("conv2d", x, w, **options)
    same("conv2d", x[0], w, normal(8), **options)


def test_conv2d_arguments_in_order():
    same("conv2d", image, normal(4, 2, 3, 3), normal(4), arguments=(2, 1, 1, 2))
    same("conv_transpose2d", image, normal(4, 2, 3, 3), normal(4), arguments=(2, 1, 1, 2, 1))


def test_conv2d_winograd_size():
    same("conv2d", normal(4, 16, 16, 16), normal(16, 16, 3, 3), normal(16), padding=1)
    same("conv2d", normal(4, 16, 18, 17), normal(32, 16, 3, 3), padding=(0, 1))


@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"stride": (3, 1), "padding": (1, 0)}, {"stride": 2, "output_padding": 1},
    {"stride": (2, 3), "output_padding": (1, 2), "padding": 1}, {"dilation": 2, "output_padding": 1},
    {"groups": 2, "stride": 2}, {"groups": 4, "dilation": (1, 2), "padding": 1}], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (4, 2)])
def test_conv_transpose2d(options, kernel):
    w = normal(4, 3, *kernel)
    same("conv_transpose2d", image, w, normal(3 * options.get("groups", 1)), **options)
    same("conv_transpose2d", image, w, **options)
    same("conv_transpose2d", image[0], w, **options)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(5, 5), (6, 7), (7, 6), (8, 8)])
@pytest.mark.parametrize("kernel, stride, padding", [
    (2, None, 0), (3, 2, 1), (3, 1, 1), ((3, 2), (2, 3), (1, 0)), (2, 3, 1), (3, 3, 0), (4, 3, 2), (1, 2, 0)])
def test_pools(kernel, stride, padding, size, ceil_mode):
    x = normal(2, 3, *size)
    same("max_pool2d", x, arguments=(kernel, stride, padding), ceil_mode=ceil_mode)
    same("max_pool2d", x[0], arguments=(kernel, stride, padding, 1, ceil_mode))
    for count in (False, True):
        same("avg_pool2d", x, arguments=(kernel, stride, padding, ceil_mode, count))
    same("avg_pool2d", x, kernel_size=kernel, stride=stride, padding=padding, divisor_override=3)
    ties = np.round(x)
    same("max_pool2d", ties, arguments=(kernel, stride, padding), ceil_mode=ceil_mode)


def test_pools_smaller_than_their_window():
    for kernel, size in ((3, 2), (2, 1)):
        same("max_pool2d", normal(1, 1, size, size), arguments=(kernel,), stride=2, ceil_mode=True)
        same("avg_pool2d", normal(1, 1, size, size), arguments=(kernel,), stride=2, ceil_mode=True)
    same("max_pool2d", image, arguments=(2, 1, 0, 3))
    same("max_pool2d", image, arguments=(3, 2, 1, (2, 1)))
    for name in ("max_pool2d", "avg_pool2d"):
        same(name, image, arguments=((2,), (), [1]))


@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"dilation": 2, "padding": (1, 0)},
                                     {"ceil_mode": True, "stride": 2}], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (3, 7, 6), (0, 3, 7, 6)])
def test_indices_of_maxima(shape, options):
    for x in (normal(*shape), np.round(normal(*shape))):  # also with ties
        y, places = F.max_pool2d(Tensor(x), 3, return_indices=True, **options)
        z, expected = TF.max_pool2d(torch.tensor(x), 3, return_indices=True, **options)
        np.testing.assert_array_equal(y.data, z.numpy())
        np.testing.assert_array_equal(places.data, expected.numpy())


@pytest.mark.parametrize("size", [1, 3, 7, 12, 13, 14, (3, 18), (20, 5)])
def test_interpolate_to_a_size(size):
    same("interpolate", image, arguments=(size,))
    same("interpolate", image, size=size, mode="nearest")


@pytest.mark.parametrize("factor", [1, 2, 3, 0.5, 1.5, 2.5, (2, 0.75)])
def test_interpolate_by_a_factor(factor):
    same("interpolate", image, scale_factor=factor)
    same("interpolate", image, scale_factor=factor, recompute_scale_factor=True, align_corners=None, antialias=False)


def test_norms():
    for shape in [(2, 4), (2, 4, 5), (2, 4, 7, 6), (2, 4, 2, 3, 2)]:
        for groups in (1, 2, 4):
            same("group_norm", normal(*shape), arguments=(groups,))
            agree(lambda x, w, b: F.group_norm(x, groups, w, b, 1e-3),
                  lambda x, w, b: TF.group_norm(x, groups, w, b, 1e-3), normal(*shape), normal(4), normal(4, seed=1))
            agree(lambda x, w, b: F.group_norm_silu(x, groups, w, b),
                  lambda x, w, b: TF.silu(TF.group_norm(x, groups, w, b)),
                  normal(*shape), normal(4), normal(4, seed=1))

            def conditioned(x, w, b, scale_shift):
                scale, shift = (p.reshape(len(x), 4, *[1] * (x.ndim - 2)) for p in scale_shift.chunk(2, 1))
                return TF.silu(TF.group_norm(x, groups, w, b) * (1 + scale) + shift)

            agree(lambda x, w, b, s: F.group_norm_silu(x, groups, w, b, s), conditioned,
                  normal(*shape), normal(4), normal(4, seed=1), normal(len(normal(*shape)), 8, seed=2))
    for last in [(6,), (7, 6)]:
        same("layer_norm", image, arguments=(last,))
        agree(lambda x, w, b: F.layer_norm(x, last, w, b, 1e-3), lambda x, w, b: TF.layer_norm(x, last, w, b, 1e-3),
              image, normal(*last), normal(*last, seed=1))
        agree(lambda x, b: F.layer_norm(x, last, bias=b), lambda x, b: TF.layer_norm(x, last, bias=b),
              image, normal(*last))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction):
    x, y = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    same("mse_loss", x, y, reduction=reduction)
    same("l1_loss", x, y, reduction=reduction)
    target = torch.sigmoid(torch.tensor(y))
    for weight, pos_weight in [(None, None), (normal(2, positive=True), None), (None, normal(4, 1, positive=True))]:
        def options(kind, weight=weight, pos_weight=pos_weight):
            return {k: None if v is None else kind(v) for k, v in (("weight", weight), ("pos_weight", pos_weight))}

        name = "binary_cross_entropy_with_logits"
        agree(lambda x, y: getattr(F, name)(x, y, reduction=reduction, **options(Tensor)),
              lambda x, y: getattr(TF, name)(x, y, reduction=reduction, **options(torch.tensor)), x, target.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, normal(5, positive=True), np.array([0, 1, 2, 0, 1], np.float32)], ids=str)
def test_cross_entropy(reduction, smoothing, weight):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    rng = np.random.default_rng(0)

    def same(name, x, target, **options):
        def arguments(kind):
            return () if weight is None else (kind(weight),)

        agree(lambda x, y: F.cross_entropy(x, y, *arguments(Tensor), **options),
              lambda x, y: TF.cross_entropy(x, y, *arguments(torch.tensor), **options), x, target)

    for shape in [(5,), (3, 5), (3, 5, 4), (3, 5, 2, 2)]:
        labels = np.asarray(rng.integers(0, 5, shape[:-1] if len(shape) < 3 else (shape[0], *shape[2:])))
        same("cross_entropy", normal(*shape), labels, **options)
        if labels.ndim:
            labels.flat[0] = -100
            same("cross_entropy", normal(*shape), labels, **options)
            same("cross_entropy", normal(*shape), np.where(labels < 0, 1, labels), ignore_index=1, **options)
        q = torch.softmax(torch.tensor(normal(*shape, seed=3)), min(1, len(shape) - 1))
        same("cross_entropy", normal(*shape), q.numpy(), **options)
        if labels.ndim:
            same("cross_entropy", normal(*shape), np.full_like(labels, -100), **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_for_the_weights_of_losses(reduction):
    x, labels, target = Tensor(normal(4, 3)), Tensor(np.array([0, 2, 1, -100])), Tensor(normal(4, 3, positive=True))
    weights = np.array([0.5, 1, 2])
    double = x.double(), target.double()
    assert gradcheck(lambda w: F.cross_entropy(
        double[0], labels, w, reduction=reduction, label_smoothing=0.1), [weights])
    assert gradcheck(lambda w, p: F.binary_cross_entropy_with_logits(
        *double, w, reduction, pos_weight=p), [weights, weights[::-1]])


# Defaults: each is left out once, and matters

x, y, zero_one = normal(3, 4), normal(3, 4, seed=1), np.abs(np.tanh(normal(3, 4)))
norm = [0.01 * image, 2]
qkv = [normal(2, 5, 4, seed=i) for i in range(3)]
DEFAULTS = {  # op: what it is called with, {argument: another value than its default}, what else must be said
    "avg_pool2d": ([image, 3], {"stride": 1, "padding": 1, "ceil_mode": True, "divisor_override": 3}, {}),
    "avg_pool2d of padding": ([image, 3], {"count_include_pad": False}, {"padding": 1}),
    "binary_cross_entropy_with_logits": (
        [x, zero_one], {"weight": Tensor(zero_one), "reduction": "sum", "pos_weight": Tensor(zero_one)}, {}),
    "cat": ([[x, y]], {"dim": 1}, {}),
    "clamp": ([x], {"min": -0.5}, {"max": 0.5}),
    "clamp from below": ([x], {"max": 0.5}, {"min": -0.5}),
    "conv2d": ([image, normal(4, 4, 3, 3)], {
        "bias": Tensor(normal(4)), "stride": 2, "padding": 1, "dilation": 2, "groups": 2}, {}),
    "conv_transpose2d": ([image, normal(4, 2, 3, 3)], {
        "bias": Tensor(normal(2)), "stride": 2, "padding": 1, "groups": 2, "dilation": 2}, {}),
    "conv_transpose2d in steps": ([image, normal(4, 2, 3, 3)], {"output_padding": 1}, {"stride": 2}),
    "cross_entropy": ([x, np.array([0, 1, -100])], {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1,
                                                    "weight": Tensor(normal(4, positive=True))}, {}),
    "dropout": ([np.ones((50, 50), np.float32)], {"p": 0.0, "training": False, "inplace": True}, {}),
    "flatten": ([normal(2, 3, 4)], {"start_dim": 1, "end_dim": 1}, {}),
    "gelu": ([x], {"approximate": "tanh"}, {}),
    "group_norm": (norm, {"weight": Tensor(normal(4)), "bias": Tensor(normal(4)), "eps": 0.1}, {}),
    "group_norm_silu": (norm, {"weight": Tensor(normal(4)), "bias": Tensor(normal(4)), "eps": 0.1,
                               "scale_shift": Tensor(normal(2, 8))}, {}),
    "interpolate": ([image], {"size": 4, "mode": "bilinear", "align_corners": True, "antialias": True,
                              "recompute_scale_factor": True}, {"scale_factor": 1.7}),
    "interpolate to a size": ([image], {"scale_factor": 2}, {"size": 5}),
    "l1_loss": ([x, y], {"reduction": "sum"}, {}),
    "layer_norm": ([0.01 * x, 4], {"weight": Tensor(normal(4)), "bias": Tensor(normal(4)), "eps": 0.1}, {}),
    "linear": ([x, normal(5, 4)], {"bias": Tensor(normal(5))}, {}),
    "log_softmax": ([x, 1], {"dtype": "float64"}, {}),
    "max": ([x], {"dim": 1}, {}),
    "max along an axis": ([x, 1], {"keepdim": True}, {}),
    "max_pool2d": ([image, 3], {
        "stride": 1, "padding": 1, "dilation": 2, "ceil_mode": True, "return_indices": True}, {}),
    "mean": ([x], {"dim": 1, "keepdim": True, "dtype": "float64"}, {}),
    "min": ([x], {"dim": 1}, {}),
    "min along an axis": ([x, 1], {"keepdim": True}, {}),
    "mse_loss": ([x, y], {"reduction": "sum"}, {}),
    "pad": ([x, (1, 1)], {"mode": "reflect", "value": 1.0}, {}),
    "relu": ([x], {"inplace": True}, {}),
    "scaled_dot_product_attention": (qkv, {"attn_mask": Tensor(normal(5, 5)), "dropout_p": 0.5, "is_causal": True,
                                           "scale": 0.1}, {}),
    "silu": ([x], {"inplace": True}, {}),
    "softmax": ([x, 1], {"dtype": "float64"}, {}),
    "softplus": ([5 * x], {"beta": 2.0, "threshold": 2.0}, {}),
    "squeeze": ([normal(1, 3, 1)], {"dim": 0}, {}),
    "stack": ([[x, y]], {"dim": 1}, {}),
    "sum": ([x], {"dim": 1, "keepdim": True, "dtype": "float64"}, {}),
    "var": ([x], {"dim": 1, "correction": 0, "keepdim": True, "unbiased": False}, {}),
}


def called(module, wrap, what, **options):
    """The op, or PyTorch's of this name, with what DEFAULTS says; its results."""
    name, (args, _, more) = what.split()[0], DEFAULTS[what]
    if module is torch:
        op = getattr(TF, name) if hasattr(TF, name) else getattr(
            torch, name, lambda *args: TF.silu(TF.group_norm(*args)))  # there is no group_norm_silu
        args = [args[0], (4,)] if name == "layer_norm" else args
    else:
        op = getattr(F, name)
    args = [[wrap(a) for a in x] if isinstance(x, list) else wrap(x) if isinstance(x, np.ndarray) else x for x in args]
    results = op(*args, **more, **options)
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("what", DEFAULTS)
def test_defaults(what):
    ours, theirs = called(F, Tensor, what), called(torch, torch.tensor, what)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.shape == tuple(b.shape) and str(a.dtype) == str(b.dtype).removeprefix("torch.")
        if what == "dropout":
            a, b = a.data != 0, b != 0
            assert np.unique(ours[0].data).tolist() == np.unique(theirs[0]).tolist() and abs(a.mean() - 0.5) < 0.05
        else:
            close(a.data, b.numpy(), 1e-5)


@pytest.mark.parametrize("what, name", [(what, name) for what in DEFAULTS for name in DEFAULTS[what][1]])
def test_defaults_matter(what, name):
    """Another one in its place would have been noticed."""
    (default, *_), others = called(F, Tensor, what), None
    try:
        others = called(F, Tensor, what, **{name: DEFAULTS[what][1][name]})
    except ValueError:  # not supported, or not together
        return
    assert len(others) != len(called(F, Tensor, what)) or others[0].dtype != default.dtype or not (
        np.array_equal(others[0].data, default.data))


def test_every_default_is_left_out_once():
    known = {(what.split()[0], name) for what, (_, others, _) in DEFAULTS.items() for name in others}
    assert known == {
        (name, p.name) for name in F.__all__ for p in inspect.signature(getattr(F, name)).parameters.values()
        if p.default is not p.empty and p.name != "generator"}
