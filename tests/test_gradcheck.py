"""gradcheck itself: right gradients pass, wrong ones fail, kinks are neither."""

import numpy as np
import pytest

from npdiffusion import Tensor, gradcheck
from npdiffusion import functional as F
from npdiffusion.tensor import record


def op(forward, backward):
    """An op made of two functions of arrays: forward(x), backward(g, x)."""
    return lambda x: record(forward(x.data), "op", (x,), lambda g: (backward(g, x.data),))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def fails(function, inputs, match="backward says", **options):
    with pytest.raises(AssertionError, match=match):
        gradcheck(function, inputs, **options)


cube = op(lambda x: x**3, lambda g, x: g * 3 * x**2)


def test_right_gradients_pass():
    assert gradcheck(cube, normal(3, 4))
    assert gradcheck(lambda x, y: x @ y, [normal(3, 4), normal(4, 2)])
    assert gradcheck(lambda x: (x.exp(), x.sum(0)), normal(3, 4))  # several results
    assert gradcheck(lambda x: x.max(0), normal(3, 4))  # (values, integer indices)
    assert gradcheck(F.embedding, [np.array([0, 2, 0]), normal(3, 2)])  # an integer input
    assert gradcheck(cube, normal())
    assert gradcheck(cube, normal(3).astype(np.float32))  # computed in float64


@pytest.mark.parametrize("factor", [1.001, 0.999, -1, 0])
def test_wrong_scale_fails(factor):
    fails(op(lambda x: x**3, lambda g, x: g * 3 * x**2 * factor), normal(3, 4))


@pytest.mark.parametrize("size", [5, 50, 20_000])
def test_a_single_wrong_element_fails(size):
    def backward(g, x):
        dx = g * 3 * x**2
        dx[size // 2] += 0.1
        return dx

    fails(op(lambda x: x**3, backward), normal(size))


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9])
def test_the_function_s_size_does_not_matter(scale):
    def scaled(factor):
        return op(lambda x: scale * x**3, lambda g, x: g * scale * 3 * x**2 * factor)

    assert gradcheck(scaled(1), normal(4, 4))
    fails(scaled(1.001), normal(4, 4))


@pytest.mark.parametrize("frequency", [30, 300, 3000])
def test_strong_curvature_is_not_a_kink(frequency):
    def wave(factor):
        return op(lambda x: np.sin(frequency * x), lambda g, x: g * frequency * np.cos(frequency * x) * factor)

    assert gradcheck(wave(1), normal(5))
    fails(wave(1.01), normal(5))


def test_the_peak_of_a_narrow_bump_is_not_a_kink():
    assert gradcheck(op(lambda x: np.exp(-1e4 * x**2), lambda g, x: -2e4 * g * x * np.exp(-1e4 * x**2)), np.zeros(3))


def test_a_flat_point_passes():
    x = np.full(3, 1.446)
    assert gradcheck(F.var, x)
    assert gradcheck(lambda x: F.mse_loss(x, Tensor(np.full(3, 1.446))), x)
    fails(op(lambda x: (x - 1.446) ** 2, lambda g, x: g * (2 * (x - 1.446) + 1e-6)), x, match="backward says|kink")


@pytest.mark.parametrize("at", [0.0, 1e-9, -1e-8])
def test_a_point_on_a_kink_is_said_to_be_one(at):
    fails(F.relu, np.array([1.0, at, -2.0]), match="kink")
    fails(lambda x: F.max_pool2d(x, 2), np.array([1.0, 1.0 + at, 0.0, 0.0]).reshape(1, 1, 2, 2), match="kink")


@pytest.mark.parametrize("at", [1e-7, 5e-7, 2e-6, 5e-6, 6.7e-6, 7.5e-6, 1e-5, 2e-5])
def test_a_kink_near_the_point_does_no_harm(at):
    """Steps over it are shortened or drawn again."""
    for sign in (1, -1):
        assert gradcheck(F.relu, np.array([1.0, sign * at, -2.0, 0.5]))
        assert gradcheck(F.abs, np.array([1.0, sign * at, 0.3, -1.0]))


def test_a_kink_does_not_excuse_a_wrong_gradient():
    half_wrong = op(lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0) * np.where(np.arange(x.size) == 1, 1.001, 1))
    fails(half_wrong, np.array([0.0, 1.0, -1.0]), match="backward says|kink")
    fails(half_wrong, np.array([1.0, 1.0, -1.0]))


def test_the_cotangent_is_not_constant():
    """Σ softmax(x) = 1, so that with a cotangent of ones any multiple of the gradient would pass."""
    def softmax(x):
        y = np.exp(x) / np.exp(x).sum()
        return y

    fails(op(softmax, lambda g, x: 2 * softmax(x) * (g - (g * softmax(x)).sum())), normal(4))


def test_a_missing_gradient_fails():
    fails(lambda x, y: x + y.detach(), [normal(3), normal(3)])


def test_a_gradient_that_is_not_finite_fails():
    with np.errstate(divide="ignore"):
        fails(F.sqrt, np.array([0.0, 1.0]), match="not finite")


def test_changed_inputs_fail():
    def grow(x):
        x.data[...] += 1
        return x * x

    def spoil(g, x):
        x *= 2
        return g

    fails(grow, normal(3), match="changed an input")
    fails(op(lambda x: x.copy(), spoil), normal(3), match="changed an input")


def test_float32_results_fail():
    fails(lambda x: x.float(), normal(3), match="float32")


def test_random_functions_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="seed its random numbers"):
        gradcheck(lambda x: F.dropout(x, 0.5, generator=rng), normal(20))


def test_arrays_keep_their_memory_layout():
    seen = []

    def function(x):
        seen.append(x.data.strides)
        return x * x

    x = np.broadcast_to(normal(4)[::-1], (3, 4))
    gradcheck(function, x)
    assert seen[0] == x.strides == (0, -8)


def test_a_generator_can_be_given():
    assert gradcheck(cube, Tensor(normal(3)), generator=np.random.default_rng(5))
