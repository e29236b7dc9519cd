"""Lesson 7. Back down

From noise to a picture some steps draw at random, others follow a curve. Where do they lead, and in how many passes?
"""

from course import digits, keep
from tqdm import tqdm

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from npdiffusion.metrics import frechet_distance
from npdiffusion.models import pretrained

# 1. Three steps. x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, as in lesson 5. Whatever the network predicts, it comes to a guess x̂_0
# of x_0, and to the noise that goes with it, ε̂ = (x_t − √ᾱ_t x̂_0) / √(1 − ᾱ_t). A step goes from a level t to one of
# less noise, not always its neighbour. In the code alpha_bar is ᾱ where it starts, alpha_bar_next where it arrives.


# Ancestral (Ho et al. 2020, eq. 7): draw from the Gaussian of x_{t-1} given x_t and x_0, for which x̂_0 stands.
def ancestral(x, x0, alpha_bar, alpha_bar_next, noise):
    alpha, shrink = alpha_bar / alpha_bar_next, (1 - alpha_bar_next) / (1 - alpha_bar)
    mean = np.sqrt(alpha_bar_next) * (1 - alpha) / (1 - alpha_bar) * x0 + np.sqrt(alpha) * shrink * x
    return mean + np.sqrt(shrink * (1 - alpha)) * noise


# DDIM (denoising diffusion implicit models, Song et al. 2021, eq. 12, nothing drawn): take the noise away, and put back
# less of the same. With y = x/√ᾱ and the noise on that scale, σ = √((1 − ᾱ)/ᾱ), y is x̂_0 + σ ε̂ before the step, and
# y′ = x̂_0 + σ′ ε̂ after it. That is y′ = y + (σ′ − σ) ε̂, Euler's step for the differential equation dy/dσ = ε̂, which
# is (y − x̂_0)/σ. In the limit of small steps x follows a curve, the solution of this equation.
def ddim(x, x0, alpha_bar, alpha_bar_next):
    epsilon = (x - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)
    return np.sqrt(alpha_bar_next) * x0 + np.sqrt(1 - alpha_bar_next) * epsilon


# DDIM holds x̂_0 fixed for the whole step. On the curve it changes, smoothly in λ = −log σ = ½ log(ᾱ / (1 − ᾱ)), half
# the log-SNR. DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) takes DDIM's step with x̂_0 as it will be half way, on the
# line through this guess and that of the level before. It costs no further pass of the network, only memory.
def dpm_solver(x, x0, x0_before, alpha_bar_before, alpha_bar, alpha_bar_next):
    l_before, l, l_next = (np.log(a / (1 - a)) / 2 for a in (alpha_bar_before, alpha_bar, alpha_bar_next))
    return ddim(x, x0 + (l_next - l) / (2 * (l - l_before)) * (x0 - x0_before), alpha_bar, alpha_bar_next)


def walk(method, estimate, x, levels, rng=None):
    """From x through the levels ᾱ: all x, and the guesses x̂_0 = estimate(x, ᾱ) at all but the last."""
    path, guesses = [x], []
    for k, (now, after) in enumerate(tqdm(list(zip(levels, levels[1:])), method, leave=False, delay=3)):
        guesses.append(estimate(x, now))
        if method == "ancestral":
            x = ancestral(x, guesses[k], now, after, rng.standard_normal(x.shape))
        elif method == "DDIM" or k == 0 or after == 1:  # there is no guess before, or λ is infinite
            x = ddim(x, guesses[k], now, after)
        else:
            x = dpm_solver(x, guesses[k], guesses[k - 1], levels[k - 1], now, after)
        path.append(x)
    return np.array(path), np.array(guesses)


