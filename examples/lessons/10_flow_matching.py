"""Lesson 10. The same thing as a flow

Denoising diffusion probabilistic models (DDPM, Ho et al. 2020) have levels of noise, and a network that predicts ε.
Newer papers draw straight lines from noise to data, and learn a velocity. How much of that is new, and what can a DDPM
network do with it untrained?
"""

from course import keep

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion import functional as F, nn, optim
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, posterior_mean
from npdiffusion.models import pretrained
from tqdm import tqdm

# 1. One network seen four ways
#
# Here t is a time, not a level: it runs from 0, the data, to 1, noise ε ~ N(0, I), on a straight line (Lipman et al.
# 2023 and Liu et al. 2023, whose t runs the other way):
#
#     x_t = (1 − t) x_0 + t ε,      u = dx_t/dt = ε − x_0,      so x_0 = x_t − t u and ε = x_t + (1 − t) u.
#
# DDPM's x = √ᾱ x_0 + √(1 − ᾱ) ε mixes the same two: divided by k = √ᾱ + √(1 − ᾱ) it is x_t, at t = √(1 − ᾱ)/k. Given
# x, any of ε, x_0, v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022) and u tells the others, linearly, so the same holds for
# their means, given x, and for estimates of these. A network that predicts one predicts all four.

schedule, rng = DDPMScheduler(), np.random.default_rng(0)
alpha_bars = schedule.alphas_cumprod
k = np.sqrt(alpha_bars) + np.sqrt(1 - alpha_bars)
times = np.sqrt(1 - alpha_bars) / k  # of the flow, for each of DDPM's levels
x0, epsilon = rng.standard_normal((2, 5, 1, 4, 4))
x, v = schedule.add_noise(x0, epsilon, 300), schedule.get_velocity(x0, epsilon, 300)
for kind, answer in (("epsilon", epsilon), ("sample", x0), ("v_prediction", v)):
    estimate = DDPMScheduler(prediction_type=kind, clip_sample=False).predict_original_sample(answer, 300, x)
    assert np.allclose((x / k[300] - estimate) / times[300], epsilon - x0)

# 2. Lines cross, the flow does not
#
# x_t alone does not tell on which line it lies. Least squares answers with the mean slope of all lines through it,
# u(x, t) = E[ε − x_0 | x_t = x] = (x − E[x_0 | x_t = x])/t, and points that start as noise and move so have, at any
# t, the density of x_t (Lipman et al. 2023, theorem 1). If the data are points x_i, u is known: E[x_0 | x_t = x]
# weights them by exp(−|x − (1 − t) x_i|²/(2t²)), DDPM's posterior mean at another scale. Paths of a flow never cross,
# as u(x, t) has one value. Lines do, and where they do, paths bend.


def exact(x, t, data):
    """u(x, t) where the data are the points data (K, D); x: (N, D)."""
    w = -((x[:, None] - (1 - t) * data)**2).sum(2) / (2 * t * t)
    w = np.exp(w - w.max(1, keepdims=True))
    return (x - w @ data / w.sum(1, keepdims=True)) / t


def euler(u, x, times):
    """All points of the paths with dx/dt = u(x, t), from x at times[0] on."""
    path = [x]
    for t, t_next in zip(times, times[1:]):
        path.append(path[-1] + (t_next - t) * u(path[-1], t))
    return np.stack(path)


points = np.array([[-1.2], [0.2], [1.0]])  # a data set of three numbers
noise, ends = np.sort(rng.standard_normal((40, 1)), 0), points[rng.integers(3, size=40)]
lines = np.stack([t * noise + (1 - t) * ends for t in np.linspace(1, 0, 201)])
paths = euler(lambda x, t: exact(x, t, points), noise, np.linspace(1, 0, 201))
swapped = [(np.diff(p[-1, :, 0]) < -1e-6).sum() for p in (lines, paths)]
print(f"neighbours that change places: {swapped[0]} on lines, {swapped[1]} in the flow")
assert swapped[0] > 5 and swapped[1] == 0

