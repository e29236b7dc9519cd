"""Lesson 6. Learning the noise

The perfect denoiser of lesson 5 keeps every picture, and gives back only what it keeps. Does a network that learns the
same task find what pictures have in common, and can it then draw new ones? Here is all of it: schedule, network,
training (Ho et al. 2020, algorithm 1) and sampling (algorithm 2).
"""

from course import digits, keep
from tqdm import tqdm

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion import Tensor, functional as F, nn, optim
from npdiffusion.diffusion import DDPMScheduler, posterior_mean, variational_bound
from npdiffusion.models import pretrained

rng = nd.manual_seed(0)
nd.set_num_threads(1)  # a second thread does not pay for pictures as small as these

# 1. Data and schedule. To learn within a minute, digits must be small: 12 × 12, without their margin and with each
# 2 × 2 pixels in one. Of 1024 levels we take 256, with four times the variance β_t in each: the end is nearly the same.
train, test = digits("train"), digits("test")
x_train, x_test = (data.images[:, :, 4:-4, 4:-4].reshape(-1, 1, 12, 2, 12, 2).mean((3, 5)) for data in (train, test))
T = 256
betas = np.linspace(0.0004, 0.08, T)
alphas_cumprod = np.cumprod(1 - betas)
of_picture, of_noise = (np.sqrt(share).astype(np.float32).reshape(T, 1, 1, 1)  # the shares of x_0 and ε in x_t
                        for share in (alphas_cumprod, 1 - alphas_cumprod))

# 2. A network ε_θ(x_t, t, c): it sees a noisy picture, the level t and the class c, and says which noise is in it. As
# ε = (x_t − √ᾱ_t x_0)/√(1 − ᾱ_t), E[ε | x_t] and E[x_0 | x_t] (lesson 5) determine each other: whoever predicts the
# noise with the least squared error is the perfect denoiser. At much noise ε is nearly x_t itself. So the layers are
# asked for v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 (Salimans & Ho 2022), from which ε = √(1 − ᾱ_t) x_t + √ᾱ_t v exactly.
#
# It is a small UNet: convolutions halve the sides twice, to 3 × 3, where a linear layer lets each place hear of all
# others; transposed ones double them again, and get what was seen on the way down. Each block is told t, as cosines and
# sines of many frequencies (Ho et al. 2020, appendix B), and c, as a row of a table.


class Block(nn.Module):
    def __init__(self, inputs, channels):
        self.first, self.second = (nn.Conv2d(c, channels, 3, padding=1) for c in (inputs, channels))
        self.skip = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()
        self.told, self.norm = nn.Linear(128, channels), nn.GroupNorm(8, channels)

    def forward(self, x, told):
        h = F.silu(self.first(x) + self.told(told).reshape(len(x), -1, 1, 1))
        return F.silu(self.norm(self.second(h) + self.skip(x)))


class Denoiser(nn.Module):
    def __init__(self):
        self.level, self.label = nn.Linear(64, 128), nn.Embedding(10, 128)
        self.full, self.half, self.quarter = nn.Conv2d(1, 16, 3, padding=1), Block(32, 32), Block(64, 64)
        self.down, self.further_down = nn.Conv2d(16, 32, 2, stride=2), nn.Conv2d(32, 64, 2, stride=2)
        self.places, self.bottom, self.joined = nn.Linear(9, 9), Block(64, 64), Block(64, 32)
        self.up, self.further_up = nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.last, self.out = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x, t, c):
        angles = 4 * t[:, None] * 1e4**-(np.arange(32) / 32)  # 4 t: as if of 1024 levels
        waves = Tensor(np.hstack([np.cos(angles), np.sin(angles)], dtype=np.float32))
        told = F.silu(self.level(waves)) + self.label(c)
        full = F.silu(self.full(x))  # [n, 16, 12, 12]
        half = self.half(self.down(full), told)  # [n, 32, 6, 6]
        h = self.quarter(self.further_down(half), told)  # [n, 64, 3, 3]
        h = self.bottom(h + self.places(h.reshape(len(x), 64, 9)).reshape(h.shape), told)
        h = self.joined(F.cat([self.up(h), half], 1), told)
        h = F.silu(self.last(F.cat([self.further_up(h), full], 1)))
        return Tensor(of_noise[t]) * x + Tensor(of_picture[t]) * self.out(h)

    def predict(self, x, t, c):  # arrays, at one level t
        with nd.no_grad():
            return self(Tensor(x), np.full(len(x), t), c).data


