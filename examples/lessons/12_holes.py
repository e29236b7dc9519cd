"""Lesson 12. Holes

A scan has lost some pixels, or has too few of them. No network was taught to fill holes or to enlarge. But a denoiser
knows what pictures look like, and it can be differentiated. How do these two give pictures that fit what was measured?
"""

from course import digits, keep

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from npdiffusion.diffusion import AveragePool, DDIMScheduler, DDPMScheduler, Inpaint, restore
from npdiffusion.models import pretrained
from PIL import Image
from tqdm import tqdm

# 1. What was measured pulls on what was not
#
# y = A x_0 was measured: A keeps the pixels outside of a hole, or takes the mean of each 4 × 4 pixels. The
# pseudoinverse A⁺ = Aᵀ (A Aᵀ)⁻¹ goes back: of all pictures that fit y, A⁺ y has the least length. To sample p(x_0 | y)
# takes the score
#
#     ∇ log p(x_t | y) = ∇ log p(x_t) + ∇ log p(y | x_t)          (Bayes' rule, as in lesson 8)
#
# and the second term is not known, as y depends on x_t by way of x_0. But x̂_0 = E[x_0 | x_t] is known. If x_0 were
# N(x̂_0, Σ) given x_t, then y would be N(A x̂_0, A Σ Aᵀ), and with J = ∂x̂_0/∂x_t, Σ held fixed,
#
#     ∇ log p(y | x_t) = Jᵀ Aᵀ (A Σ Aᵀ)⁻¹ (y − A x̂_0):
#
# where the estimate disagrees with what was measured, carried back through the denoiser. Jᵀ times an array is what a
# tape does in its walk back (lesson 1), if it starts with this array in place of 1: one pass, and J is never seen.
#
# Of Gaussian pictures, N(0, C), all of this is exact, with x̂_0 = W x_t, W = √ᾱ C (ᾱ C + (1 − ᾱ) I)⁻¹ and
# Σ = (1 − ᾱ)/√ᾱ W. As an estimate of x_0 the sum of both terms is x̂_0 + (1 − ᾱ)/√ᾱ ∇ log p(y | x_t). That should be
# E[x_0 | x_t, y], which is known directly, for x_t and y are linear in x_0. (Here: 16 pixels; y, the means of 4 each.)

rng, alpha_bar = np.random.default_rng(0), 0.6
places = np.stack(np.mgrid[:4, :4], -1).reshape(16, 2)
C = np.exp(-np.abs(places[:, None] - places).sum(2) / 3)
A = AveragePool(2).forward(np.eye(16).reshape(16, 1, 4, 4)).reshape(16, 4).T
W = np.sqrt(alpha_bar) * C @ np.linalg.inv(alpha_bar * C + (1 - alpha_bar) * np.eye(16))
x, y = nd.Tensor(rng.standard_normal(16), requires_grad=True), rng.standard_normal(4)
x0 = nd.Tensor(W) @ x
x0.backward(A.T @ np.linalg.solve(A @ ((1 - alpha_bar) / np.sqrt(alpha_bar) * W) @ A.T, y - A @ x0.data))
M, noise = np.concatenate([np.sqrt(alpha_bar) * np.eye(16), A]), np.diag(16 * [1 - alpha_bar] + 4 * [0])
direct = C @ M.T @ np.linalg.solve(M @ C @ M.T + noise, np.append(x.data, y))
assert np.allclose(x0.data + (1 - alpha_bar) / np.sqrt(alpha_bar) * x.grad, direct)

# 2. The loop
#
# Of digits Σ is not known. ΠGDM (pseudoinverse-guided diffusion models, Song et al. 2023) takes r² I with r² = 1 − ᾱ,
# as if they were N(0, I), and with that Aᵀ (A Σ Aᵀ)⁻¹ = A⁺/r². So the second term is g/r², g = Jᵀ A⁺ (y − A x̂_0). A
# step of DDIM (η = 1: ancestral) from ᾱ = α ᾱ' to ᾱ' moves x by (1 − α)/√α times the score. Algorithm 1 moves it by
# √ᾱ g: at high noise, where r² is a poor guess of Σ, as digits vary in few directions, g counts less than in a score,
# later more. That is a choice, and with digits it works better (try it). DDIM's ε is what x̂_0, clipped, leaves of x.

