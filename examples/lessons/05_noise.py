"""Lesson 5. Noise: what a perfect denoiser does

A diffusion model is a denoiser, used many times. Before we train one, we ask what the best of all denoisers would do,
with the minimum mean squared error (MMSE). If all pictures that there are stand in a list, it fits in five lines.
"""

from course import digits, keep
from tqdm import tqdm

import numpy as np
from matplotlib.figure import Figure
from npdiffusion.diffusion import DDPMScheduler, posterior_mean

# 1. From a picture to noise
#
# x_0 is a picture, and ε is noise: every pixel drawn from N(0, 1). One step of the forward process shrinks the picture
# a little and adds a little noise, of variance β_t (Ho et al. 2020, eq. 2):
#
#     x_t = √(1 − β_t) x_{t-1} + √β_t ε
#
# Without the shrinking the variance would grow by β_t in each step; with it, the mean square of a pixel tends to 1.
# There are T = 1024 steps, and β_t grows from 0.0001 to 0.02. As in the package they are numbered from 0, so level t
# has had t + 1 steps. x_0 always is the clean picture, not that of level 0, whose noise is still invisible.

T = 1024
betas = np.linspace(0.0001, 0.02, T)

# Given x_0, a step multiplies the mean by √(1 − β_t), and turns the variance v into (1 − β_t) v + β_t. So 1 − v, 1 at
# first, is multiplied by 1 − β_t, as is the square of the factor before x_0. With ᾱ_t = (1 − β_0) ⋯ (1 − β_t), all
# steps up to t can be done at once (eq. 4):
#
#     x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

alphas_cumprod = np.cumprod(1 - betas)
factor, variance = 1.0, 0.0
for beta, alpha_bar in zip(betas, alphas_cumprod):
    factor, variance = np.sqrt(1 - beta) * factor, (1 - beta) * variance + beta
    assert np.isclose(factor, np.sqrt(alpha_bar)) and np.isclose(variance, 1 - alpha_bar)
assert np.allclose(alphas_cumprod, DDPMScheduler().alphas_cumprod, rtol=1e-12)

# What is left of the picture, against the noise, is the signal-to-noise ratio SNR = ᾱ_t / (1 − ᾱ_t).

snr = alphas_cumprod / (1 - alphas_cumprod)
print(f"SNR at t = 0: {snr[0]:.0f}, at t = {T - 1}: {snr[-1]:.1e}; it is 1 at t = {abs(np.log(snr)).argmin()}")

# 2. The best guess is a mean
#
# Somebody sees x_t and guesses x_0. Which guess D(x_t) has the least squared error on average? Many pictures x_0 could
# have become this x_t. Let m = E[x_0 | x_t] be their mean, each weighted by its probability given x_t. Then
#
#     E ‖x_0 − D‖² = E ‖x_0 − m‖² + E ‖m − D‖²
#
# as x_0 − m is zero on average for each x_t, which fixes m − D. The first term is not ours to change, and the second is
# 0 for D = m. So whoever minimises the squared error learns the mean of all pictures that are still possible.
#
# Let the pictures be a bank of N digits x_1 … x_N, all equally likely. By Bayes' rule the probability of digit i given
# x_t is proportional to the density of the noise that x_t would then contain, which is Gaussian:
#
#     w_i ∝ exp(−‖x_t − √ᾱ_t x_i‖² / (2 (1 − ᾱ_t))),     E[x_0 | x_t] = Σ_i w_i x_i


def weights(x_t, alpha_bar, bank):
    """(M, N): the probability of each of the N digits of the bank, given each of M noisy pictures; both flat."""
    squared = (x_t**2).sum(1)[:, None] - 2 * np.sqrt(alpha_bar) * x_t @ bank.T + alpha_bar * (bank**2).sum(1)
    logits = -squared / (2 * (1 - alpha_bar))
    w = np.exp(logits - logits.max(1, keepdims=True))  # the largest is 1: no overflow
    return w / w.sum(1, keepdims=True)


bank = digits().images[:2000].reshape(2000, -1).astype(np.float64)
rng = np.random.default_rng(0)
x0 = bank[rng.integers(len(bank), size=500)]
noise = rng.standard_normal(x0.shape)


def noisy(x0, noise, t):
    return np.sqrt(alphas_cumprod[t]) * x0 + np.sqrt(1 - alphas_cumprod[t]) * noise


x_t = noisy(x0, noise, 400)
assert np.allclose(weights(x_t, alphas_cumprod[400], bank) @ bank, posterior_mean(x_t, alphas_cumprod[400], bank))

# 3. Nobody beats it
#
# Rivals, over all levels: the noisy picture as it is, brought back to its scale, x_t / √ᾱ_t; the most probable digit of
# the bank; a digit drawn from the bank with the weights as probabilities; the mean of all digits, which does not look
# at x_t; and the same mean by somebody who is too sure of the weights, w² in place of w, or not sure enough, √w.
# The drawn digit errs twice as much as the mean, in expectation exactly: given x_t, it and the truth are independent
# draws from the same distribution. A sampler cannot be a best guess, and a best guess cannot be a sampler.
#
# The perplexity exp(−Σ_i w_i log w_i) is the number of digits that share the weight: 1 if one has it all, N if all do.

