"""Lesson 7. Back down

From noise to a picture some steps draw at random, and others follow a curve. One network serves for all of them. Where
do they lead, and how many passes of the network does each way take?
"""

from course import digits, keep
from tqdm import tqdm

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion import Tensor
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from npdiffusion.metrics import frechet_distance
from npdiffusion.models import pretrained

# 1. Three steps. x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, as in lesson 5. Whatever the network predicts, it comes to a guess x̂_0
# of x_0, and to the noise that goes with it, ε̂ = (x_t − √ᾱ_t x̂_0) / √(1 − ᾱ_t). A step goes from the level with
# ᾱ = now to one of less noise, where ᾱ = then; they need not be neighbours.


# Ancestral (Ho et al. 2020, eq. 7): draw from the Gaussian of x_{t-1} given x_t and x_0, for which x̂_0 stands.
def ancestral(x, x0, now, then, z):
    alpha, shrink = now / then, (1 - then) / (1 - now)
    mean = np.sqrt(then) * (1 - alpha) / (1 - now) * x0 + np.sqrt(alpha) * shrink * x
    return mean + np.sqrt(shrink * (1 - alpha)) * z


# DDIM (Song et al. 2021, eq. 12, σ = 0): take the noise away, and put back less of the same. Nothing is drawn. In the
# limit of small steps x follows a curve, the solution of a differential equation.
def ddim(x, x0, now, then):
    return np.sqrt(then) * x0 + np.sqrt(1 - then) * (x - np.sqrt(now) * x0) / np.sqrt(1 - now)


# DDIM holds x̂_0 fixed for the whole step. On the curve it changes, smoothly in λ = ½ log(ᾱ / (1 − ᾱ)), half the
# log-SNR. DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) takes DDIM's step with x̂_0 as it will be half way, on the
# line through this guess and that of the level before. It costs no pass of the network, only memory.
def dpm_solver(x, x0, x0_before, before, now, then):
    l_before, l, l_then = (np.log(a / (1 - a)) / 2 for a in (before, now, then))
    return ddim(x, x0 + (l_then - l) / (2 * (l - l_before)) * (x0 - x0_before), now, then)


def walk(method, estimate, x, levels, rng=None):
    """From x through the levels ᾱ: all x, and the guesses x̂_0 = estimate(x, ᾱ) at all but the last."""
    path, guesses = [x], []
    for k, (now, then) in enumerate(tqdm(list(zip(levels, levels[1:])), method, leave=False, delay=3)):
        guesses.append(estimate(x, now))
        if method == "ancestral":
            x = ancestral(x, guesses[k], now, then, rng.standard_normal(x.shape))
        elif method == "DDIM" or k == 0 or then == 1:  # there is no guess before, or λ is infinite
            x = ddim(x, guesses[k], now, then)
        else:
            x = dpm_solver(x, guesses[k], guesses[k - 1], levels[k - 1], now, then)
        path.append(x)
    return np.array(path), np.array(guesses)


