"""What the exercises of lesson 5 should return."""

import numpy as np


def betas_from():
    """The β from which ᾱ was multiplied up, number by number."""
    for betas in ([0.5], [0.5, 0.2], [0.1, 0.2, 0.4], list(np.linspace(0.0001, 0.02, 1024))):
        products, product = [], 1.0
        for beta in betas:
            product *= 1 - beta
            products.append(product)
        yield (np.array(products),), np.array(betas)


def posterior():
    """The product of both densities on a fine grid."""
    x = np.linspace(-12, 12, 200001)
    for x0, x_t, alpha_bar, alpha_bar_prev in [(0.0, 1.0, 0.25, 0.5), (1.0, 0.0, 0.25, 0.5), (1.0, -2.0, 0.72, 0.9),
                                               (-1.0, 0.5, 0.01, 0.0125)]:
        alpha = alpha_bar / alpha_bar_prev
        density = np.exp(-(x - alpha_bar_prev**0.5 * x0)**2 / (2 * (1 - alpha_bar_prev))
                         - (x_t - alpha**0.5 * x)**2 / (2 * (1 - alpha)))
        mean = (density * x).sum() / density.sum()
        yield ((np.array([x0]), np.array([x_t]), alpha_bar, alpha_bar_prev),
               (np.array([mean]), (density * (x - mean)**2).sum() / density.sum()))


def _bank(rng, n, d, alpha_bar):
    """Points, a noisy one of them, and a function that gives the density of each point's noise."""
    points = rng.integers(-2, 3, (n, d)).astype(float)
    x_t = np.round(alpha_bar**0.5 * points[0] + (1 - alpha_bar)**0.5 * rng.standard_normal(d), 1)
    return points, x_t, lambda x: np.exp(-((x - alpha_bar**0.5 * points)**2).sum(1) / (2 * (1 - alpha_bar)))


def score():
    """Central differences of the logarithm of the density, for a bank of few points."""
    rng = np.random.default_rng(0)
    for n, d, alpha_bar in [(1, 1, 0.5), (2, 1, 0.36), (3, 2, 0.8), (5, 3, 0.2)]:
        points, x_t, densities = _bank(rng, n, d, alpha_bar)
        slope = [(np.log(densities(x_t + 1e-5 * e).sum()) - np.log(densities(x_t - 1e-5 * e).sum())) / 2e-5
                 for e in np.eye(d)]
        yield (x_t, densities(x_t) @ points / densities(x_t).sum(), alpha_bar), np.array(slope)


def posterior_covariance():
    """The weighted covariance of a bank of few points, by its definition."""
    rng = np.random.default_rng(1)
    for n, d, alpha_bar in [(2, 1, 0.36), (3, 2, 0.5), (6, 3, 0.2)]:
        points, x_t, densities = _bank(rng, n, d, alpha_bar)

        def denoiser(x):
            return densities(x) @ points / densities(x).sum()

        w, rest = densities(x_t) / densities(x_t).sum(), points - denoiser(x_t)
        yield (denoiser, x_t, alpha_bar), sum(w_i * np.outer(r, r) for w_i, r in zip(w, rest))