levels = np.unique(np.append(np.arange(0, T, 40), T - 1))
errors, shared = {}, []
for t in tqdm(levels, "levels"):
    x_t = noisy(x0, noise, t)
    w = weights(x_t, alphas_cumprod[t], bank)
    drawn = (w.cumsum(1) > rng.random((len(w), 1))).argmax(1)
    guesses = {"the mean E[x_0 | x_t]": w @ bank, "the most probable digit": bank[w.argmax(1)],
               "a digit drawn by its weight": bank[drawn], "the noisy picture": x_t / np.sqrt(alphas_cumprod[t]),
               "the average digit": np.broadcast_to(bank.mean(0), x0.shape),
               "too sure": w**2 / (w**2).sum(1, keepdims=True) @ bank,
               "not sure enough": np.sqrt(w) / np.sqrt(w).sum(1, keepdims=True) @ bank}
    for name, guess in guesses.items():
        errors.setdefault(name, []).append(((guess - x0)**2).mean())
    shared.append(np.exp(-(w * np.log(w + 1e-300)).sum(1).mean()))
errors, shared = {name: np.array(e) for name, e in errors.items()}, np.array(shared)
best = errors["the mean E[x_0 | x_t]"]
doubtful = shared > 5  # where x_t leaves several digits possible, rivals do worse by more than chance
for name, e in errors.items():
    assert (best < e + 1e-3).all() and (e is best or best[doubtful].mean() < 0.999 * e[doubtful].mean()), name
    print(f"squared error per pixel at t = {levels[doubtful][0]}: {e[doubtful][0]:6.3f}  {name}")
assert np.isclose(errors["a digit drawn by its weight"][doubtful].mean(), 2 * best[doubtful].mean(), rtol=0.1)

# One look at pure noise gives the average digit: at t = T − 1 all weights are about 1/N. No network that minimises the
# squared error, however good, can do otherwise. That is why sampling takes many looks.

away = np.sqrt(((posterior_mean(x_t, alphas_cumprod[-1], bank) - bank.mean(0))**2).mean())
print(f"at t = {T - 1} the guess is {away:.4f} from the average digit; {shared[-1]:.0f} of {len(bank)} digits share it")
print(f"one digit has nearly all the weight (a number below 1.1) up to t = {levels[shared < 1.1].max()}")
assert away < 0.1 * np.sqrt(((bank - bank.mean(0))**2).mean()) and shared[0] < 1.01 and shared[-1] > 0.9 * len(bank)

# The figure, for MNIST: a digit under more and more noise, always the same ε, and what can be told from it. Up to
# t = 440 the mean is this digit: no other one of the bank fits what we see. Then the mean is a blend. It is blurred
# because the possible digits differ, not because the denoiser is weak. The most probable digit stays sharp, and becomes
# a wrong one. At the end the mean is the average digit. Below: the mean has the least error at every level, a drawn
# digit twice that. Which one of the bank it was is lost from t = 400 to t = 700, as the SNR falls from 1/4 to 1/130.

shown = [0, 120, 240, 360, 440, 500, 560, 640, 760, T - 1]
x_t = np.stack([noisy(x0[4], noise[4], t) for t in shown])
each = [weights(x_t[i:i + 1], alphas_cumprod[t], bank)[0] for i, t in enumerate(shown)]
rows = {"noisy digit $x_t$": x_t, "mean $E[x_0 | x_t]$": np.stack(each) @ bank,
        "most probable": bank[np.argmax(each, 1)]}
figure = Figure(figsize=(11, 7), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.05])
for axes, (name, pictures) in zip(top.subplots(3, len(shown)), rows.items()):
    for panel, picture, t in zip(axes, pictures, shown):
        panel.imshow(picture.reshape(32, 32), cmap="gray", vmin=-1.5, vmax=1.5)
        panel.set(xticks=[], yticks=[], title=f"t = {t}" if pictures is x_t else "")
    axes[0].set_ylabel(name, fontsize=9)
error, number = bottom.subplots(1, 2)
for name, e in errors.items():
    error.plot(levels, e, "--" if "sure" in name else ".-", label=name.replace("E[x_0 | x_t]", "$E[x_0 | x_t]$"),
               lw=2.5 if e is best else 1.2)
error.set(ylim=(-0.02, 0.5), xlabel="level t", ylabel="squared error per pixel",
          title="how far each guess is from $x_0$")
error.legend(loc="lower right", fontsize=7)
number.semilogy(levels, shared, ".-", label="digits that share the weight")
number.axhline(len(bank), color="0.6", ls=":", label=f"all {len(bank)} of the bank")
number.semilogy(range(T), snr, color="C1", label="SNR")
number.set(ylim=(2e-5, 2e4), xlabel="level t", ylabel="number of digits; SNR", title="where identity is lost")
number.legend(fontsize=8)
keep(figure, __file__)

# Try: let x0 be digits that the bank does not have, of digits("test").images, and take the assertions of part 3 out.
# The mean over the bank is then not the best of guesses any more: which rivals beat it, at which levels, and why those?
# Then the exercises: exercises/05_noise.py.
