"""Solutions of lesson 7."""

import numpy as np


def ddim_step(x_t, x0, alpha_bar, alpha_bar_prev, eta, noise):
    epsilon = (x_t - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)
    sigma = eta * np.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
    return np.sqrt(alpha_bar_prev) * x0 + np.sqrt(1 - alpha_bar_prev - sigma**2) * epsilon + sigma * noise


def heun_step(denoiser, x, sigma, sigma_next):
    slope, h = (x - denoiser(x, sigma)) / sigma, sigma_next - sigma
    euler = x + h * slope
    if sigma_next == 0:
        return euler
    slope_next = (euler - denoiser(euler, sigma_next)) / sigma_next
    return x + h * (slope + slope_next) / 2


def spaced_timesteps(alphas_cumprod, n):
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    wanted = np.linspace(log_snr[-1], log_snr[0], n)
    return abs(log_snr - wanted[:, None]).argmin(1)


def frechet_diagonal(mean_a, std_a, mean_b, std_b):
    # Σ_i (v_a + v_b − 2 √(v_a v_b)) = Σ_i (s_a − s_b)², with the variances v = s²
    return ((mean_a - mean_b)**2 + (std_a - std_b)**2).sum()