network, schedule = pretrained("mnist-ddpm"), DDPMScheduler()
for parameter in network.parameters():
    parameter.requires_grad = False  # only x is asked for its gradient


def pull(x, t, y, operator):
    """ε, x̂_0 and g at pictures x (N, 1, 32, 32) of level t."""
    x, alpha_bar = nd.Tensor(x, requires_grad=True), float(schedule.alphas_cumprod[t])
    epsilon = network(x, int(t))
    x0 = (x - (1 - alpha_bar)**0.5 * epsilon) * alpha_bar**-0.5
    x0.backward(operator.pinv(y - operator.forward(x0.data.clip(-1, 1))))  # clipped, as in DDIM's steps
    return epsilon.data, x0.data, x.grad


def sample(y, operator, rng, guided=True, steps=32):
    """Pictures that fit y, and (t, x̂_0, g) of each step on the way; not guided, the naive way, which needs no g."""
    walk, trail = DDIMScheduler(eta=1.0, timestep_spacing="trailing"), []
    walk.set_timesteps(steps)
    x, roots = rng.standard_normal((len(y), 1, 32, 32), dtype=np.float32), np.sqrt(walk.alpha_bars).astype(np.float32)
    for t, root, root_next in zip(tqdm(walk.timesteps, leave=False), roots, roots[1:]):
        z = rng.standard_normal(x.shape, dtype=np.float32)
        if guided:
            epsilon, x0, g = pull(x, t, y, operator)
            trail.append((t, x0, g))
        else:
            with nd.no_grad():
                epsilon = network(nd.Tensor(x), int(t)).data
        x = walk.step(epsilon, t, x, noise=z, use_clipped_model_output=True).prev_sample
        if guided:
            x = x + root * g
        else:  # put in what was measured, as noisy as x is by now
            x = x + operator.pinv(operator.forward(root_next * operator.pinv(y) + np.sqrt(1 - root_next**2) * z - x))
    for _ in range(200):  # by turns the nearest x within ±1, and the nearest that fits y
        x = x.clip(-1, 1)
        x = x + operator.pinv(y - operator.forward(x))
    return x, trail


# 3. A hole, and four by four pixels as one
#
# Test digits, each drawn four times, against the naive way (what was measured is put into x_t, as noisy as x_t is); the
# mean of the pixels around the hole, or bicubic interpolation; the posterior mean if 10,000 training digits x_i were
# all digits, and y had noise of σ = 2: weights exp(−|y − A x_i|²/8). PSNR, 10 log₁₀(4/mean squared error) dB, is
# that of the hole, or else of all pixels. A sample errs twice as much as a mean does (in squares, lesson 9), so it is
# the mean of four that other means compare with.

images, known = digits("test").images[:12], digits("train").images[:10000]
first, last, hole, rows, trails = 10, 22, np.zeros((32, 32), bool), [], []
hole[first:last, first:last] = True


def score(x, where):
    return np.mean(10 * np.log10(4 / np.square(x - images)[..., where].mean(-1)))


def bicubic(y):
    return np.stack([np.asarray(Image.fromarray(x[0]).resize((32, 32), Image.Resampling.BICUBIC)) for x in y])[:, None]


def around(y):
    ring = y[..., first - 1:last + 1, first - 1:last + 1].sum((2, 3), keepdims=True)  # y is 0 in the hole
    return np.where(hole, ring / (4 * (last - first + 1)), y)