# 3. Training (algorithm 1): draw a picture, a level and noise; go a step down the gradient of ‖ε − ε_θ(x_t, t, c)‖².
# The weights jump about as they learn; their moving average (EMA) evens that out.
STEPS, network = 900, Denoiser()
adam, average = optim.Adam(network.parameters(), lr=0.004), optim.EMA(network, 0.99)
for step in tqdm(range(STEPS), "training"):
    i, t = rng.integers(len(x_train), size=64), rng.integers(T, size=64)
    noise = rng.standard_normal((64, 1, 12, 12), np.float32)
    guess = network(Tensor(of_picture[t] * x_train[i] + of_noise[t] * noise), t, train.labels[i])
    adam.zero_grad()
    F.mse_loss(guess, Tensor(noise)).backward()
    adam.step()
    average.update()
average.swap()

# 4. Sampling (algorithm 2). Given x_t and x_0, x_{t-1} is Gaussian (eq. 7; an exercise of lesson 5), with
#
#     mean √ᾱ_{t-1} β_t/(1 − ᾱ_t) x_0 + √(1 − β_t) (1 − ᾱ_{t-1})/(1 − ᾱ_t) x_t,   variance (1 − ᾱ_{t-1})/(1 − ᾱ_t) β_t.
#
# The mean is linear in x_0. So with the guess x̂_0 = (x_t − √(1 − ᾱ_t) ε_θ)/√ᾱ_t (eq. 15) in its place it is that of
# x_{t-1} given x_t alone, which for small β_t is nearly Gaussian, too. That is why a best guess serves, in many small
# steps, to draw a sample. (x̂_0 is kept within the grey values.)
labels = np.arange(20) // 2
x = rng.standard_normal((20, 1, 12, 12), np.float32)
for t in tqdm(range(T - 1, -1, -1), "sampling"):
    before = alphas_cumprod[t - 1] if t else 1.0
    shrink = (1 - before) / (1 - alphas_cumprod[t])  # 0 at t = 0: no noise is added there
    x0 = ((x - of_noise[t] * network.predict(x, t, labels)) / of_picture[t]).clip(-1, 1)
    mean = np.sqrt(before) * betas[t] / (1 - alphas_cumprod[t]) * x0 + np.sqrt(1 - betas[t]) * shrink * x
    x = (mean + np.sqrt(shrink * betas[t]) * rng.standard_normal(x.shape)).astype(np.float32)

# Are they copies? A copy has no distance from its training digit. Test digits are new for sure, and drawn ones should
# be no nearer than those; where they are badly drawn, they are farther.
bank, new = x_train.reshape(-1, 144), np.concatenate([x, x_test[:500]]).reshape(-1, 144)
nearest = bank[((bank * bank).sum(1) - 2 * new @ bank.T).argmin(1)]
distance = np.sqrt(((new - nearest)**2).mean(1))  # per pixel
drawn, usual = np.median(distance[:20]), np.median(distance[20:])
print(f"distance to the nearest training digit: {drawn:.3f} for drawn digits, {usual:.3f} for test digits")
assert distance[:20].min() > 0.2 * usual

