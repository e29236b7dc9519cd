"""Exercises of lesson 5: what else the noise tells. Grade them with python examples/lessons/check.py 5"""

import numpy as np


def betas_from(alphas_cumprod):
    """The variances β_t of the single steps, from ᾱ_t = (1 − β_0) ⋯ (1 − β_t).

    Before the first step nothing has happened: ᾱ is 1 there.

    alphas_cumprod: (T,), falling. Returns (T,).
    """


def posterior(x0, x_t, alpha_bar, alpha_bar_prev):
    """Mean and variance of q(x_{t-1} | x_t, x_0): where x_t came from, if the end of the walk back is known.

    Given x_0, x_{t-1} is N(√ᾱ_{t-1} x_0, 1 − ᾱ_{t-1}); given x_{t-1}, x_t is N(√α_t x_{t-1}, 1 − α_t), where
    α_t = ᾱ_t / ᾱ_{t-1}. As a function of x_{t-1} the posterior is the product of both densities (Bayes): precisions,
    1 / variance, add up (Ho et al. 2020, eq. 6 and 7).

    x0, x_t: arrays of one shape. alpha_bar, alpha_bar_prev: ᾱ_t and ᾱ_{t-1}, numbers.
    Returns the mean, an array of that shape, and the variance, a number.
    """


def score(x_t, x0_mean, alpha_bar):
    """∇ log p(x_t), the direction in which noisy pictures become more probable, from the posterior mean.

    p(x_t) = Σ_i p(i) N(x_t; √ᾱ_t x_i, 1 − ᾱ_t). Take the gradient of its logarithm: weights appear, and then their
    mean (Tweedie's formula). So whoever has a perfect denoiser knows the score, and the other way round.

    x_t, x0_mean: arrays of one shape, x0_mean = E[x_0 | x_t]. alpha_bar: ᾱ_t. Returns an array of that shape.
    """


def posterior_covariance(denoiser, x_t, alpha_bar, h=1e-4):
    """How sure a perfect denoiser is: Cov[x_0 | x_t], measured by asking it about neighbours of x_t.

    The more the guess moves with x_t, the more pictures are possible:

        Cov[x_0 | x_t] = (1 − ᾱ_t) / √ᾱ_t  ∂E[x_0 | x_t] / ∂x_t

    denoiser: a function of x_t (D,) that returns E[x_0 | x_t] (D,). x_t: (D,). alpha_bar: ᾱ_t. h: move each pixel in
    turn by ±h, and take half the difference over h. Returns (D, D), row i for pixel i of x_0.
    """
