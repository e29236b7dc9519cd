"""Bad input raises an error that says what was expected; nothing silently gives another result. Also the edges of
good input: ties, integers, empty arrays, infinite and NaN numbers behind a mask."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_devices import host, not_waiting

from npdiffusion import Tensor
from npdiffusion import functional as F


def zeros(*shape, dtype=np.float32):
    return Tensor(np.zeros(shape, dtype))


x, image, integers = zeros(2, 3), zeros(2, 4, 5, 5), Tensor([0, 1])
f64 = zeros(2, 3, dtype=np.float64)
q = zeros(2, 5, 4)

BAD = {  # what is done: (error, part of its message, call)
    "shapes that do not broadcast": (ValueError, "broadcast", lambda: x + zeros(2, 4)),
    "not a tensor": (TypeError, "Tensor", lambda: F.relu(np.zeros(3))),
    "not a tensor either": (TypeError, "Tensor", lambda: F.sum(np.zeros(3))),
    "list of arrays": (TypeError, "Tensor", lambda: F.cat([np.zeros(3), np.zeros(3)])),
    "exp of integers": (TypeError, "floating-point", lambda: F.exp(integers)),
    "mean of integers": (TypeError, "floating-point", lambda: F.mean(integers)),
    "clamp without limits": (ValueError, "min, max", lambda: x.clamp()),
    "clamp by what does not broadcast": (ValueError, "broadcast", lambda: x.clamp(zeros(2))),
    "where by numbers": (TypeError, "bool", lambda: F.where(x, x, x)),
    "a third gelu": (ValueError, "'none' or 'tanh'", lambda: F.gelu(x, approximate="erf")),
    "softmax along no axis": (TypeError, "integer", lambda: F.softmax(x, None)),
    "softmax along two axes": (TypeError, "integer", lambda: F.softmax(x, (0, 1))),
    "axis out of range": (ValueError, "dim: axis 2 is out of bounds", lambda: F.softmax(x, 2)),
    "the same axis twice": (ValueError, "repeated axis in `dim`", lambda: F.sum(x, (0, -2))),
    "dropout probability": (ValueError, "0 <= p <= 1", lambda: F.dropout(x, 1.5)),
    "max along two axes": (TypeError, "integer", lambda: F.max(x, (0, 1))),
    "max of nothing": (ValueError, "zero-size", lambda: F.max(zeros(0))),
    "variance of one": (ValueError, "undefined", lambda: F.var(zeros(1))),
    "reshape to another size": (ValueError, "reshape", lambda: x.reshape(4)),
    "flatten backwards": (ValueError, "start_dim", lambda: F.flatten(x, 1, 0)),
    "permute not all axes": (ValueError, "all 2 axes", lambda: x.permute(0)),
    "expand a real axis": (ValueError, "broadcast", lambda: x.expand(2, 4)),
    "expand to fewer axes": (ValueError, "fewer axes", lambda: x.expand(3)),
    "index out of range": (IndexError, "out of bounds", lambda: x[5]),
    "cat of nothing": (ValueError, "at least one", lambda: F.cat([])),
    "cat of different shapes": (ValueError, "equal shapes", lambda: F.cat([x, zeros(2, 4)])),
    "stack of different shapes": (ValueError, "equal shapes", lambda: F.stack([x, zeros(2, 4)])),
    "pad by a number": (ValueError, "pairs", lambda: F.pad(x, 1)),
    "pad by three numbers": (ValueError, "pairs", lambda: F.pad(x, (1, 1, 1))),
    "pad by reflection": (ValueError, "constant", lambda: F.pad(x, (1, 1), mode="reflect")),
    "crop too much": (ValueError, "crops more", lambda: F.pad(x, (5, -4))),
    "conv of no channels": (ValueError, "no elements", lambda: F.conv2d(zeros(2, 0, 5, 5), zeros(2, 0, 3, 3))),
    "matmul sizes": (ValueError, "matmul expects", lambda: x @ x),
    "matmul with a number": (ValueError, "matmul expects", lambda: x @ zeros()),
    "matmul dtypes": (TypeError, "float64", lambda: x @ zeros(3, 2, dtype=np.float64)),
    "linear sizes": (ValueError, "linear expects", lambda: F.linear(x, zeros(4, 2))),
    "linear bias": (ValueError, "bias", lambda: F.linear(x, zeros(4, 3), zeros(3))),
    "linear dtypes": (TypeError, "float64", lambda: F.linear(x, zeros(4, 3, dtype=np.float64))),
    "embedding by floats": (TypeError, "integers", lambda: F.embedding(x, x)),
    "embedding out of range": (ValueError, "0 to 1", lambda: F.embedding(Tensor([2]), x)),
    "embedding below range": (ValueError, "0 to 1", lambda: F.embedding(Tensor([-1]), x)),
    "embedding by a vector": (ValueError, "(num, dim)", lambda: F.embedding(Tensor([0]), zeros(3))),
    "attention sizes": (ValueError, "attention expects",
                        lambda: F.scaled_dot_product_attention(q, zeros(2, 5, 3), q)),
    "attention on vectors": (ValueError, "attention expects", lambda: F.scaled_dot_product_attention(*[zeros(3)] * 3)),
    "attention with two masks": (ValueError, "not both", lambda: F.scaled_dot_product_attention(
        q, q, q, attn_mask=zeros(5, 5), is_causal=True)),
    "attention with a mask of integers": (TypeError, "bool or float32", lambda: F.scaled_dot_product_attention(
        q, q, q, attn_mask=zeros(5, 5, dtype=np.int64))),
    "conv on two axes": (ValueError, "(N, C, H, W)", lambda: F.conv2d(x, zeros(1, 1, 3, 3))),
    "conv channels": (ValueError, "expects 3 input channels", lambda: F.conv2d(image, zeros(8, 3, 3, 3))),
    "conv weight axes": (ValueError, "weight of shape", lambda: F.conv2d(image, zeros(8, 4, 3))),
    "conv bias": (ValueError, "bias", lambda: F.conv2d(image, zeros(8, 4, 3, 3), zeros(4))),
    "conv with another's argument": (TypeError, "onto", lambda: F.conv2d(image, zeros(8, 4, 3, 3), onto=image)),
    "conv groups": (ValueError, "groups", lambda: F.conv2d(image, zeros(8, 2, 3, 3), groups=3)),
    "conv stride 0": (ValueError, "stride", lambda: F.conv2d(image, zeros(8, 4, 3, 3), stride=0)),
    "conv stride of three": (ValueError, "stride", lambda: F.conv2d(image, zeros(8, 4, 3, 3), stride=(1, 1, 1))),
    "conv fractional padding": (ValueError, "padding", lambda: F.conv2d(image, zeros(8, 4, 3, 3), padding=0.5)),
    "conv padding by name": (ValueError, "'same' or 'valid'", lambda: F.conv2d(
        image, zeros(8, 4, 3, 3), padding="full")),
    "same padding with stride": (ValueError, "needs stride 1", lambda: F.conv2d(
        image, zeros(8, 4, 3, 3), stride=2, padding="same")),
    "conv kernel too large": (ValueError, "smaller than the kernel", lambda: F.conv2d(image, zeros(8, 4, 7, 7))),
    "conv dtypes": (TypeError, "float64", lambda: F.conv2d(image, zeros(8, 4, 3, 3, dtype=np.float64))),
    "conv of integers": (TypeError, "floating-point", lambda: F.conv2d(
        zeros(1, 1, 3, 3, dtype=int), zeros(1, 1, 3, 3, dtype=int))),
    "transposed conv channels": (ValueError, "expects 3", lambda: F.conv_transpose2d(image, zeros(3, 8, 2, 2))),
    "output_padding": (ValueError, "output_padding", lambda: F.conv_transpose2d(
        image, zeros(4, 8, 2, 2), stride=2, output_padding=2)),
    "nothing left": (ValueError, "no output", lambda: F.conv_transpose2d(
        zeros(1, 4, 1, 1), zeros(4, 8, 2, 2), padding=1)),
    "pool padding": (ValueError, "half the kernel", lambda: F.max_pool2d(image, 2, padding=2)),
    "pool too large": (ValueError, "smaller than", lambda: F.avg_pool2d(image, 6)),
    "pool divisor 0": (ValueError, "divisor", lambda: F.avg_pool2d(image, 2, divisor_override=0)),
    "bilinear": (ValueError, "nearest", lambda: F.interpolate(image, 4, mode="bilinear")),
    "neither size nor scale": (ValueError, "either", lambda: F.interpolate(image)),
    "size and scale": (ValueError, "either", lambda: F.interpolate(image, 4, 2)),
    "scale 0": (ValueError, "positive", lambda: F.interpolate(image, scale_factor=0)),
    "three scales": (ValueError, "pair", lambda: F.interpolate(image, scale_factor=(2, 2, 2))),
    "nothing left of it": (ValueError, "leaves nothing", lambda: F.interpolate(image, scale_factor=0.1)),
    "group_norm groups": (ValueError, "divides 4", lambda: F.group_norm(image, 3)),
    "group_norm weight": (ValueError, "weight of shape", lambda: F.group_norm(image, 2, zeros(2))),
    "group_norm weight for each sample": (ValueError, "weight of shape", lambda: F.group_norm(image, 2, zeros(2, 4))),
    "scale without shift": (ValueError, "scale_shift of shape (", lambda: F.group_norm_silu(
        image, 2, scale_shift=zeros(len(image), 4))),
    "group_norm of a vector": (ValueError, "(N, C, ...)", lambda: F.group_norm(zeros(4), 2)),
    "group_norm of no pixels": (ValueError, "more than one value", lambda: F.group_norm(zeros(2, 4, 0, 5), 2)),
    "group_norm of single values": (ValueError, r"more than one value in a group, got an input of shape (1, 8, 1, 1)",
                                    lambda: F.group_norm(zeros(1, 8, 1, 1), 8)),
    "group_norm_silu of single values": (ValueError, "more than one", lambda: F.group_norm_silu(zeros(1, 2), 2)),
    "group_norm dtypes": (TypeError, "float64", lambda: F.group_norm(image, 2, zeros(4, dtype=np.float64))),
    "layer_norm shape": (ValueError, "last axes", lambda: F.layer_norm(x, 2)),
    "layer_norm weight": (ValueError, "weight of shape", lambda: F.layer_norm(x, 3, zeros(2))),
    "loss shapes": (ValueError, "one shape", lambda: F.mse_loss(x, zeros(2, 1))),
    "loss dtypes": (TypeError, "float64", lambda: F.l1_loss(x, f64)),
    "loss reduction": (ValueError, "reduction", lambda: F.mse_loss(x, x, reduction="average")),
    "class out of range": (ValueError, "0 to 2", lambda: F.cross_entropy(x, Tensor([0, 3]))),
    "probabilities of another shape": (ValueError, "one shape", lambda: F.cross_entropy(x, zeros(2, 4))),
    "probabilities of another dtype": (TypeError, "float64", lambda: F.cross_entropy(x, f64)),
    "classes of a number": (ValueError, "(N, C, ...)", lambda: F.cross_entropy(zeros(), Tensor(0))),
    "not in place": (ValueError, "inplace", lambda: F.relu(x, inplace=True)),
    "bilinear's corners": (ValueError, "align_corners", lambda: F.interpolate(image, 4, align_corners=False)),
    "interpolate in one dimension": (ValueError, "(N, C, H, W)", lambda: F.interpolate(x.unsqueeze(0), 4)),
    "cat of numbers": (ValueError, "stack", lambda: F.cat([zeros(), zeros()])),
    "class shape": (ValueError, "shape (2,)", lambda: F.cross_entropy(x, Tensor([0, 1, 2]))),
    "class weights": (ValueError, "weight of shape (3,)", lambda: F.cross_entropy(x, Tensor([0, 1]), zeros(2))),
    "what PyTorch calls size_average": (
        TypeError, "positional", lambda: F.cross_entropy(x, Tensor([0, 1]), zeros(3), False)),
    "smoothing": (ValueError, "label_smoothing", lambda: F.cross_entropy(x, Tensor([0, 1]), label_smoothing=2)),
    "float16": (TypeError, "float32", lambda: zeros(3, dtype=np.float16)),
    "integer gradients": (TypeError, "floating-point", lambda: Tensor([1, 2], requires_grad=True)),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    error, message, call = BAD[what]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# One wrong argument at a time, for every op: what is said of it


def ones(*shape):
    return zeros(*shape) + 1


def each(*shapes, **options):
    return [ones(*shape) for shape in shapes], options


ROWS, LABELS = (2, 3), Tensor([0, 1])
GOOD = {  # op: arguments that it takes
    **{name: each(ROWS) for name in """abs dropout exp flatten gelu log max mean min neg relu sigmoid silu softplus sqrt
       squeeze sum tanh var""".split()},
    **{name: each(ROWS, ROWS) for name in """add binary_cross_entropy_with_logits div l1_loss maximum minimum mse_loss
       mul pow sub""".split()},
    **{name: each((1, 2, 4, 4), kernel_size=2) for name in ("avg_pool2d", "max_pool2d")},
    **{name: each((1, 4, 5, 5), (4, 4, 3, 3), (4,)) for name in ("conv2d", "conv_transpose2d")},
    **{name: each(ROWS, dim=0) for name in ("log_softmax", "softmax", "unsqueeze")},
    **{name: each(ROWS, ROWS) for name in ("cat", "stack")},
    "clamp": each(ROWS, ROWS, ROWS), "cross_entropy": ([ones(*ROWS), LABELS, ones(3)], {}),
    "embedding": ([LABELS, ones(*ROWS)], {}), "expand": ([ones(*ROWS), 2, 3], {}), "getitem": ([ones(*ROWS), 0], {}),
    "group_norm": ([ones(2, 4, 3), 2, ones(4), ones(4)], {}),
    "group_norm_silu": ([ones(2, 4, 3), 2, ones(4), ones(4), ones(2, 8)], {}),
    "interpolate": each((1, 2, 4, 4), size=2), "layer_norm": ([ones(*ROWS), 3, ones(3), ones(3)], {}),
    "linear": each(ROWS, (4, 3), (4,)), "matmul": each(ROWS, (3, 2)), "pad": ([ones(*ROWS), (1, 1)], {}),
    "permute": ([ones(*ROWS), 1, 0], {}), "reshape": ([ones(*ROWS), 6], {}),
    "scaled_dot_product_attention": each((1, 5, 4), (1, 6, 4), (1, 6, 2), (5, 6)),
    "transpose": ([ones(*ROWS), 0, 1], {}), "where": ([ones(*ROWS) == 0, ones(*ROWS), ones(*ROWS)], {}),
}
LONGER = {  # the axis of an argument that must not be one longer, if it is not the last
    ("conv2d", 0): 1, ("conv2d", 1): 1, ("conv_transpose2d", 0): 1, ("conv_transpose2d", 1): 0, ("group_norm", 0): 1,
    ("group_norm_silu", 0): 1, ("matmul", 1): 0, ("scaled_dot_product_attention", 2): 1}
TAKE_INTEGERS = set("""abs add cat clamp div expand flatten getitem max maximum min minimum mul neg permute pow reshape
                    squeeze stack sub sum transpose unsqueeze where""".split())
TAKE_TWO_DTYPES = set("add cat clamp div maximum minimum mul pow stack sub where".split())
TAKE_ARRAYS = set("add div matmul maximum minimum mul pow sub where".split())


def called(name, change=None, i=0):
    """The op of its arguments, the one at i changed."""
    args, options = list(GOOD[name][0]), GOOD[name][1]
    if change:
        args[i] = change(args[i])
    return getattr(F, name)(*([args] if name in ("cat", "stack") else args), **options)


def places(least=1):
    """(op, place) of the floating Tensors among the arguments of those that take so many."""
    for name in F.__all__:
        at = [i for i, x in enumerate(GOOD[name][0]) if isinstance(x, Tensor) and x.dtype.kind == "f"]
        yield from ((name, i) for i in at if len(at) >= least)


def test_every_op_is_among_them():
    assert sorted(GOOD) == F.__all__
    for name in F.__all__:
        called(name)


@pytest.mark.parametrize("name, i", places())
def test_integers_where_floats_belong(name, i):
    if name in TAKE_INTEGERS:
        called(name, lambda x: x.to("int64"), i)
    else:
        with pytest.raises((TypeError, ValueError), match="int64"):
            called(name, lambda x: x.to("int64"), i)


@pytest.mark.parametrize("name, i", places(least=2))
def test_another_floating_dtype(name, i):
    if name in TAKE_TWO_DTYPES:
        assert called(name, Tensor.double, i).dtype == np.float64
    else:
        with pytest.raises(TypeError, match="float64"):
            called(name, Tensor.double, i)


@pytest.mark.parametrize("name, i", places(least=2))
def test_a_shape_that_does_not_fit(name, i):
    def longer(x):
        axis = LONGER.get((name, i), -1)
        return F.cat([x, F.max(x, axis, keepdim=True).values], axis)

    with pytest.raises(ValueError):
        called(name, longer, i)


@pytest.mark.parametrize("name, i", places(least=2))
@pytest.mark.parametrize("cupy", ["stand-in"], indirect=True)
def test_one_argument_on_another_device(cupy, name, i):
    with pytest.raises(TypeError, match="different devices: .*cuda:0.*bring them together"):
        called(name, Tensor.cuda, i)


@pytest.mark.parametrize("name", sorted(set(F.__all__) - TAKE_ARRAYS))
def test_an_array_is_not_a_tensor(name):
    with pytest.raises(TypeError, match="Tensor"):
        called(name, lambda x: x.data, 1 if name == "embedding" else 0)


# Dtypes


def test_numbers_and_integers_take_the_floating_dtype():
    for other in (2, 2.5, True, np.float64(2.5), np.int64(2), integers.reshape(2, 1), Tensor([[True], [False]])):
        for op in (F.add, F.sub, F.mul, F.maximum, F.minimum, F.pow):
            assert op(x, other).dtype == op(other, x).dtype == np.float32
    assert F.div(x, integers.reshape(2, 1) + 1).dtype == F.div(1, x + 1).dtype == np.float32
    assert F.where(Tensor([True]), x, 0.5).dtype == F.where(Tensor([True]), integers[:1], x).dtype == np.float32
    assert x.clamp(np.float64(0), np.float64(1)).dtype == np.float32
    assert (x + f64).dtype == np.float64


def test_integers():
    assert (integers + 1).dtype == (integers * integers).dtype == integers.sum().dtype == np.int64
    assert (integers / 2).dtype == (integers * 0.5).dtype == np.float32
    assert (Tensor([True, True]) + 2).data.tolist() == [3, 3]
    assert Tensor([1, 2, 5]).clamp(2, 4).data.tolist() == [2, 2, 4]
    assert F.max(Tensor([3, 7, 5])).item() == 7


def test_scalars_keep_float64():
    a = Tensor(np.array(0.1), requires_grad=True)
    b = (a * 3 + 1).exp().log()
    assert b.dtype == np.float64 and b.item() == pytest.approx(1.3, rel=1e-15)
    b.backward()
    assert a.grad.dtype == np.float64


# Ties: which of equal elements gets the gradient


def gradient(function, values):
    t = Tensor(np.array(values, np.float32), requires_grad=True)
    function(t).sum().backward()
    return t.grad.tolist()


def test_ties():
    assert gradient(lambda t: t.max(0).values, [1, 3, 3, 3]) == [0, 1, 0, 0]  # the first
    assert gradient(lambda t: t.min(0).values, [2, 1, 1, 3]) == [0, 1, 0, 0]
    assert gradient(lambda t: t.max(), [1, 3, 3, 1]) == [0, 0.5, 0.5, 0]  # all alike
    assert gradient(lambda t: t.min(), [1, 3, 3, 1]) == [0.5, 0, 0, 0.5]
    assert gradient(lambda t: F.maximum(t, Tensor([1.0, 2.0, 0.0])), [1, 1, 1]) == [0.5, 0, 1]
    assert gradient(lambda t: F.minimum(t, Tensor([1.0, 2.0, 0.0])), [1, 1, 1]) == [0.5, 1, 0]
    assert gradient(lambda t: F.maximum(t, Tensor([np.inf, np.inf])), [np.inf, 1]) == [0.5, 0]
    assert gradient(F.relu, [-1, 0, 1]) == [0, 0, 1]
    assert gradient(F.abs, [-1, 0, 1]) == [-1, 0, 1]
    assert gradient(lambda t: t.clamp(0, 1), [-1, 0, 1, 2]) == [0, 1, 1, 0]


@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pool_gives_ties_to_the_first(channels_last):
    values = np.array([[1, 1, 0, 2], [1, 1, 2, 2]], np.float32)[None, None]
    values = np.repeat(values, 3, 1)
    if channels_last:
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    t = Tensor(values, requires_grad=True)
    F.max_pool2d(t, 2).sum().backward()
    assert t.grad[0, 1].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    t = Tensor(np.zeros((1, 1, 3, 3), np.float32), requires_grad=True)  # the padding never wins
    F.max_pool2d(t, 3, 1, padding=1).sum().backward()
    assert t.grad[0, 0].tolist() == [[4, 2, 0], [2, 1, 0], [0, 0, 0]]


# Numbers at the edge


def test_no_overflow():
    large = Tensor(np.array([-1e4, -100, 100, 1e4], np.float32))
    with np.errstate(over="raise", invalid="raise"):
        assert F.sigmoid(large).data.tolist() == [0, pytest.approx(0, abs=1e-7), 1, 1]
        assert F.softplus(large).data.tolist() == [0, pytest.approx(0, abs=1e-7), 100, 1e4]
        assert F.silu(large).data.tolist() == pytest.approx([0, 0, 100, 1e4], abs=1e-5)
        assert F.softmax(large, 0).data.tolist() == [0, 0, 0, 1]
        assert np.isfinite(F.log_softmax(large, 0).data).all()
        y = Tensor(np.array([0, 1, 0, 1], np.float32))
        assert F.binary_cross_entropy_with_logits(large, y, reduction="none").data.tolist() == pytest.approx(
            [0, 100, 100, 0], abs=1e-5)


def test_group_norm_far_from_zero():
    """Mean 1000, standard deviation 1 in float32: Σx² − (Σx)²/n would lose all digits."""
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 8))
    y = F.group_norm(Tensor((noise + 1000).astype(np.float32)), 2).data
    should = F.group_norm(Tensor(noise), 2).data
    np.testing.assert_allclose(y, should, atol=2e-3)


def test_powers_at_zero():
    assert gradient(lambda t: t**2, [0, 1]) == [0, 2]
    assert gradient(lambda t: t**0, [0, 1]) == [0, 0]
    assert gradient(lambda t: t**1, [0, 1]) == [1, 1]
    assert gradient(lambda t: 0 ** t, [1, 2]) == [0, 0]


def test_empty():
    assert zeros(0, 3).sum(0).data.tolist() == [0, 0, 0]
    assert zeros(0, 3).sum().item() == 0
    assert F.linear(zeros(0, 3), zeros(4, 3)).shape == (0, 4)
    assert F.flatten(zeros(0, 2, 3), 1).shape == (0, 6)
    assert F.cat([zeros(0, 3), x]).shape == (2, 3)
    assert F.pad(x, (-1, -2)).shape == (2, 0)
    assert F.embedding(Tensor(np.zeros(0, int)), x).shape == (0, 3)
    assert x[:0].shape == (0, 3)
    assert (zeros(0, 3) @ zeros(3, 2)).shape == (0, 2)


def test_nearest_is_exact():
    """⌊p·in/out⌋ in integers: 49·(2/98) in floating point falls just short of 1."""
    y = F.interpolate(Tensor(np.array([[[[0.0, 1.0]]]], np.float32)), (1, 98)).data[0, 0, 0]
    assert y.tolist() == [0] * 49 + [1] * 49


@pytest.mark.parametrize("size", [{"size": (6, 9)}, {"size": (3, 2)}, {"scale_factor": 1.3}, {"scale_factor": (3, 1)}])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_gradient_of_interpolate_that_is_not_finite_reaches_its_source_alone(size, value):
    x = Tensor(np.arange(12.0).reshape(1, 1, 3, 4), requires_grad=True)
    y = F.interpolate(x, **size)
    g, expected = np.ones(y.shape), np.zeros(12)
    g[0, 0, 1, 2 % y.shape[3]] = value
    np.add.at(expected, y.data.astype(int), g)  # the values of x are the places they come from
    y.backward(g)
    np.testing.assert_array_equal(x.grad.ravel(), expected)


def test_joint_index_arrays():
    """Index arrays broadcast together, as in NumPy; an element taken twice collects twice."""
    t = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
    y = t[np.array([[0], [1]]), Tensor([2, 2, 0])]
    assert y.data.tolist() == [[2, 2, 0], [5, 5, 3]]
    y.sum().backward()
    assert t.grad.tolist() == [[1, 0, 2], [1, 0, 2]]
    t.grad = None
    t[((0, 0, 1),)].sum().backward()  # a tuple inside the index is an index array too
    assert t.grad.tolist() == [[2, 2, 2], [1, 1, 1]]


def test_identical_operands():
    assert gradient(lambda t: t + t, [1, 2]) == [2, 2]
    assert gradient(lambda t: t * t, [1, 2]) == [2, 4]
    assert gradient(lambda t: F.cat([t, t]), [1, 2]) == [2, 2]
    assert gradient(lambda t: F.where(t > 1, t, t * 3), [1, 2]) == [3, 1]


# ∞ and NaN behind a mask


def drawn(rng, t):
    """Small integers like t: with ties and zeros."""
    return Tensor(rng.integers(-2, 3, t.shape).astype(np.float32)).to(t.device)


MASKS = {  # each passes on some of the elements of an image (N, C, H, W), the rest has no part in its result
    "abs": lambda t, rng: F.abs(t),
    "cat": lambda t, rng: F.cat([t.detach(), t], 1),
    "clamp": lambda t, rng: t.clamp(-1, 1),
    "clamp by Tensors": lambda t, rng: t.clamp(drawn(rng, t), drawn(rng, t)),
    "crop": lambda t, rng: F.pad(t, (-1, 1, 0, 1)),
    "dropout": lambda t, rng: F.dropout(t, 0.5, generator=rng),
    "getitem": lambda t, rng: t[:, :, ::2, Tensor([0, -1, -1]).to(t.device)],
    "interpolate": lambda t, rng: F.interpolate(t, (3, 5)),
    "l1_loss": lambda t, rng: F.l1_loss(t, drawn(rng, t), reduction="none"),
    "max": lambda t, rng: t.max(2, keepdim=True).values,
    "max of all": lambda t, rng: t.max().expand(1, 1, 2, 2),
    "max_pool2d": lambda t, rng: F.max_pool2d(t, 2, 1, padding=1),
    "maximum": lambda t, rng: F.maximum(t, drawn(rng, t)),
    "min": lambda t, rng: t.min(3, keepdim=True).values,
    "minimum": lambda t, rng: F.minimum(drawn(rng, t), t),
    "pow": lambda t, rng: t ** F.relu(drawn(rng, t)),
    "relu": lambda t, rng: F.relu(t),
    "where": lambda t, rng: F.where(drawn(rng, t) > 0, 0, t),
}


def gradient_behind(masks, upstream, device="cpu"):
    """The gradient of an image that goes through the masks, and the shape of what comes out."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.integers(-2, 3, (1, 2, 4, 4)).astype(np.float32), device=device, requires_grad=True)
    y = x
    for mask in masks:
        y = MASKS[mask](y, np.random.default_rng(1))
    if upstream is not None:
        y.backward(Tensor(upstream, device=device))
    return x.grad, y.shape