# 5. Against the best possible. The exact optimum of this loss is the perfect denoiser for all training digits of the
# class. It knows them by heart: on them nobody errs less. Of a digit that is new it is as sure, and wrong.
of_class = [x_train[train.labels == label] for label in range(10)]
levels, loss = [0, 2, 5, 10, 20, 40, 60, 80, 100, 120, 150, 200, T - 1], {}
for split, images, c in ("training", x_train[:500], train.labels[:500]), ("test", x_test[:500], test.labels[:500]):
    for k, t in enumerate(tqdm(levels, f"loss on {split} digits")):
        noise = rng.standard_normal(images.shape, np.float32)
        noisy, x0 = of_picture[t] * images + of_noise[t] * noise, np.empty_like(images)
        for label in range(10):
            x0[c == label] = posterior_mean(noisy[c == label], alphas_cumprod[t], of_class[label])
        guesses = {"network": network.predict(noisy, t, c), "optimum": (noisy - of_picture[t] * x0) / of_noise[t]}
        for who, guess in guesses.items():
            loss.setdefault(f"{who}, {split} digits", np.empty(len(levels)))[k] = ((guess - noise)**2).mean()
for name, curve in loss.items():
    print(f"loss at t = 5, 20, 80: {curve[2]:.4f} {curve[4]:.4f} {curve[7]:.4f}  {name}")
learned, known = loss["network, training digits"], loss["optimum, training digits"]
assert (known < learned).all() and (learned[levels.index(20):] < 0.5).all() and loss["optimum, test digits"][2] > 1
assert np.allclose(learned, loss["network, test digits"], rtol=0.2)  # what it has learned holds for new digits

# 6. In bits. The variational bound (eq. 5) on −log p(x_0) is the length of a code: the bits that send a picture without
# loss, from noise down to x_0, level by level. Of 8-bit digits of full size: "mnist-ddpm" has learned so for an hour.
bound = variational_bound(pretrained(), DDPMScheduler(), *test[:30], groups=30, generator=rng)
bits = 1024 * np.log(2)
per_level = bound.diffusion.mean(0) / np.diff(bound.edges) / bits
print(f"{bound.total.mean() / bits:.2f} bits per dimension, {bound.decoder.mean() / bits:.2f} of them in the last step")

# The figure. Top left: on training digits nobody has less loss than the optimum, which knows them. On test digits it
# fails where there is little noise, and the network is as good as ever (its two curves lie on each other): it has
# learned what digits are like. Top right, of 30 test digits: more than half of the bits go into the last step, and most
# of the others into levels near 0, for grey values and not for what digit it is. In ‖ε − ε_θ‖² these levels count less
# than in the bound, and pictures are the better for it (Ho et al. 2020, section 3.4). Below: drawn, not copied.
figure = Figure(figsize=(12, 6), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[3.2, 1])
(left, right), below = top.subplots(1, 2), bottom.subplots()
for (name, curve), style in zip(loss.items(), ["C0.-", "C1.-", "C0.--", "C1.--"]):
    left.loglog(np.array(levels) + 1, np.maximum(curve, 1e-9), style, label=name)
left.axhline(1, color="0.6", ls=":", label="no answer: $ε_θ$ = 0")
left.set(xlabel="level t + 1, of 256", ylabel="loss per pixel", ylim=(2e-6, 30), title="the loss and its minimum")
left.legend(fontsize=8)
right.stairs(per_level, bound.edges, fill=True, alpha=0.4)
right.plot(0.7, bound.decoder.mean() / bits, "C3o", label="the last step, from t = 0 to 8-bit pixels")
right.set(xscale="log", yscale="log", xlabel="level t, of 1024", ylabel="bits per dimension, of one level",
          title=f"mnist-ddpm, full size: {bound.total.mean() / bits:.2f} bits per dimension")
right.legend(fontsize=8)
sheet = [[np.pad(x.reshape(12, 12), 1, constant_values=1) for x in row] for row in (new[:20], nearest[:20])]
below.imshow(np.block(sheet), cmap="gray", vmin=-1, vmax=1)
below.set(xticks=14 * np.arange(20) + 6.5, xticklabels=labels[:20], yticks=[6.5, 20.5],
          yticklabels=["drawn", "nearest in training"])
keep(figure, __file__)

# Try: train for ten times as many steps. Leave average.swap() out: what was it worth? Let x̂_0 of the first step be the
# result: what does it look like? Then the exercises: exercises/06_learning_the_noise.py.
