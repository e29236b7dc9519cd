"""What the exercises of lesson 10 should return."""

from itertools import permutations

import numpy as np


def velocity_of_epsilon():
    """From x_0 and ε, of which x is made."""
    rng = np.random.default_rng(0)
    for shape, t in [((1,), 0.0), ((1,), 0.5), ((2,), 0.2), ((2, 1, 2, 2), 0.9)]:
        x0, epsilon = rng.integers(-5, 6, (2, *shape)).astype(float)
        yield ((1 - t) * x0 + t * epsilon, epsilon, t), epsilon - x0


def heun():
    """Where u is known to be linear in x and t, each step can be done on paper; and a long way in small steps."""
    def constant(x, t):
        """u(x, t) = 2"""
        return np.full_like(x, 2.0)

    def line(x, t):  # the mean of the slopes at both ends is exact
        """u(x, t) = 2 t"""
        return np.full_like(x, 2 * t)

    def growth(x, t):  # a step of length h multiplies by 1 + h + h²/2, one of Euler's by 1 + h
        """u(x, t) = x"""
        return x

    def to_zero(x, t):  # the flow to a data set of one point, 0: all that is left goes in Euler's last step
        """u(x, t) = x/t"""
        if t == 0:
            raise ZeroDivisionError("u(x, 0) was asked for")
        return x / t

    one, two = np.array([1.0]), np.array([1.0, -2.0])
    yield (constant, one, [1.0, 0.5]), np.array([0.0])
    yield (line, one, [1.0, 0.5]), np.array([0.25])
    yield (growth, one, [1.0, 0.5]), np.array([1 - 0.5 + 0.125])
    yield (growth, one, [1.0, 0.0]), np.array([0.0])
    yield (growth, two, [1.0, 0.5, 0.25]), two * (1 - 0.5 + 0.125) * (1 - 0.25 + 0.03125)
    yield (to_zero, two, [1.0, 0.5, 0.0]), np.zeros(2)
    yield (growth, two, np.linspace(1, 0.5, 200)), two * np.exp(-0.5)


def log_density_change():
    """Of diagonal J and signs, where zᵀ J z is the trace; and by the sum over all elements, one by one."""
    def product(jacobian):
        def jacobian_product(z):
            return jacobian @ z
        jacobian_product.__doc__ = f"z to J z, J = {jacobian.tolist()}"
        return jacobian_product

    rng = np.random.default_rng(0)
    for jacobian, n in [(np.diag([3.0]), 1), (np.diag([1.0, 2.0]), 1), (np.diag([1.0, 2.0, -4.0]), 2)]:
        yield (product(jacobian), rng.choice([-1.0, 1.0], (n, len(jacobian)))), -np.trace(jacobian)
    for d, n in [(2, 1), (2, 3), (4, 5)]:
        jacobian, noise = rng.integers(-3, 4, (d, d)).astype(float), rng.standard_normal((n, d))
        products = [sum(z[i] * jacobian[i, j] * z[j] for i in range(d) for j in range(d)) for z in noise]
        yield (product(jacobian), noise), -sum(products) / n


def pair():
    """The best of all orders."""
    rng = np.random.default_rng(7)
    for n in (3, 2, 3, 4, 6):
        x0, noise = rng.permutation(n) + 1.0, rng.permutation(10)[:n] / 4 - 1
        yield (x0, noise), np.array(min(permutations(x0), key=lambda order: ((np.array(order) - noise)**2).sum()))
