"""Exercises of lesson 6: how to step and to count. Grade them with python examples/lessons/check.py 6"""

import numpy as np


def loss_weights(alpha_bar):
    """What an error in x_0 or in v counts in the loss of ε.

    A network may predict x_0, or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0, in place of ε. Given x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, each
    follows from each other, and so do their errors. Find a and b with

        ‖ε − ε̂‖² = a ‖x_0 − x̂_0‖² = b ‖v − v̂‖²

    where ε̂, x̂_0 and v̂ stand for the same guess. alpha_bar: ᾱ_t, a number or an array. Returns (a, b), each like it.
    """


def ancestral_step(x_t, epsilon, t, betas, noise):
    """One step of Ho et al. 2020, algorithm 2, from ε directly, without the detour over a clipped x̂_0:

        x_{t-1} = (x_t − β_t / √(1 − ᾱ_t) ε) / √(1 − β_t) + σ_t z

    with σ_t² = β_t, which does as well as the lesson's variance (section 3.2), and no noise in the last step, which is
    the one from t = 0.

    x_t, epsilon, noise (z): arrays of one shape. t: an int, from 0 to T − 1. betas: (T,). Returns an array like x_t.
    """


def bound_term(x0, guess, t, betas):
    """What the step from level t costs in bits per dimension: KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)).

    Both are Gaussians of the same variance β̃_t = (1 − ᾱ_{t-1}) / (1 − ᾱ_t) β_t. Both means hold the same x_t; they
    differ as x_0 and its guess do, which stand in them with the factor √ᾱ_{t-1} β_t / (1 − ᾱ_t) (Ho et al., eq. 7).
    The divergence of two such Gaussians is ‖difference of the means‖² / (2 · variance), in nats; a bit is log 2 nats.

    x0, guess: arrays of one shape, of D numbers. t: an int ≥ 1. betas: (T,). Returns a number: bits divided by D.
    """


def corrected_averages(history, decay):
    """Moving averages of weights, as they are after each of K steps, without the bias to where they started.

    Start with s = 0, and at each step let s = decay · s + (1 − decay) · w. After k steps the weights in this sum add up
    to less than 1: divide by what they add up to (Kingma & Ba 2015, section 3). s itself goes on undivided.

    history: (K, …), the weights after each step. Returns an array of that shape.
    """
