"""Lesson 10. The same thing as a flow

Diffusion was told with levels of noise, schedules and a network that predicts ε. Newer papers draw straight lines from
noise to data and learn a velocity. How much of that is new, and what can a network of DDPM do with it untrained?
"""

from course import keep

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion import functional as F, nn, optim
from npdiffusion.diffusion import DDPMScheduler, posterior_mean
from npdiffusion.models import pretrained
from tqdm import tqdm

# 1. One network seen four ways
#
# Here t runs from 0, the data, to 1, noise ε ~ N(0, I), on a straight line (Lipman et al. 2023; Liu et al. 2023):
#
#     x_t = (1 − t) x_0 + t ε,      u = dx_t/dt = ε − x_0,      so x_0 = x_t − t u and ε = x_t + (1 − t) u.
#
# DDPM's x = √ᾱ x_0 + √(1 − ᾱ) ε mixes the same two: over k = √ᾱ + √(1 − ᾱ) it is x_t, at t = √(1 − ᾱ)/k. Given x, any
# of ε, x_0, v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022) and u tells the others, linearly, so it does for means and for
# estimates of them, too. A network that predicts one predicts all four.

alpha_bars, rng = DDPMScheduler().alphas_cumprod, np.random.default_rng(0)
k = np.sqrt(alpha_bars) + np.sqrt(1 - alpha_bars)
times = np.sqrt(1 - alpha_bars) / k  # of the flow, for each of DDPM's levels
x0, epsilon = rng.standard_normal((2, 5, 1, 4, 4))
for level in (0, 300, 1023):
    x, v = (make(x0, epsilon, level) for make in (DDPMScheduler().add_noise, DDPMScheduler().get_velocity))
    for kind, answer in (("epsilon", epsilon), ("sample", x0), ("v_prediction", v)):
        estimate = DDPMScheduler(prediction_type=kind, clip_sample=False).predict_original_sample(answer, level, x)
        assert np.allclose((x / k[level] - estimate) / times[level], epsilon - x0, atol=1e-9)

# 2. Lines cross, the flow does not
#
# x_t alone does not tell on which line it lies. Least squares answers with the mean of all lines through it,
# u(x, t) = E[ε − x_0 | x_t = x] = (x − E[x_0 | x_t = x])/t, and points that move so have, at any t, the density of x_t
# (Lipman et al. 2023, theorem 1). If the data are points x_i, u is known: E[x_0 | x_t = x] weights them by
# exp(−|x − (1 − t) x_i|²/2t²), DDPM's posterior mean at another scale. Paths of a flow never cross, as u(x, t) has one
# value. Lines do, and where they do, paths bend.


def exact(x, t, data):
    """u(x, t) where the data are the points data (K, D); x: (N, D)."""
    w = -((x[:, None] - (1 - t) * data)**2).sum(2) / (2 * t * t)
    w = np.exp(w - w.max(1, keepdims=True))
    return (x - w @ data / w.sum(1, keepdims=True)) / t


def euler(u, x, times):
    """All points of the paths with dx/dt = u(x, t), from x at times[0] on."""
    path = [x]
    for now, after in zip(times, times[1:]):
        path.append(path[-1] + (after - now) * u(path[-1], now))
    return np.stack(path)


points = np.array([[-1.2], [0.2], [1.0]])  # a data set of three numbers
noise, ends = np.sort(rng.standard_normal((40, 1)), 0), points[rng.integers(3, size=40)]
mean = posterior_mean(k[500] * noise, float(alpha_bars[500]), points)
assert np.allclose(exact(noise, times[500], points), (noise - mean) / times[500])
lines = np.stack([t * noise + (1 - t) * ends for t in np.linspace(1, 0, 201)])
paths = euler(lambda x, t: exact(x, t, points), noise, np.linspace(1, 0, 201))
swapped = [(np.diff(p[-1, :, 0]) < -1e-6).sum() for p in (lines, paths)]
print(f"neighbours that change places: {swapped[0]} on lines, {swapped[1]} in the flow")
assert swapped[0] > 5 and swapped[1] == 0

# At t = 1, x says nothing of x_0: one Euler step of length 1 ends in the mean of the data. With n steps the error falls
# as 1/n (Euler's method is of first order), measured here at t = 0.2.

assert np.allclose(euler(lambda x, t: exact(x, t, points), noise, [1, 0])[-1], points.mean())
end = {n: euler(lambda x, t: exact(x, t, points), noise, np.linspace(1, 0.2, n + 1))[-1] for n in (8, 16, 32, 64, 4096)}
errors = {n: np.abs(end[n] - end[4096]).mean() for n in (8, 16, 32, 64)}
print("error of Euler's steps:", ", ".join(f"{error:.4f} with {n}" for n, error in errors.items()))
assert all(1.6 < errors[n] / errors[2 * n] < 2.5 for n in (8, 16, 32))

# 3. A velocity, learned
#
# 720 points on a figure of eight in the plane, a network of two hidden layers, and as loss the squared distance from
# ε − x_0. Even the best u leaves of it how much the lines through a point differ.