@np.errstate(invalid="ignore")
def check_masks(masks, bad, where, context=gradient_behind):
    """A bad number in one place of the gradient reaches the elements that this place depends on, and no others."""
    shape = gradient_behind(masks, None)[1]
    g, place = np.random.default_rng(2).standard_normal(shape).astype(np.float32), np.zeros(shape, np.float32)
    place.flat[where % place.size] = 1
    seen = gradient_behind(masks, place)[0] != 0
    with_bad, without = (context(masks, np.where(place, v, g).astype(np.float32))[0] for v in (bad, 0))
    np.testing.assert_allclose(host(with_bad)[~seen], host(without)[~seen], rtol=1e-5)
    assert not np.isfinite(host(with_bad)[seen]).any()


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(MASKS)), min_size=1, max_size=3), st.sampled_from([np.inf, -np.inf, np.nan]),
       st.integers(0, 999))
def test_a_bad_gradient_behind_masks(masks, bad, where):
    check_masks(masks, bad, where)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cupy", ["stand-in"], indirect=True)
def test_a_bad_gradient_behind_masks_on_the_gpu(cupy, mask):
    def without_waiting(masks, upstream):
        with not_waiting(cupy):
            return gradient_behind(masks, upstream, "cuda")

    for where in range(8):
        check_masks([mask], np.nan, where, without_waiting)


