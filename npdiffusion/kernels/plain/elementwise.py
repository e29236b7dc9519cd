"""What goes element by element. Where y_i depends on x_i alone, J is diagonal and its own adjoint: dx = g·f'(x)."""

import math

import numpy as np


def add(a, b, out=None):
    """a + b, with broadcasting; into ``out`` if given, which may be a. Always an array, not one of NumPy's scalars."""
    return np.asarray(np.add(a, b, out=out))


def cat(arrays, axis):
    """The arrays one after the other along ``axis``."""
    return np.concatenate(arrays, axis)


def sigmoid(x):
    """σ(x) = 1/(1 + e^−x), computed as (1 + tanh(x/2))/2, which cannot overflow."""
    y = np.tanh(0.5 * x)
    y += 1
    y *= 0.5
    return y


def silu(x):
    """x·σ(x) (Elfwing et al. 2018; also "swish")."""
    y = sigmoid(x)
    y *= x
    return y


def silu_backward(g, x):
    """As σ' = σ (1 − σ), δy = (σ + x σ (1 − σ)) δx, so dx = g·σ·(1 + x (1 − σ))."""
    s = sigmoid(x)
    dx = 1 - s
    dx *= x
    dx += 1
    dx *= s
    dx *= g
    return dx


def squared_error(x, y, scale):
    """L = scale·Σ (x − y)², an array ()."""
    difference = x - y
    difference *= difference
    return np.asarray(scale * difference.sum())


def squared_error_backward(g, x, y, scale):
    """g·δL = 2 g·scale·<x − y, δx − δy>, so dx = 2 g·scale·(x − y), and dy = −dx. g is an array ()."""
    difference = x - y
    difference *= 2 * scale * g
    return difference


def timestep_embedding(t, dim, max_period, dtype):
    """cos(t·ω_i), then sin(t·ω_i), with ω_i = max_period^(−i/(dim/2)), i < dim/2 (Vaswani et al. 2017, sec. 3.5).

    t (N,) -> (N, dim).
    """
    omega = np.exp(np.arange(dim // 2) * (-math.log(max_period) / (dim // 2)))
    angle = t[:, None] * omega  # [n, dim/2]
    return np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(dtype, copy=False)
