"""Exercises of lesson 7: more ways down. Grade them with python examples/lessons/check.py 7"""

import numpy as np


def ddim_step(x_t, x0, alpha_bar, alpha_bar_prev, eta, noise):
    """DDIM's step with a share of fresh noise (Song et al. 2021, eq. 12 and 16):

        x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1 − ᾱ_{t-1} − σ²) ε̂ + σ z
        σ = η √((1 − ᾱ_{t-1}) / (1 − ᾱ_t)) √(1 − ᾱ_t / ᾱ_{t-1})

    The noise that is put back has the variance 1 − ᾱ_{t-1} for every η, old and new together. ε̂ is what x̂_0 leaves of
    x_t. η = 0 draws nothing, η = 1 is the ancestral step.

    x_t, x0 (x̂_0), noise (z): arrays of one shape. alpha_bar, alpha_bar_prev: ᾱ_t and ᾱ_{t-1}. eta: η from 0 to 1.
    Returns an array of that shape.
    """


def heun_step(denoiser, x, sigma, sigma_next):
    """One step of Heun's method, of second order, with two passes (Karras et al. 2022, algorithm 1).

    On the scale of the picture, x = x_0 + σ ε, the curve's slope is dx/dσ = (x − D(x, σ)) / σ. Take Euler's step with
    the slope here, find the slope where it arrives, and take the step again with the mean of both. A step to
    σ_next = 0 is Euler's alone, as there is no slope there.

    denoiser: D(x, σ), a function that returns E[x_0 | x], an array like x. sigma > sigma_next ≥ 0: numbers.
    Returns x at sigma_next.
    """


def spaced_timesteps(alphas_cumprod, n):
    """n of the levels t, from T − 1 down to 0, as evenly spaced in λ = ½ log(ᾱ_t / (1 − ᾱ_t)) as can be.

    λ falls with t. For each of n values of λ, evenly spaced between those of both ends, take the level t whose λ is
    nearest. (n is so small that no two of them are the same.)

    alphas_cumprod: (T,), falling. n: at least 2. Returns n integers, falling.
    """


def frechet_diagonal(mean_a, std_a, mean_b, std_b):
    """Fréchet distance d² of two Gaussians with diagonal covariances.

    In general d² = ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½). Matrices that are diagonal commute: then it is
    short, and says how far means and standard deviations are apart.

    mean_a, std_a, mean_b, std_b: (D,), the means and standard deviations. Returns a number.
    """