inf, nan = np.inf, np.nan
LOSSES = {  # of logits that are not finite: (op, logits, target, options, loss, gradient)
    "no chance for another class": ("cross_entropy", [[1, 2, -inf]], [0], {}, 1.3132617, [[-0.7310586, 0.7310586, 0]]),
    "a row that does not count": (
        "cross_entropy", [[0, 0], [nan, inf]], [1, -100], {}, 0.6931472, [[0.5, -0.5], [0, 0]]),
    "a row that does not count, smoothed": (
        "cross_entropy", [[0, 0], [nan, inf]], [1, 7], {"label_smoothing": 0.5, "ignore_index": 7}, 0.6931472,
        [[0.25, -0.25], [0, 0]]),
    "probability 0": ("cross_entropy", [[0, 0, -inf]], [[0.5, 0.5, 0.0]], {}, 0.6931472, [[0, 0, 0]]),
    "a class of weight 0, smoothed": (
        "cross_entropy", [[0, 0, -inf]], [0], {"label_smoothing": 0.75, "weight": [1.0, 1.0, 0.0]}, 0.5198604,
        [[-0.125, 0.125, 0]]),
    "sure and right": ("binary_cross_entropy_with_logits", [inf, -inf], [1.0, 0.0], {}, 0, [0, 0]),
    "sure and wrong": ("binary_cross_entropy_with_logits", [-inf], [1.0], {}, inf, [-1]),
    "a positive of weight 0": (
        "binary_cross_entropy_with_logits", [-inf, 0], [1.0, 0.0], {"pos_weight": [0.0, 1.0]}, 0.3465736, [0, 0.25]),
    "a pixel of weight 0": (
        "binary_cross_entropy_with_logits", [nan, 0], [1.0, 0.0], {"weight": [0.0, 1.0]}, 0.3465736, [0, 0.25]),
}


