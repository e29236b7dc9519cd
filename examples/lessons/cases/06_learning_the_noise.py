"""What the exercises of lesson 6 should return."""

import numpy as np
from npdiffusion.diffusion import DDPMScheduler


def loss_weights():
    """Guesses of x_0, made to guesses of ε and v by what these are; then the ratios of their squared errors."""
    rng = np.random.default_rng(0)
    for alpha_bar in (0.5, 0.2, 0.9, 0.01):
        a, b = alpha_bar**0.5, (1 - alpha_bar)**0.5
        x0, epsilon, guess = rng.standard_normal((3, 8))
        noise = (a * x0 + b * epsilon - a * guess) / b  # which makes the same x_t of the guess
        v, velocity = a * epsilon - b * x0, a * noise - b * guess
        squared = ((epsilon - noise)**2).sum()
        yield (alpha_bar,), (squared / ((x0 - guess)**2).sum(), squared / ((v - velocity)**2).sum())


def ancestral_step():
    """The package's step with the variance β_t."""
    rng = np.random.default_rng(0)
    for t, shape in [(1, (1,)), (0, (1,)), (2, (2,)), (3, (2, 2))]:
        scheduler = DDPMScheduler(4, 0.1, 0.4, clip_sample=False, variance_type="fixed_large")
        x_t, epsilon, noise = np.round(rng.standard_normal((3, *shape)), 2)
        yield ((x_t, epsilon, t, np.array([0.1, 0.2, 0.3, 0.4]), noise),
               scheduler.step(epsilon, t, x_t, noise=noise).prev_sample)


def bound_term():
    """∫ q log(q / p) on a fine grid; both densities are products of Gaussians by Bayes' rule."""
    x, betas = np.linspace(-15, 15, 60001), np.array([0.1, 0.3, 0.2, 0.4])
    for x0, guess, t in [([1.0], [0.0], 1), ([1.0], [0.5], 2), ([0.0], [-1.0], 3), ([1.0, -1.0], [0.5, 0.0], 1)]:
        before = np.prod(1 - betas[:t])

        def log_density(end, x_t=0.3):  # of x_{t-1}, given x_t and x_0
            logs = (-(x - before**0.5 * end)**2 / (2 * (1 - before))
                    - (x_t - (1 - betas[t])**0.5 * x)**2 / (2 * betas[t]))
            return logs - np.log(np.exp(logs).sum())

        pairs = [(log_density(a), log_density(b)) for a, b in zip(x0, guess)]
        nats = sum((np.exp(q) * (q - p)).sum() for q, p in pairs)
        yield (np.array(x0), np.array(guess), t, betas), nats / np.log(2) / len(x0)


def corrected_averages():
    """Weighted means, with the weights decay^age."""
    rng = np.random.default_rng(0)
    for history, decay in [(np.array([3.0]), 0.9), (np.array([1.0, 4.0]), 0.5), (np.array([2.0, 2.0, 8.0]), 0.9),
                           (rng.integers(1, 10, (4, 2)).astype(float), 0.75)]:
        yield (history, decay), np.array([np.average(history[:k], axis=0, weights=decay**np.arange(k)[::-1])
                                          for k in range(1, len(history) + 1)])
