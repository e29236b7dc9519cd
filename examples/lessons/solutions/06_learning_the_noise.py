"""Solutions of lesson 6."""

import numpy as np


def loss_weights(alpha_bar):
    # x_t is known, so √ᾱ_t Δx_0 = −√(1 − ᾱ_t) Δε, and Δv = √ᾱ_t Δε − √(1 − ᾱ_t) Δx_0 = Δε (ᾱ_t + 1 − ᾱ_t) / √ᾱ_t
    return alpha_bar / (1 - alpha_bar), alpha_bar


def ancestral_step(x_t, epsilon, t, betas, noise):
    alpha_bar = np.prod(1 - betas[:t + 1])
    mean = (x_t - betas[t] / np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(1 - betas[t])
    return mean + np.sqrt(betas[t]) * noise if t > 0 else mean


def bound_term(x0, guess, t, betas):
    before, alpha_bar = np.cumprod(1 - betas)[[t - 1, t]]
    variance = (1 - before) / (1 - alpha_bar) * betas[t]
    difference = np.sqrt(before) * betas[t] / (1 - alpha_bar) * (x0 - guess)
    return (difference**2).mean() / (2 * variance) / np.log(2)


def corrected_averages(history, decay):
    s, averages = np.zeros_like(history[0]), []
    for k, w in enumerate(history, 1):
        s = decay * s + (1 - decay) * w
        averages.append(s / (1 - decay**k))  # 1 − d^k = (1 − d) (1 + d + … + d^(k − 1))
    return np.stack(averages)
