"""Arithmetic, element by element. Operands broadcast as in NumPy; the engine sums gradients back."""

import math

import numpy as np

from ..device import array_module
from ..kernels import kernels
from ..tensor import Tensor, record
from ._arguments import arrays, as_tensor, floats, needs


def _operands(op, input, other):
    """Both as Tensors, and their arrays. A number, also one in a Tensor (), takes the other's dtype, and integers that
    of floats beside them; NumPy would make float64 of int64 and float32."""
    a = as_tensor(input, like=other if isinstance(other, Tensor) else None)
    b = as_tensor(other, like=a)
    if a.dtype != b.dtype:
        rank_a, rank_b = [({"b": 0, "i": 1, "u": 1, "f": 2}[x.dtype.kind], x.ndim > 0) for x in (a, b)]
        a, b = a if rank_a >= rank_b else a.to(b.dtype), b if rank_b >= rank_a else b.to(a.dtype)
    return a, b, *arrays(op, a, b)


def weighted(weight, x):
    """weight·x of arrays; where the weight is 0, x does not count, be it ∞ or NaN."""
    return array_module(x).where(weight == 0, 0, x) * weight


def add(input, other):
    """input + other."""
    a, b, x, y = _operands("add", input, other)
    return record(kernels(x, y).add(x, y), "add", (a, b), lambda g: (g, g))


def sub(input, other):
    """input − other."""
    a, b, x, y = _operands("sub", input, other)
    needs_dy = b.requires_grad
    return record(x - y, "sub", (a, b), lambda g: (g, -g if needs_dy else None))


def mul(input, other):
    """input · other."""
    a, b, x, y = _operands("mul", input, other)
    needs_dx, needs_dy = a.requires_grad, b.requires_grad
    return record(x * y, "mul", (a, b), lambda g: (g * y if needs_dx else None, g * x if needs_dy else None))


def div(input, other):
    """input / other."""
    a, b, x, y = _operands("div", input, other)
    needs_dy, quotient = b.requires_grad, x / y
    if a.dtype.kind != "f":  # nor is b's: NumPy divides integers into float64, PyTorch, and so we, into float32
        quotient = quotient.astype("float32")
    return record(quotient, "div", (a, b), lambda g: (g / y, -g * x / (y * y) if needs_dy else None))


def neg(input):
    """−input."""
    [x] = arrays("neg", input)
    return record(-x, "neg", (input,), lambda g: (-g,))


def pow(input, exponent):
    """input ** exponent; both may be Tensors. d/dx = e·x^(e−1), d/de = x^e·log x (0 where x = 0 and e ≥ 0)."""
    a, b, x, e = _operands("pow", input, exponent)
    xp, needs_de = array_module(x, e), b.requires_grad
    x, e = (xp.full((), v, v.dtype) if isinstance(v, np.generic) else v for v in (x, e))
    y = x ** e

    def backward(g):
        de = None
        if needs_de:
            constant = (x == 0) & (e >= 0)
            de = xp.where(constant, 0, g * y * xp.log(xp.where(constant, 1, x)))
        # x^(e-1) with e = 0 must give 0, also at x = 0
        return xp.where(e == 0, 0, g * e * x ** xp.where(e == 0, 1, e - 1)), de

    return record(y, "pow", (a, b), backward)


def exp(input):
    """e^input."""
    [x] = floats("exp", input=input)
    y = array_module(x).exp(x)
    return record(y, "exp", (input,), lambda g: (g * y,))


def log(input):
    """The natural logarithm."""
    [x] = floats("log", input=input)
    return record(array_module(x).log(x), "log", (input,), lambda g: (g / x,))


def sqrt(input):
    """√input; the gradient 1/(2√x) is infinite at 0, as in PyTorch."""
    [x] = floats("sqrt", input=input)
    y = array_module(x).sqrt(x)
    return record(y, "sqrt", (input,), lambda g: (g / (2 * y),))


def abs(input):
    """|input|; the gradient at 0 is 0."""
    [x] = arrays("abs", input)
    xp = array_module(x)
    return record(xp.abs(x), "abs", (input,), lambda g: (weighted(xp.sign(x), g),))


def clamp(input, min=None, max=None):
    """min(max(input, min), max), with numbers, Tensors that broadcast, or None for no limit.

    The gradient goes to the limit where it is reached over, else (and where they are equal) to input.
    """
    arrays("clamp", input)
    if min is None and max is None:
        raise ValueError("clamp needs min, max or both")
    for limit in (min, max):  # also a limit can make floats of integers
        input = input if limit is None else _operands("clamp", input, limit)[0]
    low, high = [None if limit is None else _operands("clamp", input, limit)[1] for limit in (min, max)]
    x, *limits = arrays("clamp", *[t for t in (input, low, high) if t is not None])
    lower, upper = -math.inf if low is None else limits[0], math.inf if high is None else limits[-1]
    xp, (_, need_low, need_high) = array_module(x, *limits), needs(input, low, high)
    y = x if low is None else xp.maximum(x, lower)
    y = y if high is None else xp.minimum(y, upper)

    def backward(g):
        dlow = xp.where((x < lower) & (lower < upper), g, 0) if need_low else None
        dhigh = xp.where((x > upper) | (upper < lower), g, 0) if need_high else None
        return xp.where((x >= lower) & (x <= upper), g, 0), dlow, dhigh

    return record(y, "clamp", (input, low, high), backward)


def maximum(input, other):
    """The larger of the two; equal elements share the gradient."""
    return _extreme("maximum", input, other, 1)


def minimum(input, other):
    """The smaller of the two; equal elements share the gradient."""
    return _extreme("minimum", input, other, -1)


def _extreme(name, input, other, sign):
    a, b, x, y = _operands(name, input, other)
    xp = array_module(x, y)

    def backward(g):
        share = xp.where(xp.equal(x, y), 0.5 * g, g)
        return tuple([xp.where(loses, 0, share) for loses in (xp.less(x, y), xp.greater(x, y))][::sign])

    return record(getattr(xp, name)(x, y), name, (a, b), backward)


def where(condition, input, other):
    """input where condition holds, other elsewhere; all three broadcast."""
    a, b, _, _ = _operands("where", input, other)
    condition = as_tensor(condition)
    if condition.dtype != bool:
        raise TypeError(f"where expects a bool condition, got {condition.dtype}; write condition != 0")
    c, x, y = arrays("where", condition, a, b)
    xp = array_module(c, x, y)
    return record(xp.where(c, x, y), "where", (a, b), lambda g: (xp.where(c, g, 0), xp.where(c, 0, g)))


def comparison(name):
    """The op that compares by NumPy's function ``name``: a Tensor and another, an array or a number -> bool."""
    def compare(input, other):
        pair = arrays(name, input, other) if isinstance(other, Tensor) else (input.data, other)
        return Tensor(getattr(array_module(*(x for x in pair if hasattr(x, "dtype"))), name)(*pair))

    return compare