for operator, where, simple in ((Inpaint(~hole), hole, around), (AveragePool(4), np.ones_like(hole), bicubic)):
    y, rng = operator.forward(images), np.random.default_rng(1)
    found, trail = sample(np.concatenate([y] * 4), operator, rng)
    naive, _ = sample(y, operator, rng, guided=False)
    found = found.reshape(4, *images.shape)
    misfit = np.stack([np.square(one - operator.forward(known)).sum((1, 2, 3)) for one in y])
    weights = np.exp((misfit.min(1, keepdims=True) - misfit) / 8)
    bank = np.tensordot(weights / weights.sum(1, keepdims=True), known, 1)
    results = {"naive": naive, simple.__name__: simple(y), "training digits": bank, "guided": found,
               "mean of four guided": found.mean(0)}
    psnr = {name: score(x, where) for name, x in results.items()}
    print(f"{type(operator).__name__}: " + ", ".join(f"{name} {value:.1f} dB" for name, value in psnr.items()))
    assert psnr["guided"] > psnr["naive"] and np.abs(operator.forward(found[0]) - y).max() < 1e-4
    assert psnr["mean of four guided"] > max(psnr["guided"], psnr[simple.__name__]) + 0.4
    rows.append([operator.pinv(y), naive, *found[:3], found.mean(0), 2 * found.std(0).clip(0, 1) - 1, images])
    trails.append(trail)
    few = sample(y[:2], operator, np.random.default_rng(1), steps=8)[0]
    package = restore(network, schedule, y[:2], operator, num_inference_steps=8, weight=1.0,
                      generator=np.random.default_rng(1))
    assert np.abs(few - package).max() < 0.02

share = {t: np.square(g[..., hole]).sum() / np.square(g).sum() for t, _, g in trails[0]}
print("the hole's share of |g|²:", ", ".join(f"{share[t]:.3f} at t = {t}" for t in (511, 319, 127, 31)))
assert share[511] > 4 * share[31]

# The figure. Above, from what was measured to the original (8 of 12 digits, 3 of 4 draws); the spread (white: a
# standard deviation of 1) tells where the four differ, which is where y does not tell. Not all that fits is a digit:
# see the 2. Below, one digit as its noise falls: x̂_0, and g (green: the hole; red: lighter, blue: darker, full
# colour: the number below t). At high noise g reaches into the hole; in the end it corrects known pixels of strokes.

figure = Figure(figsize=(11, 7.8), layout="constrained")
top, middle, below = figure.subplots(3, 1, height_ratios=[5.5, 1.25, 1.25])


def tiles(rows):
    return np.block([[np.pad(x[0], 1, constant_values=np.nan) for x in row] for row in rows])


top.imshow(tiles([np.concatenate([a[:8], b[:8]]) for a, b in zip(*rows)]), cmap="gray", vmin=-1, vmax=1)
top.axvline(8 * 34 - 0.5, color="white", lw=6)
top.set(yticks=34 * np.arange(8) + 17, xticks=[136, 408], xticklabels=["a hole", "4 × 4 pixels as one"],
        yticklabels=["measured", "naive", "guided", "guided", "guided", "mean of 4", "spread", "original"])
one, picked = images[..., hole].sum((1, 2)).argmax(), trails[0][7::3]
middle.imshow(tiles([[x0[one].clip(-1, 1) for _, x0, _ in picked]]), cmap="gray", vmin=-1, vmax=1)
below.imshow(tiles([[g[one] / np.abs(g[one]).max() for _, _, g in picked]]), cmap="RdBu_r", vmin=-1, vmax=1)
for axes, i in ((axes, i) for axes in (middle, below) for i in range(len(picked))):
    axes.add_patch(Rectangle((34 * i + first + 0.5, first + 0.5), last - first, last - first, fill=False, color="C2"))
middle.set(xticks=[], yticks=[17], yticklabels=[r"$\hat{x}_0$"])
below.set(xticks=34 * np.arange(len(picked)) + 17, yticks=[17], yticklabels=["g"], xlabel="level t",
          xticklabels=[f"{t}\n± {np.abs(g[one]).max():.1f}" for t, _, g in picked])
keep(figure, __file__)

# Try (without the last two assertions): move x by (1 − α)/√α g/r², or by √ᾱ g times 1 + 3 (1 − ᾱ). Make the
# hole larger: from where on do the four disagree about the digit? Then the exercises: exercises/12_holes.py.
