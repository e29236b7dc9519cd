"""The plain kernels: forward against loops, backward against numerical derivatives, optimisers against plain numbers.

hypothesis draws the structure, a seeded generator the values. Everything here is in float64, but each kernel also runs
in float32 to see that its results stay there.
"""

import importlib
import inspect
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORACLES, filled, pixel

from npdiffusion.kernels import plain

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**16).map(np.random.default_rng)
booleans = st.booleans()


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def shapes(least=0, most=3):
    return st.lists(st.integers(1, 4), min_size=least, max_size=most).map(tuple)


def close(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def summed_to(a, shape):
    """a summed over the axes along which ``shape`` broadcasts to a's shape."""
    a = a.sum(tuple(range(a.ndim - len(shape))))
    return a.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def check_gradients(forward, backward, inputs, rng):
    """For y = forward(*inputs), each gradient dx of backward(g, *inputs): <g, J v> = <dx, v> with random g and v.

    J v is the central difference. Also: inputs are not changed, and float32 stays float32.
    """
    before = [x.copy() for x in inputs]
    y = forward(*inputs)
    g = np.asarray(rng.standard_normal(y.shape))
    grads = backward(g, *inputs)
    assert len(grads) == len(inputs)
    for i, (x, dx) in enumerate(zip(inputs, grads)):
        v, step = rng.standard_normal(x.shape), 1e-5
        ahead, behind = (forward(*inputs[:i], x + s * v, *inputs[i + 1:]) for s in (step, -step))
        jv = (ahead - behind) / (2 * step)
        error = np.vdot(g, jv) - np.vdot(summed_to(dx, x.shape), v)
        assert abs(error) <= 1e-6 * np.linalg.norm(g) * np.linalg.norm(jv) + 1e-9
    assert all(np.array_equal(x, b) for x, b in zip(inputs, before))
    single = [x.astype(np.float32) for x in inputs]
    results = [forward(*single), *backward(g.astype(np.float32), *single)]
    for a, b in zip(results, [y, *grads]):
        assert a.dtype == np.float32 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * max(1, np.abs(b).max()))


# Convolution and pooling. The number of windows is drawn alone: they may miss rows of x, or need padding behind.


def places(window, kernel, stride, padding, dilation):
    """The (i, j, row, column) of a window's taps: the row and column in the image without padding."""
    for tap in itertools.product(*map(range, kernel)):
        yield *tap, *(w * s + k * d - p for w, s, k, d, p in zip(window, stride, tap, dilation, padding))


def conv_loops(x, weight, bias, size, stride, padding, dilation, groups):
    (o, c, *kernel), n = weight.shape, len(x)

    def element(index):
        n, k, *window = index
        first = k // (o // groups) * c
        y = bias[k].item()
        for i, j, row, column in places(window, kernel, stride, padding, dilation):
            y += sum(weight[k, m, i, j].item() * pixel(x, n, first + m, row, column) for m in range(c))
        return y

    return filled((n, o, *size), element)


def conv_transpose_loops(x, weight, bias, size, stride, padding, dilation, groups):
    n, channels, *windows = x.shape
    _, c, *kernel = weight.shape
    y = filled((n, groups * c, *size), lambda index: bias[index[1]])
    for n, k, *window in np.ndindex(*x.shape):
        first = k // (channels // groups) * c
        for (i, j, row, column), m in itertools.product(
                places(window, kernel, stride, padding, dilation), range(c)):
            if 0 <= row < size[0] and 0 <= column < size[1]:
                y[n, first + m, row, column] += x[n, k, *window].item() * weight[k, m, i, j].item()
    return y


structure = dict(batch=st.integers(1, 2), groups=st.integers(1, 3), channels=pairs(1, 2), image=pairs(1, 5),
                 windows=pairs(1, 4), kernel=pairs(1, 3), stride=pairs(1, 3), padding=pairs(0, 2),
                 dilation=pairs(1, 2), rng=seeds)


@quick
@given(**structure)
def test_conv2d(batch, groups, channels, image, windows, kernel, stride, padding, dilation, rng):
    c, o = channels
    geometry = stride, padding, dilation, groups
    x, weight = rng.standard_normal((batch, groups * c, *image)), rng.standard_normal((groups * o, c, *kernel))
    bias = rng.standard_normal(groups * o)
    close(plain.conv2d(x, weight, bias, windows, *geometry), conv_loops(x, weight, bias, windows, *geometry))
    close(plain.conv2d(x, weight, None, windows, *geometry), conv_loops(x, weight, 0 * bias, windows, *geometry))
    check_gradients(lambda *a: plain.conv2d(*a, windows, *geometry),
                    lambda g, x, weight, _: plain.conv2d_backward(g, x, weight, *geometry), [x, weight, bias], rng)


