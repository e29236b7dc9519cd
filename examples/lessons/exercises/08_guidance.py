"""Exercises of lesson 8: guidance in other words. Grade them with python examples/lessons/check.py 8"""

import numpy as np


def guided_x0(x, v_none, v_label, alpha_bar, s):
    """The guided estimate x̂_0 of a network that predicts v = √ᾱ ε − √(1 − ᾱ) x_0 instead of ε (Salimans & Ho 2022).

    At a given x = √ᾱ x_0 + √(1 − ᾱ) ε, what are ε and x_0 as functions of v? Both are affine, and guidance, too, is
    affine: what does that say of guiding v?

    x: x_t. v_none, v_label: the network's answers without and with the label, arrays like x. alpha_bar: ᾱ_t, 0 < ᾱ < 1.
    s: the scale of guidance of ε. Returns x̂_0, an array like x, not clipped.
    """


def drop_labels(labels, noise, probability, num_classes):
    """The labels that a training step sees, so that one network learns ε(x, c) and ε(x, ∅).

    Each label is replaced by num_classes, which stands for "no class", with the given probability: where its noise is
    below it.

    labels: (N,) integers 0 … num_classes − 1. noise: (N,) uniform on [0, 1). Returns (N,) integers.
    """


def classifier_score(x, means, sigma, c):
    """∇_x log p(c | x), of the best classifier of Gaussian classes: what guidance multiplies by s.

    Class k is N(m_k, σ² I), all classes are equally likely, so that p(k | x) = softmax_k(−|x − m_k|²/2σ²). Write
    log p(c | x) as a difference of two terms; the gradient of the second is a mean over the classes. No exponential
    vanishes here, as x is near the means.

    x: (N, D). means: (K, D), the m_k. sigma: σ. c: the class, an int. Returns (N, D).
    """


def without_label(epsilons, log_likelihoods):
    """ε(x, ∅) from the ε(x, c) of all classes, when these are equally likely.

    Both are conditional means: ε(x, c) = E[ε | x_t = x, c], ε(x, ∅) = E[ε | x_t = x]. The second is the mean of the
    first over c, each weighted by how likely it is once x has been seen.

    epsilons: (K, N, D), ε(x, c) of N points x for each of the K classes. log_likelihoods: (K, N), log p_t(x | c), which
    may be large and negative. Returns (N, D).
    """
