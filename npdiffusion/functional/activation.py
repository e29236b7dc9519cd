"""Activation functions, softmax and dropout."""

import math

from ..backend import array_module, beside, default_generator, kernels
from ..tensor import record
from ._arguments import axis_of, check_float

__all__ = ["dropout", "gelu", "log_softmax", "relu", "sigmoid", "silu", "softmax", "softplus", "tanh"]


def relu(input):
    """max(input, 0); the gradient at 0 is 0."""
    check_float("relu", input=input)
    return _activated("relu", input)


def _sigmoid(x):
    # 1/(1 + exp(-x)) = (1 + tanh(x/2))/2: no overflow, and NumPy's tanh is its fastest such function
    y = array_module(x).tanh(0.5 * x)
    y += 1
    y *= 0.5
    return y


def sigmoid(input):
    """σ(x) = 1/(1 + e^−x)."""
    check_float("sigmoid", input=input)
    y = _sigmoid(input.data)
    return record(y, "sigmoid", (input,), lambda g: (g * y * (1 - y),))


def silu(input):
    """x·σ(x) (Elfwing et al. 2018; also "swish")."""
    check_float("silu", input=input)
    return _activated("silu", input)


def _activated(name, input):
    x = input.data
    return record(kernels(x).bias_activation(x, None, name), name, (input,),
                  lambda g: (kernels(g).bias_activation_backward(g, x, None, name),))


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
    return record(xp.logaddexp(x, 0.0).astype(x.dtype, copy=False), "softplus", (input,), lambda g: (g * _sigmoid(x),))


def softmax(input, dim, scale=1.0):
    """e^z / Σ e^z along ``dim``, z = scale·x."""
    check_float("softmax", input=input)
    dim = axis_of(dim, input.ndim)
    y = kernels(input.data).softmax(input.data, dim, scale)
    return record(y, "softmax", (input,), lambda g: (kernels(g).softmax_backward(g, y, dim, scale),))


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
    if not 0 <= p <= 1:
        raise ValueError(f"dropout expects a probability 0 <= p <= 1, got {p!r}")
    if not training or p == 0:
        return input
    draws = (generator or default_generator(input.device)).random(input.shape, dtype=input.dtype)
    mask = array_module(input.data).empty_like(input.data)  # in the input's memory layout
    mask[...] = beside(draws, input.data) >= p
    mask *= 1 / (1 - p) if p < 1 else 0.0
    return record(input.data * mask, "dropout", (input,), lambda g: (g * mask,))