@quick
@given(**structure)
def test_conv_transpose2d(batch, groups, channels, image, windows, kernel, stride, padding, dilation, rng):
    c, o = channels  # image is the size of the result here, windows that of x
    geometry = stride, padding, dilation, groups
    x, weight = rng.standard_normal((batch, groups * o, *windows)), rng.standard_normal((groups * o, c, *kernel))
    bias = rng.standard_normal(groups * c)
    expected = conv_transpose_loops(x, weight, bias, image, *geometry)
    close(plain.conv_transpose2d(x, weight, bias, image, *geometry), expected)
    close(plain.conv_transpose2d(x, weight, None, image, *geometry), expected - bias[:, None, None])
    check_gradients(lambda *a: plain.conv_transpose2d(*a, image, *geometry),
                    lambda g, x, weight, _: plain.conv_transpose2d_backward(g, x, weight, *geometry),
                    [x, weight, bias], rng)


@pytest.mark.parametrize("backward", [plain.conv2d_backward, plain.conv_transpose2d_backward])
def test_conv_gradients_only_where_needed(backward):
    rng = np.random.default_rng(0)
    x, g, weight = rng.standard_normal((2, 4, 5, 5)), rng.standard_normal((2, 4, 5, 5)), np.ones((4, 4, 3, 3))
    for needs in itertools.product([True, False], repeat=3):
        grads = backward(g, x, weight, (1, 1), (1, 1), (1, 1), 1, needs)
        assert [d is not None for d in grads] == list(needs)


def window_values(x, index, outside, kernel, stride, padding, dilation):
    n, c, *window = index
    return [pixel(x, n, c, row, column, outside)
            for _, _, row, column in places(window, kernel, stride, padding, dilation)]


