"""Activation functions, softmax and dropout."""

import math

from ..device import array_module, device_of, to_device
from ..kernels import kernels
from ..random import default_generator
from ..tensor import record
from ._arguments import axis_of, check_not_in_place, check_probability, floats
from .arithmetic import weighted
from .shape import to


def relu(input, inplace=False):
    """max(input, 0); the gradient at 0 is 0."""
    check_not_in_place("relu", inplace)
    [x] = floats("relu", input=input)
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
    [x] = floats("sigmoid", input=input)
    y = logistic(x)
    return record(y, "sigmoid", (input,), lambda g: (g * y * (1 - y),))


def silu(input, inplace=False):
    """x·σ(x) (Elfwing et al. 2018; also "swish")."""
    check_not_in_place("silu", inplace)
    [x] = floats("silu", input=input)
    return record(kernels(x).silu(x), "silu", (input,), lambda g: (kernels(g).silu_backward(g, x),))


def tanh(input):
    """The hyperbolic tangent."""
    [x] = floats("tanh", input=input)
    y = array_module(x).tanh(x)
    return record(y, "tanh", (input,), lambda g: (g * (1 - y * y),))


def gelu(input, approximate="none"):
    """x·Φ(x), with Φ the standard normal distribution (Hendrycks & Gimpel 2016): Φ(x) = (1 + erf(x/√2))/2.

    approximate="tanh": Φ(x) ≈ (1 + tanh u)/2, u = √(2/π)·(x + 0.044715·x³) (their sec. 2).
    """
    [x] = floats("gelu", input=input)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu expects approximate='none' or 'tanh', got {approximate!r}")
    xp = array_module(x)
    near = xp.clip(x, -100, 100)  # beyond, Φ is 0 or 1 and its slope 0, also times ∞
    if approximate == "none":
        phi = 0.5 + 0.5 * kernels(x).erf(math.sqrt(0.5) * near)
    else:
        phi = 0.5 + 0.5 * xp.tanh(math.sqrt(2 / math.pi) * (near + 0.044715 * near * near * near))

    def backward(g):
        if approximate == "none":
            slope = xp.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
        else:
            slope = 2 * phi * (1 - phi) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * near * near)
        return (g * (phi + near * slope),)

    return record(xp.maximum(x, -100) * phi, "gelu", (input,), backward)


def softplus(input, beta=1.0, threshold=20.0):
    """log(1 + e^βx)/β, computed as (max(βx, 0) + log(1 + e^−|βx|))/β; x itself where βx > threshold."""
    [x], beta = floats("softplus", input=input), float(beta)
    xp = array_module(x)
    linear = beta * x > threshold
    y = xp.where(linear, x, (xp.maximum(beta * x, 0) + xp.log1p(xp.exp(-xp.abs(beta * x)))) / beta)
    return record(y, "softplus", (input,), lambda g: (xp.where(linear, g, weighted(g, logistic(beta * x))),))


def softmax(input, dim, dtype=None):
    """e^x / Σ e^x along ``dim``, as ``dtype`` if given."""
    input, dim = to(input, dtype, "softmax"), axis_of(dim, input.ndim)
    [x] = floats("softmax", input=input)
    x = x.reshape(input.shape or 1)  # a number as one of one
    y = kernels(x).softmax(x, dim)
    return record(y.reshape(input.shape), "softmax", (input,),
                  lambda g: (kernels(g).softmax_backward(g.reshape(y.shape), y, dim),))


def log_softmax(input, dim, dtype=None):
    """x − log Σ e^x along ``dim``, as ``dtype`` if given."""
    input, axis = to(input, dtype, "log_softmax"), axis_of(dim, input.ndim)
    [x], axes = floats("log_softmax", input=input), (axis,)[:input.ndim]  # a number has none
    xp = array_module(x)
    shifted = x - x.max(axes, keepdims=True) if x.size else x
    y = shifted - xp.log(xp.exp(shifted).sum(axes, keepdims=True))
    return record(y, "log_softmax", (input,), lambda g: (g - weighted(g.sum(axes, keepdims=True), xp.exp(y)),))


def dropout(input, p=0.5, training=True, inplace=False, generator=None):
    """Zeroes each element with probability p and divides the others by 1 − p (Srivastava et al. 2014).

    Not in training (or with p = 0) it returns input itself. Draws from ``generator``, else from the library's generator
    of the input's device.
    """
    [x] = floats("dropout", input=input)
    check_probability("dropout", p)
    check_not_in_place("dropout", inplace)
    if not training or p == 0:
        return input
    mask = dropout_mask(array_module(x).empty_like(x), p, generator)  # in the input's memory layout
    return record(weighted(mask, x), "dropout", (input,), lambda g: (weighted(mask, g),))


def dropout_mask(out, p, generator=None):
    """``out`` filled with 0 by probability p, else with 1/(1 − p)."""
    draws = (generator or default_generator(device_of(out))).random(out.shape, dtype=out.dtype)
    out[...] = to_device(draws, out) >= p
    out *= 1 / (1 - p) if p < 1 else 0.0
    return out
