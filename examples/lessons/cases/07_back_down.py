"""What the exercises of lesson 7 should return."""

from statistics import NormalDist

import numpy as np
from npdiffusion.diffusion import DDIMScheduler


def ddim_step():
    """The package's step, from level 1 to level 0."""
    rng = np.random.default_rng(0)
    for eta, shape in [(0.0, (1,)), (1.0, (1,)), (0.5, (2,)), (0.5, (2, 2))]:
        scheduler = DDIMScheduler(2, 0.2, 0.6, clip_sample=False, prediction_type="sample", eta=eta)
        x_t, x0, noise = np.round(rng.standard_normal((3, *shape)), 2)
        yield ((x_t, x0, 0.32, 0.8, eta, noise), scheduler.step(x0, 1, x_t, noise=noise).prev_sample)


def heun_step():
    """Data of variance 1, where D(x, σ) = x / (1 + σ²) and all is linear in x; to σ = 0 the guess itself.

    Slopes are x times a = σ / (1 + σ²), so the step multiplies x by 1 + h/2 (a + b (1 + h a)), with b at σ_next.
    """
    def gaussian(x, sigma):
        """D(x, σ) = x / (1 + σ²)"""
        return x / (1 + sigma**2)

    for x, sigma, sigma_next in [(1.0, 1.0, 0.0), (1.0, 2.0, 1.0), (-2.0, 1.0, 0.5), (3.0, 0.5, 0.0), (1.0, 3.0, 1.0)]:
        h, a, b = sigma_next - sigma, sigma / (1 + sigma**2), sigma_next / (1 + sigma_next**2)
        factor = 1 + h / 2 * (a + b * (1 + h * a)) if sigma_next else 1 / (1 + sigma**2)
        yield (gaussian, np.array([x, 2 * x]), sigma, sigma_next), np.array([factor * x, 2 * factor * x])


def spaced_timesteps():
    """By search, over ᾱ of which λ is known: the logistic function of 2λ."""
    for log_snr, n in [([2.0, 1.9, 1.0, 0.2, 0.0], 3), ([3.0, 2.9, 2.5, 1.2, 0.1, -0.9, -1.0], 5),
                       (list(4 - 9 * np.linspace(0, 1, 1000)**0.5), 10)]:
        levels = []
        for k in range(n):
            wanted = log_snr[-1] + k * (log_snr[0] - log_snr[-1]) / (n - 1)
            levels.append(min(range(len(log_snr)), key=lambda t: abs(log_snr[t] - wanted)))
        yield (1 / (1 + np.exp(-2 * np.array(log_snr))), n), np.array(levels)


def frechet_diagonal():
    """The least mean squared distance of pairs, one from each, when pairs are formed in every order of their values.

    That is what the distance means. In one dimension sorted pairs are best; the points here are quantiles.
    """
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])
    quantiles /= quantiles.std()
    rng = np.random.default_rng(0)
    for d in (1, 1, 2, 3):
        mean_a, std_a, mean_b, std_b = rng.integers(1, 6, (4, d)).astype(float)
        pairs = [((m + s * quantiles) - (n + r * quantiles))**2 for m, s, n, r in zip(mean_a, std_a, mean_b, std_b)]
        yield (mean_a, std_a, mean_b, std_b), sum(p.mean() for p in pairs)