@quick
@given(**{name: structure[name] for name in structure if name not in ("groups", "channels")})
def test_max_pool2d(batch, image, windows, kernel, stride, padding, dilation, rng):
    # Every window must have a pixel of the image, since −∞ has no derivative.
    image = tuple(map(max, image, dilation))
    padding = tuple(min(p, (k - 1) * d) for p, k, d in zip(padding, kernel, dilation))
    windows = tuple(min(o, (n + p - 1) // s + 1) for o, n, p, s in zip(windows, image, padding, stride))
    shape = batch, 2, *image
    x = 0.1 * rng.permutation(math.prod(shape)).reshape(shape)  # no ties, which have no derivative
    geometry = kernel, stride, padding, dilation
    y = plain.max_pool2d(x, windows, *geometry)
    expected = filled((batch, 2, *windows), lambda index: max(window_values(x, index, -math.inf, *geometry)))
    close(y, expected)
    check_gradients(lambda x: plain.max_pool2d(x, windows, *geometry), lambda g, x: [plain.max_pool2d_backward(
        g, x, plain.max_pool2d(x, windows, *geometry), *geometry)], [x], rng)


def test_max_pool2d_with_ties_and_nan():
    x = np.array([[5, 5, 1, np.nan], [5, 2, 1, 1]], np.float32)[None, None]
    geometry = (2, 2), (2, 2), (0, 0), (1, 1)
    y = plain.max_pool2d(x, (1, 2), *geometry)
    np.testing.assert_array_equal(y, np.array([[[[5, np.nan]]]], np.float32))
    dx = plain.max_pool2d_backward(np.full_like(y, 3), x, y, *geometry)
    np.testing.assert_array_equal(dx[0, 0], [[3, 0, 0, 0], [0, 0, 0, 0]])


@quick
@given(**{name: structure[name] for name in structure if name not in ("groups", "channels", "dilation")})
def test_avg_pool2d(batch, image, windows, kernel, stride, padding, rng):
    x, counts = rng.standard_normal((batch, 2, *image)), rng.integers(1, 9, windows).astype(float)
    geometry = kernel, stride, padding
    expected = filled((batch, 2, *windows), lambda index: sum(
        window_values(x, index, 0.0, *geometry, (1, 1))) / counts[index[2:]])
    close(plain.avg_pool2d(x, windows, *geometry, counts), expected)
    check_gradients(lambda x: plain.avg_pool2d(x, windows, *geometry, counts.astype(x.dtype)),
                    lambda g, x: [plain.avg_pool2d_backward(g, image, *geometry, counts.astype(g.dtype))], [x], rng)


# Normalisation and attention


@quick
@given(batch=st.integers(1, 3), groups=st.integers(1, 3), width=st.integers(1, 3), image=pairs(2, 4), silu=booleans,
       conditional=booleans, eps=st.sampled_from([1e-5, 1e-2]), rng=seeds)
def test_group_norm(batch, groups, width, image, silu, conditional, eps, rng):
    c = groups * width
    x, weight, bias = rng.standard_normal((batch, c, *image)) + 2, rng.standard_normal(c), rng.standard_normal(c)
    scale_shift = [rng.standard_normal((batch, 2 * c))] if conditional else []
    inputs = [x, weight, bias, *scale_shift]

    def forward(x, weight, bias, scale_shift=None):
        return plain.group_norm(x, groups, weight, bias, eps, silu, scale_shift)

    def backward(g, x, weight, bias, scale_shift=None):
        _, mean, rstd = forward(x, weight, bias, scale_shift)
        *grads, last = plain.group_norm_backward(g, x, mean, rstd, groups, weight, bias, silu, scale_shift)
        assert (last is None) == (scale_shift is None)
        return grads if last is None else [*grads, last]

    y, mean, rstd = forward(*inputs)
    expected = ORACLES["group_norm"](x, groups, weight, bias, eps)
    if silu:
        expected = ORACLES["group_norm_silu"](x, groups, weight, bias, *(scale_shift or [None]), eps)
    elif conditional:
        scale, shift = scale_shift[0][:, :c, None, None], scale_shift[0][:, c:, None, None]
        expected = expected * (1 + scale) + shift
    close(y, expected)
    grouped = x.reshape(batch, groups, -1)
    close(mean, grouped.mean(2).repeat(width, 1))
    close(rstd, (grouped.var(2) + eps).repeat(width, 1) ** -0.5)
    check_gradients(lambda *a: forward(*a)[0], backward, inputs, rng)


@quick
@given(shape=shapes(1, 4), data=st.data(), rng=seeds)
def test_softmax(shape, data, rng):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = rng.standard_normal(shape)
    close(plain.softmax(x, axis), ORACLES["softmax"](x, axis))
    close(plain.softmax(x + 1000, axis), plain.softmax(x, axis))
    check_gradients(lambda x: plain.softmax(x, axis),
                    lambda g, x: [plain.softmax_backward(g, plain.softmax(x, axis), axis)], [x], rng)


def test_softmax_of_minus_infinity():
    y = plain.softmax(np.array([[0, -np.inf, 0], [1, 1, -np.inf]]), 1)
    np.testing.assert_array_equal(y, [[0.5, 0, 0.5], [0.5, 0.5, 0]])
    with np.errstate(invalid="ignore"):
        assert np.isnan(plain.softmax(np.full((1, 2), -np.inf, np.float32), 1)).all()


stacks = st.sampled_from([[(), (), ()], [(2,), (2,), (2,)], [(2, 3), (2, 3), (2, 3)], [(2, 3), (3,), (2, 1)],
                          [(1,), (3,), ()], [(), (2,), (2, 1)]])


@quick
@given(stacks=stacks, sizes=st.tuples(*[st.integers(1, 3)] * 4), scale=st.sampled_from([1.0, 0.37]),
       mask=st.sampled_from([None, "bool", "float", "float, for every head"]), drop=booleans, rng=seeds)
def test_attention(stacks, sizes, scale, mask, drop, rng):
    (l, s, e, v), kind = sizes, mask  # noqa: E741
    query, key, value = (rng.standard_normal((*stack, *size)) for stack, size in zip(
        stacks, [(l, e), (s, e), (s, v)]))
    scores = np.broadcast_shapes(*stacks[:2]) + (l, s)  # their shape
    mask = None if mask is None else rng.standard_normal((l, s) if mask != "float, for every head" else scores)
    if kind == "bool":
        mask = mask > 0
    dropout = 2.0 * (rng.random(scores) < 0.5) if drop else None
    added = [mask] if kind and kind != "bool" else []

    def forward(query, key, value, *added):
        factors = None if dropout is None else dropout.astype(query.dtype)
        return plain.attention(query, key, value, *(added or [mask]), factors, scale)

    def backward(g, query, key, value, *added):
        factors = None if dropout is None else dropout.astype(query.dtype)
        kept = forward(query, key, value, *added)
        grads = plain.attention_backward(g, query, key, value, *kept, *(added or [mask]), factors, scale, bool(added))
        assert added or grads[3] is None
        return grads[:3 + len(added)]

    y, weights = forward(query, key, value, *added)
    over = scores[:-2]
    seen = ORACLES["scaled_dot_product_attention"](  # with the identity for the values the result is the weights
        np.broadcast_to(query, (*over, l, e)), np.broadcast_to(key, (*over, s, e)), np.eye(s) + np.zeros((*over, 1, 1)),
        mask, scale=scale)
    close(weights, seen)
    close(y, ORACLES["matmul"](seen if dropout is None else seen * dropout, value))
    check_gradients(lambda *a: forward(*a)[0], backward, [query, key, value, *added], rng)


# Products, element by element, indices


@quick
@given(n=st.integers(1, 4), inputs=st.integers(1, 4), outputs=st.integers(1, 4), rng=seeds)
def test_linear(n, inputs, outputs, rng):
    x, weight, bias = (rng.standard_normal(shape) for shape in ((n, inputs), (outputs, inputs), outputs))
    close(plain.linear(x, weight, bias), ORACLES["linear"](x, weight, bias))
    close(plain.linear(x, weight, None), ORACLES["linear"](x, weight))
    check_gradients(plain.linear, lambda g, x, weight, _: plain.linear_backward(g, x, weight), [x, weight, bias], rng)
    assert plain.linear_backward(x @ weight.T, x, weight, need_input=False)[0] is None


@pytest.mark.parametrize("a, b", [((3,), (3,)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 1, 2, 3), (4, 3, 2))])
def test_matmul(a, b):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(a), rng.standard_normal(b)
    close(np.asarray(plain.matmul(a, b)), ORACLES["matmul"](a, b))


@quick
@given(shape=shapes(), rng=seeds)
def test_activations(shape, rng):
    x = np.asarray(rng.standard_normal(shape))
    close(plain.silu(x), ORACLES["silu"](x))
    check_gradients(plain.silu, lambda g, x: [plain.silu_backward(g, x)], [x], rng)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 4e-16), (np.float32, 2e-7)])
