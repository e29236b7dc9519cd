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


def erf(x):
    """2/√π·∫₀ˣ e^−t² dt, by the rational functions of Cody 1969 (Rational Chebyshev approximations for the error
    function, Math. Comp. 23): of erf where |x| ≤ 0.46875, of 1 − erf up to 4 and beyond. Off by at most 4e-16.
    """
    y = np.abs(x)
    small = np.minimum(y, 0.46875)
    near = small * rational(small * small, SMALL)
    middle = np.clip(y, 0.46875, 4)
    far = np.clip(y, 4, 30)  # erf(30) is 1
    tail = np.exp(-far * far) / far * (1 / math.sqrt(math.pi) - rational(1 / (far * far), LARGE) / (far * far))
    rest = np.where(y <= 4, np.exp(-middle * middle) * rational(middle, MIDDLE), tail)
    return np.copysign(np.where(y <= 0.46875, near, 1 - rest), x)


def rational(x, coefficients):
    """Two polynomials, the one divided by the other; their coefficients from the highest power down."""
    above = below = 0
    for a, b in zip(*coefficients):
        above, below = above * x + a, below * x + b
    return above / below


# of erf(x)/x in x², of e^x²·(1 − erf x) in x, and of x²·(1/√π − x·e^x²·(1 − erf x)) in 1/x²
SMALL = ((1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
          3.20937758913846947e3),
         (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3))
MIDDLE = ((2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
           2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
           1.23033935479799725e3),
          (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
           3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3))
LARGE = ((1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
          1.60837851487422766e-2, 6.58749161529837803e-4),
         (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
          2.33520497626869185e-3))


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
