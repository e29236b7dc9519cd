"""What the exercises of lesson 8 should return."""

import numpy as np


def guided_x0():
    """By way of ε: a picture and its noise from each v, the rule for ε, and x_0 from that."""
    rng = np.random.default_rng(0)
    for shape, alpha_bar, s in [((1,), 0.64, 1.0), ((1,), 0.64, 0.0), ((1,), 0.64, 2.0), ((2,), 0.36, 3.0),
                                ((2, 1, 2, 2), 0.1, 1.5)]:
        x, v_none, v_label = rng.integers(-5, 6, (3, *shape)).astype(float)
        a, b = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)

        def epsilon(v):  # x = a x_0 + b ε and v = a ε − b x_0, two equations
            return np.linalg.solve([[a, b], [-b, a]], np.stack([x.ravel(), v.ravel()]))[1].reshape(shape)

        guided = epsilon(v_none) + s * (epsilon(v_label) - epsilon(v_none))
        yield (x, v_none, v_label, alpha_bar, s), (x - b * guided) / a


def drop_labels():
    """One by one."""
    rng = np.random.default_rng(0)
    for n, probability in [(1, 0.5), (2, 0.3), (3, 0.0), (3, 1.0), (8, 0.1), (8, 0.4)]:
        labels, noise = rng.integers(1, 10, n), rng.random(n)
        noise[0] = 0.05  # one at least is dropped, if any can be
        yield ((labels, noise, probability, 10),
               np.array([10 if u < probability else label for label, u in zip(labels, noise)]))


def classifier_score():
    """Central differences of log p(c | x)."""
    rng = np.random.default_rng(0)
    for n, d, k, sigma in [(1, 1, 1, 1.0), (1, 1, 2, 1.0), (1, 1, 2, 2.0), (1, 2, 2, 0.5), (2, 2, 3, 1.5)]:
        x, means, c = rng.integers(-2, 3, (n, d)) / 2, np.arange(k)[:, None] + rng.integers(-1, 2, (k, d)) / 2, k - 1

        def log_p(x):
            density = np.exp(-((x - means)**2).sum(1) / (2 * sigma**2))
            return np.log(density[c] / density.sum())

        yield ((x, means, sigma, c),
               np.array([[(log_p(row + h) - log_p(row - h)) / 2e-5 for h in 1e-5 * np.eye(d)] for row in x]))


def without_label():
    """Classes that are points m_c: x = √ᾱ m_c + √(1 − ᾱ) ε has one ε for each. Their mean, weighted by density."""
    rng = np.random.default_rng(0)
    for k, n, d, alpha_bar in [(1, 1, 1, 0.5), (2, 1, 1, 0.5), (2, 2, 1, 0.5), (3, 2, 2, 0.9), (3, 1, 2, 0.999)]:
        means, x = rng.integers(-2, 3, (k, d)).astype(float), rng.integers(-2, 3, (n, d)) / 2
        epsilons = np.array([(x - np.sqrt(alpha_bar) * m) / np.sqrt(1 - alpha_bar) for m in means])
        log_likelihoods = -(epsilons**2).sum(2) / 2
        expected = np.zeros((n, d))
        for i in range(n):
            weights = [np.exp(value - log_likelihoods[:, i].max()) for value in log_likelihoods[:, i]]
            expected[i] = sum(w * epsilon for w, epsilon in zip(weights, epsilons[:, i])) / sum(weights)
        yield (epsilons, log_likelihoods), expected