# Each comes to what the package's scheduler comes to, here with a made-up network that answers tanh(2x) for x_0.
METHODS = {"ancestral": DDPMScheduler, "DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler}
for method, kind in METHODS.items():
    scheduler = kind(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x, rng = np.linspace(-3, 3, 50), np.random.default_rng(0)
    path, _ = walk(method, lambda x, now: np.tanh(2 * x), x, scheduler.alpha_bars, np.random.default_rng(0))
    for t in scheduler.timesteps:
        x = scheduler.step(np.tanh(2 * x), t, x, generator=rng).prev_sample
    assert np.abs(x - path[-1]).max() < 1e-5

# 2. Where nothing is unknown. Let the data be numbers from a mixture of three Gaussians. Then x_t is a mixture too, and
# E[x_0 | x_t] can be written down: guesses are perfect, and all errors are the walk's (medians: near a fork they vary).
centres, shares, spread, table = np.array([-1, 0.2, 0.9]), np.array([0.4, 0.2, 0.4]), 0.1, scheduler.alphas_cumprod
ends = np.log(table[[-1, 0]] / (1 - table[[-1, 0]])) / 2
spaced = lambda n: 1 / (1 + np.exp(-2 * np.linspace(*ends, n + 1)))  # the levels of n steps, evenly in λ


def mixture(x, alpha_bar):  # the density of x_t, but for a factor, and E[x_0 | x_t]
    variance, rest = alpha_bar * spread**2 + 1 - alpha_bar, x[:, None] - np.sqrt(alpha_bar) * centres
    parts = shares * np.exp(-rest**2 / (2 * variance)) + 1e-300  # of each Gaussian
    x0 = centres + np.sqrt(alpha_bar) * spread**2 / variance * rest  # its own E[x_0 | x_t]
    return parts.sum(1), (parts * x0).sum(1) / parts.sum(1)


perfect = lambda x, alpha_bar: mixture(x, alpha_bar)[1]
rng, passes = np.random.default_rng(0), [5, 10, 20, 40, 80, 160, 320]
starts = np.sort(rng.standard_normal(5000))
exact = walk("DPM-Solver++", perfect, starts, spaced(5000))[0][-1]  # sorted, as the curves never cross
errors = {method: np.array([np.median(abs(np.sort(walk(method, perfect, starts, spaced(n), rng)[0][-1]) - exact))
                            for n in passes]) for method in METHODS}
for method, e in errors.items():
    print(f"error after {passes[0]}, {passes[3]}, {passes[-1]} passes: {e[0]:.4f} {e[3]:.5f} {e[-1]:.6f}  {method}")
assert all(1.8 < e < 2.3 for e in errors["DDIM"][2:-1] / errors["DDIM"][3:])  # twice the passes, half the error
assert all(3.5 < e < 5 for e in errors["DPM-Solver++"][3:-1] / errors["DPM-Solver++"][4:])  # a quarter

# 3. Digits, and the network that comes with the package. How good are 100 digits after few passes, at levels evenly
# spaced in t? The Fréchet distance compares the Gaussians that fit drawn and test digits best, here in their first 16
# principal components. (Features of pretrained("mnist-classifier") tell less: means over all pixels.) By chance 100
# real digits have a distance, too: compare only walks, all from the same noise. Grey pixels tell how much is blurred.
network, test, train = pretrained("mnist-ddpm"), digits("test").images, digits("train").images[:100]
components = np.linalg.eigh(np.cov(test.reshape(-1, 1024).T))[1][:, -16:]
reduced = lambda images: images.reshape(-1, 1024) @ components
distance = lambda images: frechet_distance(reduced(images), reduced(test))
grey = lambda images: (abs(images) < 0.8).mean()


def learned(x, alpha_bar):
    t = np.full(len(x), abs(table - alpha_bar).argmin())
    with nd.no_grad():
        noise = network(Tensor(x.astype(np.float32)), t, labels).data
    return ((x - np.sqrt(1 - alpha_bar) * noise) / np.sqrt(alpha_bar)).clip(-1, 1)  # as pictures end


few, labels, start, quality = [3, 5, 8, 12], np.arange(100) % 10, rng.standard_normal((100, 1, 32, 32)), {}
for method in METHODS:
    paths = [np.append(table[np.linspace(1024, 0, n + 1)[:-1].astype(int) - 1], 1) for n in few]
    drawn = [walk(method, learned, start, path, rng)[0][-1] for path in paths]
    quality[method], blur = list(map(distance, drawn)), list(map(grey, drawn))
    print(f"distance {np.round(quality[method], 1)}, grey pixels {np.round(blur, 3)} after {few} passes  {method}")
    assert quality[method][0] > 1.1 * quality[method][-1] and blur[0] > 1.2 * blur[-1]
print(f"distance {distance(train):.1f}, grey pixels {grey(train):.3f}, of 100 training digits")
assert quality["DPM-Solver++"][1] < quality["DDIM"][1]

# And the way of one digit, a five, through all 1024 levels. For a single picture a second thread does not pay.
nd.set_num_threads(1)
labels = np.array([5])
path, guesses = walk("ancestral", learned, start[5:6], np.append(table[::-1], 1), rng)

# The figure. Above, from left to right: along the curves each start has its end; of six steps, DDIM's miss the turn at
# a fork. Ancestral walks from these starts end anywhere, in the right proportions. DDIM's error halves when its passes
# are doubled, DPM-Solver++'s is quartered. With the network the order is the same at few passes; soon nothing is left
# to gain. Below: the five. Its shape is settled by t = 250; before, the guess is a blurred five, and then sharpens.
figure = Figure(figsize=(15, 7), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.7, 1])
curves, wander, order, reached = top.subplots(1, 4)
panels = bottom.subplots(2, 12, subplot_kw=dict(xticks=[], yticks=[]))
density = np.sqrt([p / p.max() for p, _ in (mixture(np.linspace(-2.5, 2.5, 300), level) for level in spaced(400))])
for axes, method, n, colour in (curves, "DDIM", 9, "C0"), (wander, "ancestral", 5, "C2"):
    axes.imshow(density.T, extent=(*ends, -2.5, 2.5), aspect="auto", origin="lower", cmap="Greys", alpha=0.5)
    ways, _ = walk(method, perfect, np.linspace(-2, 2, n), spaced(400), rng)
    axes.plot(np.linspace(*ends, 401), ways, colour, lw=1)
    axes.set(xlabel="λ, half the log-SNR", ylabel="x", title=f"{method} in 400 steps", ylim=(-2.5, 2.5))
for method, style in zip(METHODS, ("C2^-", "C1o-", "C3s-")):
    if method != "ancestral":
        way, _ = walk(method, perfect, np.array([0.5]), spaced(6))
        curves.plot(np.linspace(*ends, 7), way, style, label=f"{method}, 6 steps")
    order.loglog(passes, errors[method], style, label=method)
    reached.plot(few, quality[method], style, label=method)
order.set(xlabel="passes", ylabel="distance from where curves end (median)", title="error where nothing is unknown")
reached.set(xlabel="passes of the network", ylabel="Fréchet distance, 16 components", title="100 digits", xticks=few)
for axes in (curves, order, reached):
    axes.legend()
for column, t in zip(panels.T, [1023, 850, 750, 650, 550, 450, 350, 250, 150, 80, 30, 0]):
    column[0].set_title(f"t = {t}")
    for axes, picture in zip(column, (path[1023 - t], guesses[1023 - t])):
        axes.imshow(picture[0, 0], cmap="gray", vmin=-1.5, vmax=1.5)
panels[0, 0].set_ylabel("$x_t$")
panels[1, 0].set_ylabel(r"$\hat{x}_0$")
keep(figure, __file__)

# Try: levels evenly spaced in λ for the digits, too. Then the exercises: exercises/07_back_down.py.