def test_erf(dtype, tolerance):
    x = np.concatenate([np.linspace(-7, 7, 20001), [0.46875, 4, 1e-300, -1e300, math.inf, -math.inf, math.nan]])
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    with np.errstate(all="raise", under="ignore"):
        y = plain.erf(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, [math.erf(a) for a in x], rtol=0, atol=tolerance)


def test_activations_of_large_numbers():
    x, ones = np.array([-1e4, 0, 1e4]), np.ones(3)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(plain.silu(x), [0, 0, 1e4])
        np.testing.assert_array_equal(plain.silu_backward(ones, x), [0, 0.5, 1])


@quick
@given(shape=shapes(), scale=st.sampled_from([1.0, 0.25]), rng=seeds)
def test_squared_error(shape, scale, rng):
    x, y = np.asarray(rng.standard_normal(shape)), np.asarray(rng.standard_normal(shape))
    loss = plain.squared_error(x, y, scale)
    assert isinstance(loss, np.ndarray)
    close(loss, scale * ORACLES["mse_loss"](x, y, "sum"))

    def backward(g, x, y):
        dx = plain.squared_error_backward(g, x, y, scale)
        return dx, -dx

    check_gradients(lambda x, y: plain.squared_error(x, y, scale), backward, [x, y], rng)


def test_add_and_cat():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3)), rng.standard_normal(3)
    close(plain.add(a, b), ORACLES["add"](a, b))
    close(plain.cat([a, b[None]], 0), ORACLES["cat"]([a, b[None]], 0))
    expected = a + b
    assert plain.add(a, b, out=a) is a and np.array_equal(a, expected)


@pytest.mark.parametrize("index", [
    np.array([3, 0, 3, 3]), (slice(None), np.array([[1, 1], [0, 1]])), (np.array([1, 1]), np.array([0, 0])),
    (slice(1, None, 2), 0), np.array([True, False, True, False]), np.array([0, -1, 3])])
def test_add_at(index):
    rng = np.random.default_rng(0)
    check_gradients(lambda x: x[index], lambda g, x: [plain.add_at(x.shape, index, g)],
                    [rng.standard_normal((4, 2))], rng)


def test_timestep_embedding():
    t = np.array([0, 1, 7, 999])
    angles = [[step / 10000 ** (i / 3) for i in range(3)] for step in t.tolist()]
    expected = [[*map(math.cos, line), *map(math.sin, line)] for line in angles]
    close(plain.timestep_embedding(t, 6, 10000, np.float64), np.array(expected))
    assert plain.timestep_embedding(t, 6, 10000, np.float32).dtype == np.float32


def test_default_rng_repeats():
    assert np.array_equal(plain.default_rng(3).random(4), plain.default_rng(3).random(4))