@np.errstate(invalid="ignore")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("what", LOSSES)
@pytest.mark.parametrize("cupy", ["stand-in"], indirect=True)
def test_losses_of_logits_that_are_not_finite(cupy, what, device):
    op, logits, target, options, loss, gradient = LOSSES[what]
    x = Tensor(np.array(logits, np.float32), requires_grad=True, device=device)
    options = {name: Tensor(v, device=device) if isinstance(v, list) else v for name, v in options.items()}
    with not_waiting(cupy):
        y = getattr(F, op)(x, Tensor(target, device=device), **options)
        y.backward()
    assert y.dtype == np.float32 and y.item() == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(host(x.grad), gradient, rtol=1e-6, atol=1e-7)


def test_infinities_that_do_not_show():
    x = Tensor(np.full(100, inf, np.float32))
    assert set(F.dropout(x, 0.5).data.tolist()) == {0.0, inf} and not F.dropout(x, 1.0).data.any()
    assert gradient(lambda t: F.sqrt(F.relu(t)), [4, -1]) == [0.25, 0]
    assert gradient(lambda t: F.sqrt(F.abs(t)), [4, 0]) == [0.25, 0]
    assert gradient(lambda t: F.sqrt(t ** Tensor([1.0, 0.0]) - Tensor([0.0, 1.0])), [4, 3]) == [0.25, 0]
    assert gradient(lambda t: Tensor([2.0, 0.0, 0.0]) ** t, [1, 1, -1]) == [pytest.approx(2 * np.log(2)), 0, -inf]
    assert gradient(lambda t: t.max(), [1, nan, 2]) == [0, 1, 0]
    for approximate in ("none", "tanh"):
        large = Tensor(np.array([-inf, -1e30, 1e30, inf], np.float32))
        assert F.gelu(large, approximate).data.tolist() == [0, 0, np.float32(1e30), inf]
        assert gradient(lambda t: F.gelu(t, approximate), large.data) == [0, 0, 1, 1]
