"""Exercises of lesson 9: codes, gains and two errors. Grade them with python examples/lessons/check.py 9"""

import numpy as np


def gaussian_kl(mean_q, logvar_q, mean_p, logvar_p):
    """KL(q ‖ p) = E_q[log q(z) − log p(z)] in nats, of Gaussians q and p whose numbers z_j are independent.

    The lesson has p = N(0, I). With any p you need E_q[(z_j − μ_p)²] as well.

    All four: (J,), means and log σ². Returns a float, the sum over j.
    """


def reparametrised_gradient(g, logvar, noise):
    """What a code z = μ + σ ε, with σ² = exp(logvar), passes on to μ and to logvar.

    g: (N, J), the gradient dL/dz. logvar, noise: (N, J), the second is ε. Returns (dL/dμ, dL/dlogvar), each (N, J).
    """


def wiener_gain(variances, alpha_bar):
    """The factor g for which g x_t is nearest to x_0 on average:  E[(g x_t − x_0)²]  is least.

    x_t = √ᾱ x_0 + √(1 − ᾱ) ε, where x_0 has mean 0 and the given variance, and ε ~ N(0, 1) is independent of it.

    variances: (K,), one for each principal component. alpha_bar: ᾱ, a float. Returns (K,), a gain for each.
    """


def errors_of_mean_and_sample(pictures, weights):
    """How far from the truth two answers are on average, if the truth is one of a few pictures.

    Given what was seen, x_0 is pictures[i] with probability weights[i]. The first answer is the mean, E[x_0]. The
    second is drawn from the same probabilities, independently of x_0. Here ‖·‖² is a sum over the pixels; the lesson's
    errors are means.

    pictures: (n, D). weights: (n,), which sum to 1. Returns (E‖x_0 − mean‖², E‖x_0 − sample‖²), two floats.
    """