# Each comes to what the package's scheduler comes to, here with a made-up network that answers tanh(2x) for x_0.
METHODS = {"ancestral": DDPMScheduler, "DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler}
for method, kind in METHODS.items():
    scheduler = kind(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")  # from t = 1023
    scheduler.set_timesteps(10)
    x, rng = np.linspace(-3, 3, 50), np.random.default_rng(0)
    path, _ = walk(method, lambda x, alpha_bar: np.tanh(2 * x), x, scheduler.alpha_bars, np.random.default_rng(0))
    for t in scheduler.timesteps:
        x = scheduler.step(np.tanh(2 * x), t, x, generator=rng).prev_sample
    assert np.abs(x - path[-1]).max() < 1e-5

# 2. Where nothing is unknown. Let the data be numbers from a mixture of three Gaussians. Then x_t is a mixture too, and
# E[x_0 | x_t] can be written down: guesses are perfect, and all errors are the walk's (medians over 5000 starts, as the
# few that begin near a fork err by much more). The levels of n steps lie evenly in λ, from ᾱ_1023 to ᾱ_0.
centres, shares, spread, alpha_bars = np.array([-1, 0.2, 0.9]), [0.4, 0.2, 0.4], 0.1, scheduler.alphas_cumprod
span = np.log(alpha_bars[[-1, 0]] / (1 - alpha_bars[[-1, 0]])) / 2
spaced = lambda n: 1 / (1 + np.exp(-2 * np.linspace(*span, n + 1)))


def mixture(x, alpha_bar):  # the density of x_t, but for a factor, and E[x_0 | x_t]
    variance, rest = alpha_bar * spread**2 + 1 - alpha_bar, x[:, None] - np.sqrt(alpha_bar) * centres
    parts = shares * np.exp(-rest**2 / (2 * variance)) + 1e-300  # of each Gaussian
    x0 = centres + np.sqrt(alpha_bar) * spread**2 / variance * rest  # its own E[x_0 | x_t]
    return parts.sum(1), (parts * x0).sum(1) / parts.sum(1)


perfect = lambda x, alpha_bar: mixture(x, alpha_bar)[1]
rng, chance, passes = np.random.default_rng(0), np.random.default_rng(1), [5, 10, 20, 40, 80, 160, 320]
starts = np.sort(rng.standard_normal(5000))
exact = walk("DPM-Solver++", perfect, starts, spaced(5000))[0][-1]  # sorted, as the curves never cross
off = lambda x: np.median(abs(np.sort(x) - exact), -1).mean()
errors = {m: np.array([off(walk(m, perfect, starts, spaced(n), rng)[0][-1]) for n in passes]) for m in METHODS}
for method, e in errors.items():
    print(f"error after {passes[0]}, {passes[3]}, {passes[-1]} passes: {e[0]:.4f} {e[3]:.5f} {e[-1]:.6f}  {method}")
assert all(1.8 < e < 2.3 for e in errors["DDIM"][2:-1] / errors["DDIM"][3:])  # twice the passes, half the error
assert all(3.5 < e < 5 for e in errors["DPM-Solver++"][3:-1] / errors["DPM-Solver++"][4:])  # a quarter
# The ancestral walk has no curve. Its sorted ends are compared with the exact ones; any 5000 draws are off by chance.
by_chance = off(chance.choice(centres, (20, 5000), p=shares) + spread * chance.standard_normal((20, 5000)))
print(f"error of 5000 exact draws: {by_chance:.4f}")

# 3. Digits, and the network that comes with the package. How good are 100 digits after few passes, at levels evenly
# spaced in t? The Fréchet distance compares the Gaussians that fit drawn and test digits best, here in their first 16
# principal components. (Lesson 8 takes features of pretrained("mnist-classifier"): they tell class and variety better
# than blur.) Hundreds of real digits, ten of each class, have a distance, too: what is left then is chance.
network, test, train, classes = pretrained("mnist-ddpm"), digits("test").images, digits("train"), np.arange(100) % 10
components = np.linalg.eigh(np.cov(test.reshape(-1, 1024).T))[1][:, -16:]
reduced = lambda images: images.reshape(-1, 1024) @ components
reference = reduced(test)
distance = lambda images: frechet_distance(reduced(images), reference)


def learned(x, alpha_bar, labels=classes):
    t = np.full(len(x), abs(alpha_bars - alpha_bar).argmin())
    with nd.no_grad():
        noise = network(nd.Tensor(x.astype(np.float32)), t, labels).data
    return ((x - np.sqrt(1 - alpha_bar) * noise) / np.sqrt(alpha_bar)).clip(-1, 1)  # pictures lie within ±1


few, start, quality = [3, 5, 8, 12], rng.standard_normal((100, 1, 32, 32)), {}
for method in METHODS:
    paths = [np.append(alpha_bars[np.linspace(1024, 0, n + 1)[:-1].astype(int) - 1], 1) for n in few]
    quality[method] = [distance(walk(method, learned, start, path, rng)[0][-1]) for path in paths]
    print(f"distance {np.round(quality[method], 1)} after {few} passes  {method}")
    assert quality[method][0] > 1.1 * quality[method][-1]
real = [train.images[[chance.choice(np.flatnonzero(train.labels == c)) for c in classes]] for _ in range(20)]
real_quality = np.mean(list(map(distance, real)))
print(f"distance {real_quality:.1f} of real digits, the mean of {len(real)} such hundreds")
assert quality["DPM-Solver++"][1] < quality["DDIM"][1]
# And the way of one digit, a five, through all 1024 levels.
nd.set_num_threads(1)  # for a single picture a second thread does not pay
path, guesses = walk("ancestral", lambda *x: learned(*x, [5]), start[5:6], np.append(alpha_bars[::-1], 1), rng)

# The figure. Above, from left to right: along the curves each start has its end. From 0.5, near a fork, six steps of
# DDIM end between two Gaussians, six of DPM-Solver++ nearer to the curve's end. Ancestral walks may end in any of the
# three. DDIM's error halves when its passes are doubled, DPM-Solver++'s is quartered; the ancestral one comes down to
# about chance (dotted). With the network, DPM-Solver++ is as near as real digits are (dashed) after 5 passes, DDIM
# after 8 (of 3 passes only one is not DDIM's in DPM-Solver++). Below: the five. At t = 1023 the error of ε is
# multiplied by σ = 178, then clipped. Soon the guess is a blurred five, its shape settled by t = 250.
figure = Figure(figsize=(15, 7), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.7, 1])
curves, wander, order, few_passes = top.subplots(1, 4)
panels = bottom.subplots(2, 12, subplot_kw=dict(xticks=[], yticks=[]))
density = np.sqrt([p / p.max() for p, _ in (mixture(np.linspace(-3.5, 3.5, 300), level) for level in spaced(400))])
for axes, method, n, colour in (curves, "DDIM", 9, "C0"), (wander, "ancestral", 5, "C2"):
    axes.imshow(density.T, extent=(*span, -3.5, 3.5), aspect="auto", origin="lower", cmap="Greys", alpha=0.5)
    ways, _ = walk(method, perfect, np.linspace(-2, 2, n), spaced(400), rng)
    axes.plot(np.linspace(*span, 401), ways, colour, lw=1, label=[f"{method}, 400 steps"] + [None] * (n - 1))
    axes.set(xlabel="λ, half the log-SNR", ylabel="x", ylim=(-3.5, 3.5), title=f"where {method} steps lead")
for method, style in zip(METHODS, ("C2^-", "C1o-", "C3s-")):
    if method != "ancestral":
        way, _ = walk(method, perfect, np.array([0.5]), spaced(6))
        curves.plot(np.linspace(*span, 7), way, style, label=f"{method}, 6 steps")
        print(f"from 0.5 to {way[-1, 0]:.2f} in six steps, {np.interp(0.5, starts, exact):.2f} on the curve  {method}")
    order.loglog(passes, errors[method], style, label=method)
    few_passes.plot(few, quality[method], style, label=method)
order.axhline(by_chance, color="C2", ls=":", label="5000 exact draws")
few_passes.axhline(real_quality, color="k", ls="--", lw=1, label="real digits")
order.set(xlabel="passes", ylabel="distance from where curves end (median)", title="error where nothing is unknown")
few_passes.set(xlabel="passes of the network", ylabel="Fréchet distance, 16 components", title="100 digits", xticks=few)
for axes in (curves, wander, order, few_passes):
    axes.legend(fontsize=9, loc="upper right")
for column, t in zip(panels.T, [1023, 850, 750, 650, 550, 450, 350, 250, 150, 80, 30, 0]):
    column[0].set_title(f"t = {t}")
    for axes, picture in zip(column, (path[1023 - t], guesses[1023 - t])):
        axes.imshow(picture[0, 0], cmap="gray", vmin=-1.5, vmax=1.5)
panels[0, 0].set_ylabel("$x_t$")
panels[1, 0].set_ylabel(r"$\hat{x}_0$")
keep(figure, __file__)

# Try: levels evenly spaced in λ for the digits, too: for n passes np.append(spaced(n - 1), 1). Which method loses
# nothing at 8 and 12, why do all lose at 3 and 5: where do the levels lie? Then exercises/07_back_down.py.