# The path is DDIM's. With z = x_t/(1 − t) and σ = t/(1 − t) = √(1 − ᾱ)/√ᾱ the flow is dz/dσ = (z − E[x_0 | x_t])/σ,
# the curve of lesson 7. Even the steps are the same: from t to t', Euler's keeps x̂_0, and what it takes for noise, ε̂,
#
#     x_t' = x_t + (t' − t) (x_t − x̂_0)/t = (1 − t') x̂_0 + t' ε̂,      where x_t = (1 − t) x̂_0 + t ε̂.
#
# New are the levels at which one trains and steps, and the weight of an error of x̂_0 in the loss: 1/t², not 1/σ².

ddim = DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
ddim.set_timesteps(10)
x = k[1023] * noise
for level in ddim.timesteps:
    x = ddim.step(posterior_mean(x, float(alpha_bars[level]), points), level, x).prev_sample
assert np.allclose(x, euler(lambda x, t: exact(x, t, points), noise, [*times[ddim.timesteps], 0])[-1])

# 3. A velocity, learned
#
# 720 points on a figure of eight in the plane, a network of two hidden layers, and as loss the squared distance from
# ε − x_0. Even the best u has a loss: the variance of ε − x_0 among the lines through a point.

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
known = euler(lambda x, t: exact(x, t, curve), flow[0], np.linspace(1, 0, 65))[-1]
off = [np.median(np.sqrt(((x[:, None] - curve)**2).sum(2).min(1))) for x in (flow[0], flow[-1], known)]
print("loss {:.3f}, exact {:.3f}; distance from the curve {:.2f}, then {:.2f}, exact {:.2f}".format(*losses, *off))
assert losses[1] < losses[0] < 1.15 * losses[1] and off[2] < off[1] < off[0] / 2.5

# 4. A DDPM network is a velocity network
#
# By part 1: look up the level with √ᾱ : √(1 − ᾱ) = (1 − t) : t, multiply x by k, ask for ε, turn it into x̂_0 (clipped
# to ±1, as pictures are) and u. We begin at t = 0.98: at the last level x̂_0 has 178 times the error of ε.

network, judge, labels = pretrained("mnist-ddpm"), pretrained("mnist-classifier"), np.arange(20) % 10


def velocity(x, t):
    level = int(np.abs(times - t).argmin())
    ddpm = np.float32(k[level]) * x
    with nd.no_grad():
        epsilon = network(nd.Tensor(ddpm), level, labels).data
    return (x - schedule.predict_original_sample(epsilon, level, ddpm)) / np.float32(t)


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
# velocity learned in the plane (100 of 300 paths, all ends; off the curve, the network errs). Below: one step gives the
# mean of a class, as at t = 1 x says nothing of x_0; a few give one digit of it. More follow the network's curve,
# and that may lead elsewhere: of 20 digits the second 0 becomes a B, and the second 1 an L.

figure = Figure(figsize=(12, 9), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.35])
crossing, flowing, plane = top.subplots(1, 3)
for axes, p, title in ((crossing, lines, "lines from noise to three numbers"), (flowing, paths, "the flow they make")):
    axes.plot(np.linspace(1, 0, 201), p[:, :, 0], color="C0", lw=0.8)
    axes.plot([0, 0, 0], points, "o", color="C3", clip_on=False, zorder=3)
    axes.set(xlim=(1, 0), ylim=(-2.5, 2.5), xlabel="t", ylabel="x", title=title)
plane.plot(*flow[:, :100].T.swapaxes(1, 2), color="C0", lw=0.4)
plane.plot(*curve.T, "k", *flow[-1].T, "C3.", lw=0.8)
plane.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", title="a velocity learned in the plane",
          xlabel="black: data, blue: paths, red: their ends")
axes = bottom.subplots()
axes.imshow(np.block([[np.pad(x[0], 1, constant_values=1) for x in row[:16]] for row in drawn]), cmap="gray")
axes.set(yticks=34 * np.arange(7) + 16.5, yticklabels=steps, xticks=[], ylabel="Euler steps",
         title="digits drawn by Euler's steps in the flow's time, with a DDPM network")
keep(figure, __file__)

# Try: in ``batch``, sort x0 and epsilon, each by its second coordinate. The loss falls below the exact one, and part 3
# stops at its assertion: which pairs does ``exact`` assume? Then the exercises: exercises/10_flow_matching.py.