curve = np.array([(1.3 * np.sin(2 * angle), 2 * np.cos(angle)) for angle in np.arange(720) * np.pi / 360])
nd.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))


def learned(x, t):
    with nd.no_grad():
        return model(nd.Tensor(np.append(x, np.broadcast_to(t, (len(x), 1)), 1).astype(np.float32))).data


def batch(n):
    x0, epsilon, t = curve[rng.integers(720, size=n)], rng.standard_normal((n, 2)), rng.uniform(0, 1, (n, 1))
    return np.append((1 - t) * x0 + t * epsilon, t, 1).astype(np.float32), (epsilon - x0).astype(np.float32)


adam = optim.Adam(model.parameters(), lr=3e-3)
for step in tqdm(range(5000), "training"):
    adam.lr = 3e-3 * (1 - step / 5000)
    x, u = batch(512)
    adam.zero_grad()
    F.mse_loss(model(nd.Tensor(x)), nd.Tensor(u)).backward()
    adam.step()
x, u = batch(4000)
best = np.concatenate([exact(row[None, :2], row[2], curve) for row in x])
losses = [((answer - u)**2).mean() for answer in (learned(x[:, :2], x[:, 2:]), best)]
flow = euler(learned, rng.standard_normal((300, 2)), np.linspace(1, 0, 65))
off = [np.median(np.sqrt(((x[:, None] - curve)**2).sum(2).min(1))) for x in (flow[0], flow[-1])]
print(f"loss {losses[0]:.3f}, exact {losses[1]:.3f}; median distance from the curve {off[0]:.2f}, then {off[1]:.2f}")
assert losses[1] < losses[0] < 1.15 * losses[1] and off[1] < off[0] / 2.5

# 4. A network of DDPM is a velocity network
#
# By part 1: look up the level with √ᾱ : √(1 − ᾱ) = (1 − t) : t, multiply x by k, ask for ε, and turn it into u. Nothing
# is trained. We begin at t = 0.98: at the last level x_0 has more than a hundred times the error of ε.

network, judge, labels = pretrained("mnist-ddpm"), pretrained("mnist-classifier"), np.arange(20) % 10


def velocity(x, t):
    level = int(np.abs(times - t).argmin())
    ddpm = np.float32(k[level]) * x
    with nd.no_grad():
        epsilon = network(nd.Tensor(ddpm), level, labels).data
    return (x - DDPMScheduler().predict_original_sample(epsilon, level, ddpm)) / np.float32(t)


noise, steps = rng.standard_normal((20, 1, 32, 32), dtype=np.float32), (1, 2, 4, 8, 16, 32, 64)
drawn = [euler(velocity, np.float32(0.98) * noise, np.linspace(0.98, 0, n + 1, dtype=np.float32))[-1]
         for n in tqdm(steps, "digits")]
away = [np.sqrt(np.square(x - drawn[-1]).mean()) for x in drawn]
apart = [np.sqrt(np.square(x[:10] - x[10:]).mean()) for x in drawn]  # two of each class
right = [(judge(nd.Tensor(x)).data.argmax(1) == labels).mean() for x in drawn]
for row in zip(steps, right, away, apart):
    print("{:2d} steps: {:.0%} as told; {:.3f} from those of 64, {:.3f} between two of a class".format(*row))
assert min(right[3:]) > 0.7 and all(np.diff(away) < 0) and away[5] < away[0] / 3 and apart[0] < 0.75 * apart[-1]

# The figure. Top: noise (t = 1) joined to three numbers by lines, which cross; their flow, which bends so as not to; a
# velocity learned in the plane. Below, digits: one step gives the mean of a class, a few give one of it.

figure = Figure(figsize=(12, 8.2), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.15])
crossing, flowing, plane = top.subplots(1, 3)
for axes, p, title in ((crossing, lines, "lines from noise to three numbers"), (flowing, paths, "the flow they make")):
    axes.plot(np.linspace(1, 0, 201), p[:, :, 0], color="C0", lw=0.8)
    axes.plot([0, 0, 0], points, "o", color="C3", clip_on=False, zorder=3)
    axes.set(xlim=(1, 0), ylim=(-2.5, 2.5), xlabel="t", ylabel="x", title=title)
plane.plot(*flow[:, :100].T.swapaxes(1, 2), color="C0", lw=0.4)
plane.plot(*curve.T, "k", *flow[-1].T, "C3.", lw=0.8)
plane.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", title="a velocity learned in the plane")
axes = bottom.subplots()
axes.imshow(np.block([[np.pad(x[0], 1, constant_values=1) for x in row[:16]] for row in drawn[:-1]]), cmap="gray")
axes.set(yticks=34 * np.arange(6) + 16.5, yticklabels=steps[:-1], xticks=[], ylabel="Euler steps",
         title="digits drawn along straight lines by a network of DDPM")
keep(figure, __file__)

# Try: pair noise and data of part 2 in sorted order. What is left to bend? Exercises: exercises/10_flow_matching.py.
