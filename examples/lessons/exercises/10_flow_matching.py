"""Exercises of lesson 10: around a flow. Grade them with python examples/lessons/check.py 10"""

import numpy as np


def velocity_of_epsilon(x, epsilon, t):
    """u = ε − x_0 from an estimate of ε, at x = (1 − t) x_0 + t ε.

    At t = 1 nothing of x_0 is in x, so there is no answer there; t < 1.

    x, epsilon: arrays of one shape. t: a number, 0 ≤ t < 1. Returns u, an array of that shape.
    """


def heun(u, x, times):
    """The end of the path dx/dt = u(x, t) by Heun's method, which is of second order.

    Each step takes Euler's to where it leads, asks for the velocity there, too, and goes from the old place with the
    mean of both. But where the time of arrival is 0, u(x, 0) is 0/0: there the step stays Euler's (Karras et al. 2022,
    algorithm 1).

    u: a function of x and t. x: the place at times[0]. times: floats, falling. Returns the place at times[-1].
    """


def log_density_change(jacobian_product, noise):
    """d log p/dt along a path, at one place, by Hutchinson's estimate of a trace.

    It is −div u = −tr J, J = ∂u/∂x (Chen et al. 2018, theorem 1). The trace of a network's J costs much; but
    E[zᵀ J z] = tr J if the elements of z are independent, of mean 0 and variance 1.

    jacobian_product: a function that returns J z of one z (D,). noise: (n, D), n such z. Returns a float, −tr J as
    estimated by the mean over them.
    """


def pair(x0, noise):
    """Pairs of noise and data on a line for which the straight paths never cross (optimal transport in one dimension).

    The pairing with the least Σ |x_0 − ε|² joins the smallest to the smallest, and so on. So nothing is left to average
    over, and one Euler step is exact.

    x0, noise: (N,) each, without ties. Returns x0 in another order, so that element i belongs to noise[i].
    """
