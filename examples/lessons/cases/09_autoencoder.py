"""What the exercises of lesson 9 should return."""

import numpy as np


def gaussian_kl():
    """The integral of q (log q − log p), for each number of the code."""
    z, rng = np.linspace(-20, 20, 20001), np.random.default_rng(0)

    def log_density(mean, logvar):
        return -0.5 * ((z - mean)**2 / np.exp(logvar) + logvar + np.log(2 * np.pi))

    known = [([0.0], [0.0], [1.0], [0.0]), ([0.0], [1.0], [0.0], [0.0]), ([0.0], [0.0], [0.0], [1.0]),
             ([1.0], [-1.0], [2.0], [1.0])]
    for arguments in [*(tuple(map(np.array, of)) for of in known), tuple(rng.uniform(-1, 1, (4, 3)).round(1))]:
        total = 0.0
        for mean_q, logvar_q, mean_p, logvar_p in zip(*arguments):
            log_q, log_p = log_density(mean_q, logvar_q), log_density(mean_p, logvar_p)
            total += (np.exp(log_q) * (log_q - log_p)).sum() * (z[1] - z[0])
        yield arguments, total


def reparametrised_gradient():
    """Central differences of ⟨g, z⟩."""
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 2), (2, 3)]:
        g, mean, logvar, noise = rng.uniform(0.5, 2, (4, *shape)).round(1)

        def loss(mean, logvar):
            return (g * (mean + np.sqrt(np.exp(logvar)) * noise)).sum()

        steps = 1e-6 * np.eye(g.size).reshape(-1, *shape)
        dmean = [(loss(mean + e, logvar) - loss(mean - e, logvar)) / 2e-6 for e in steps]
        dlogvar = [(loss(mean, logvar + e) - loss(mean, logvar - e)) / 2e-6 for e in steps]
        yield (g, logvar, noise), (np.reshape(dmean, shape), np.reshape(dlogvar, shape))


def wiener_gain():
    """Least squares over all pairs of x_0 = ±σ and ε = ±1, which have the right variances and no correlation."""
    for variances, alpha_bar in [([1.0], 0.5), ([4.0], 0.5), ([1.0], 0.9), ([0.0, 1.0], 0.2), ([0.1, 2.0, 9.0], 0.36)]:
        gains = []
        for variance in variances:
            x_0, noise = np.sqrt(variance) * np.array([1, 1, -1, -1]), np.array([1, -1, 1, -1])
            x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * noise
            gains.append(np.linalg.lstsq(x_t[:, None], x_0, rcond=None)[0][0])
        yield (np.array(variances), alpha_bar), np.array(gains)


def errors_of_mean_and_sample():
    """Sums over all truths, and over all pairs of truth and sample."""
    rng = np.random.default_rng(0)
    for pictures, weights in [([[0.0], [2.0]], [0.5, 0.5]), ([[0.0], [4.0]], [0.75, 0.25]),
                              ([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]], [0.5, 0.25, 0.25]),
                              (rng.integers(-3, 4, (4, 3)), [0.1, 0.2, 0.3, 0.4])]:
        pictures, weights = np.array(pictures, float), np.array(weights)
        mean = sum(w * x for w, x in zip(weights, pictures))
        of_mean = sum(w * ((x - mean)**2).sum() for w, x in zip(weights, pictures))
        of_sample = sum(w * v * ((x - y)**2).sum() for w, x in zip(weights, pictures)
                        for v, y in zip(weights, pictures))
        yield (pictures, weights), (of_mean, of_sample)