# Optimisers, against plain numbers: one element at a time


def sgd_number(w, grads, lr, momentum, weight_decay):
    v = 0.0
    for g in grads:
        v = momentum * v + g + weight_decay * w
        w -= lr * v
    return w


def adam_number(w, grads, lr, beta1, beta2, eps, weight_decay, decoupled):
    m = v = 0.0
    for k, g in enumerate(grads, 1):
        if decoupled:
            w *= 1 - lr * weight_decay
        else:
            g += weight_decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w -= lr * (m / (1 - beta1**k)) / (math.sqrt(v / (1 - beta2**k)) + eps)
    return w


def check_optimizer(step, number, states, dtype):
    """Three steps of ``step(params, grads, *states, lr)``: the first parameter takes part in all, the second in two."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(dtype) for shape in ((2, 3), ())]
    states = [[state(w) for w in params] for state in states]
    lr, starts, history = np.array(0.0), [w.copy() for w in params], [[], []]
    lr[...] = 0.01
    for active in ([0], [0, 1], [0, 1]):
        grads = [np.asarray(rng.standard_normal(params[i].shape), dtype) for i in active]
        before = [g.copy() for g in grads]
        step([params[i] for i in active], grads, *([state[i] for i in active] for state in states), lr)
        assert all(np.array_equal(g, b) for g, b in zip(grads, before))
        for i, g in zip(active, grads):
            history[i].append(g)
    for w, start, grads in zip(params, starts, history):
        expected = filled(w.shape, lambda at: number(start[at].item(), [g[at].item() for g in grads], 0.01))
        np.testing.assert_allclose(w, expected, rtol=1e-12 if dtype == np.float64 else 1e-5)
    return states


dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@dtypes
@pytest.mark.parametrize("momentum, weight_decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_sgd(momentum, weight_decay, dtype):
    check_optimizer(lambda *a: plain.sgd(*a, momentum, weight_decay),
                    lambda *a: sgd_number(*a, momentum, weight_decay), [np.zeros_like], dtype)


@dtypes
@pytest.mark.parametrize("weight_decay, decoupled", [(0.0, False), (0.1, False), (0.1, True), (0.0, True)])
def test_adam(weight_decay, decoupled, dtype):
    numbers = 0.8, 0.95, 1e-3, weight_decay, decoupled
    states = check_optimizer(lambda *a: plain.adam(*a, *numbers), lambda *a: adam_number(*a, *numbers),
                             [np.zeros_like, np.zeros_like, lambda w: np.array(0)], dtype)
    assert states[2] == [3, 2] and all(isinstance(k, np.ndarray) and k.dtype == np.int64 for k in states[2])


@dtypes
def test_ema_warms_up(dtype):
    rng = np.random.default_rng(0)
    average, updates, expected = np.array([1.0, -2.0], dtype), np.array(0), [1.0, -2.0]
    for d in (2 / 11, 3 / 12, 0.3, 0.3):  # (1 + k)/(10 + k), until decay is smaller
        w = rng.standard_normal(2).astype(dtype)
        expected = [d * s + (1 - d) * x for s, x in zip(expected, w.tolist())]
        assert plain.ema([average], [w], updates, 0.3) is None
    assert updates == 4 and isinstance(updates, np.ndarray)
    np.testing.assert_allclose(average, expected, rtol=1e-12 if dtype == np.float64 else 1e-6)


@dtypes
def test_clip_grad_norm(dtype):
    grads = [np.array([[3.0, 0.0], [0.0, 4.0]], dtype), np.array(12.0, dtype)]
    norm = plain.clip_grad_norm(grads, 20)
    assert norm == 13 and type(norm) is float
    assert np.array_equal(grads[0], [[3, 0], [0, 4]]) and grads[1] == 12
    assert plain.clip_grad_norm(grads, 6.5) == 13
    np.testing.assert_allclose(grads[0], [[1.5, 0], [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(grads[1], 6, rtol=1e-6)
    assert plain.clip_grad_norm([], 1.0) == 0 and grads[0].dtype == dtype


@pytest.mark.parametrize("room", ["numpy", "cupy"])
def test_the_rooms_have_the_same_names_and_signatures(room):
    def signatures(kernels):
        return {name: [(p.name, p.default) for p in inspect.signature(getattr(kernels, name)).parameters.values()]
                for name in kernels.__all__}

    assert signatures(importlib.import_module(f"npdiffusion.kernels.{room}")) == signatures(plain)
    assert plain.__all__ == sorted(plain.__all__)
