"""Activation functions, softmax and dropout."""

import math

from ..device import array_module, device_of, to_device
from ..kernels import kernels
from ..random import default_generator
from ..tensor import record
from ._arguments import axis_of, check_float, check_probability

__all__ = ["dropout", "gelu", "log_softmax", "relu", "sigmoid", "silu", "softmax", "softplus", "tanh"]


def relu(input):
    """max(input, 0); the gradient at 0 is 0."""
    check_float("relu", input=input)
    x = input.data
    xp = array_module(x)
    return record(xp.maximum(x, 0), "relu", (input,), lambda g: (xp.where(x > 0, g, 0),))


def logistic(x):
    """1/(1 + e^−x) = (1 + tanh(x/2))/2 of an array: no overflow, and NumPy's tanh is its fastest such function."""
    y = array_module(x).tanh(0.5 * x)
    y += 1
    y *= 0.5
    return y


def sigmoid(input):
    """σ(x) = 1/(1 + e^−x)."""
    check_float("sigmoid", input=input)
    y = logistic(input.data)
    return record(y, "sigmoid", (input,), lambda g: (g * y * (1 - y),))


def silu(input):
    """x·σ(x) (Elfwing et al. 2018; also "swish")."""
    check_float("silu", input=input)
    x = input.data
    return record(kernels(x).silu(x), "silu", (input,), lambda g: (kernels(g).silu_backward(g, x),))


def tanh(input):
    """The hyperbolic tangent."""
    check_float("tanh", input=input)
    y = array_module(input.data).tanh(input.data)
    return record(y, "tanh", (input,), lambda g: (g * (1 - y * y),))


def gelu(input, approximate="tanh"):
    """x·Φ(x) in the tanh form (Hendrycks & Gimpel 2016, sec. 2): x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).

    The exact form needs erf, which NumPy does not have: ``approximate="none"`` raises ValueError.
    """
    check_float("gelu", input=input)
    if approximate != "tanh":
        raise ValueError(f"gelu supports approximate='tanh' only (NumPy has no erf), got {approximate!r}")
    x = input.data
    c = math.sqrt(2 / math.pi)
    t = array_module(x).tanh(c * (x + 0.044715 * x * x * x))

    def backward(g):
        return (g * 0.5 * (1 + t + x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)),)

    return record(0.5 * x * (1 + t), "gelu", (input,), backward)


def softplus(input):
    """log(1 + e^x), computed as max(x, 0) + log(1 + e^−|x|)."""
    check_float("softplus", input=input)
    x = input.data
    xp = array_module(x)
    return record(xp.logaddexp(x, 0.0).astype(x.dtype, copy=False), "softplus", (input,), lambda g: (g * logistic(x),))


def softmax(input, dim):
    """e^x / Σ e^x along ``dim``."""
    check_float("softmax", input=input)
    dim = axis_of(dim, input.ndim)
    y = kernels(input.data).softmax(input.data, dim)
    return record(y, "softmax", (input,), lambda g: (kernels(g).softmax_backward(g, y, dim),))


def log_softmax(input, dim):
    """x − log Σ e^x along ``dim``."""
    check_float("log_softmax", input=input)
    dim = axis_of(dim, input.ndim)
    x = input.data
    xp = array_module(x)
    shifted = x - x.max(dim, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(dim, keepdims=True))
    return record(y, "log_softmax", (input,), lambda g: (g - xp.exp(y) * g.sum(dim, keepdims=True),))


def dropout(input, p=0.5, training=True, generator=None):
    """Zeroes each element with probability p and divides the others by 1 − p (Srivastava et al. 2014).

    Not in training (or with p = 0) it returns input itself. Draws from ``generator``, else from the library's generator
    of the input's device.
    """
    check_float("dropout", input=input)
    check_probability("dropout", p)
    if not training or p == 0:
        return input
    x = input.data
    mask = dropout_mask(array_module(x).empty_like(x), p, generator)  # in the input's memory layout
    return record(x * mask, "dropout", (input,), lambda g: (g * mask,))


def dropout_mask(out, p, generator=None):
    """``out`` filled with 0 by probability p, else with 1/(1 − p)."""
    draws = (generator or default_generator(device_of(out))).random(out.shape, dtype=out.dtype)
    out[...] = to_device(draws, out) >= p
    out *= 1 / (1 - p) if p < 1 else 0.0
    return out
