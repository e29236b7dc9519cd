"""Solutions of lesson 9."""

import numpy as np


def gaussian_kl(mean_q, logvar_q, mean_p, logvar_p):
    # log q − log p = ½ (log σ_p² − log σ_q² − (z − μ_q)²/σ_q² + (z − μ_p)²/σ_p²), and under q the mean of (z − μ_q)² is
    # σ_q², that of (z − μ_p)² is σ_q² + (μ_q − μ_p)²
    apart = np.exp(logvar_q) + (mean_q - mean_p)**2
    return 0.5 * (logvar_p - logvar_q - 1 + apart / np.exp(logvar_p)).sum()


def reparametrised_gradient(g, logvar, noise):
    return g, g * noise * 0.5 * np.exp(0.5 * logvar)  # σ = exp(logvar/2), so dσ/dlogvar = σ/2


def wiener_gain(variances, alpha_bar):
    # 0 = d/dg E[(g x_t − x_0)²] = 2 E[x_t (g x_t − x_0)], so g = E[x_t x_0] / E[x_t²]
    return np.sqrt(alpha_bar) * variances / (alpha_bar * variances + 1 - alpha_bar)


def errors_of_mean_and_sample(pictures, weights):
    # E‖x_0 − y‖² = E‖x_0 − m‖² + E‖y − m‖² − 2 E⟨x_0 − m, y − m⟩, and of independent x_0 and y the last is 0
    error = weights @ ((pictures - weights @ pictures)**2).sum(1)
    return error, 2 * error
