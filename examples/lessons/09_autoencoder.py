"""Lesson 9. An autoencoder, and why it cannot denoise

A variational autoencoder squeezes a digit through 20 numbers and draws it again. What is not a digit cannot pass: is it
not made for taking noise away? This lesson trains one and puts it beside everything else that denoises.
"""

from course import digits, keep

import math

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion import functional as F, nn
from npdiffusion.diffusion import DDPMScheduler, PCAWiener, denoise, posterior_mean
from npdiffusion.models import gaussian_kl, pretrained
from npdiffusion.optim import Adam
from tqdm import tqdm

# 1. The bound
#
# Say that a digit x comes about like this: a code z is drawn from N(0, I), and a decoder makes of it the probability of
# ink in each pixel, p(x | z). Its loss would be −log p(x) = −log ∫ p(x | z) p(z) dz; but nearly all z add nothing to
# that integral. So an encoder q(z | x) = N(μ(x), σ²(x)) proposes some that do, and by Jensen's inequality
#
#     log p(x) = log ∫ q p(x | z) p(z) / q dz  ≥  ∫ q log(p(x | z) p(z) / q) dz
#              = E_{z ~ q}[log p(x | z)]  −  KL(q(z | x) ‖ N(0, I))              (Kingma & Welling 2014, eq. 3),
#
# the evidence lower bound, ELBO. The first term wants the picture back, the second a code that tells little of x. With
# Gaussians it is KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²) (app. B). Held against the integral ∫ q (log q − log p) dz:

z, mean, logvar = np.linspace(-12, 12, 4801), 0.7, -1.1
log_q, log_p = (-0.5 * ((z - m)**2 / np.exp(v) + v + math.log(2 * math.pi)) for m, v in ((mean, logvar), (0, 0)))
integral = (np.exp(log_q) * (log_q - log_p)).sum() * (z[1] - z[0])
assert np.isclose(integral, gaussian_kl(nd.Tensor([[mean]]), nd.Tensor([[logvar]])).item())

# The first term is estimated by one z. But how does a gradient get through a draw? Reparametrise: z = μ + σ ε with
# ε ~ N(0, I) (sec. 2.4). Chance is now an input like others, and z has derivatives with respect to μ and σ. Greys
# count as shares of ink: the usual loss, but strictly p(x | z) is of pictures without grey.


def negative_elbo(decoder, x, mean, logvar, noise):
    """In nats, the mean over digits x (N, pixels) in [−1, 1]; log p(x | z) of ink or none is a cross-entropy."""
    z = mean + (0.5 * logvar).exp() * noise
    nll = F.binary_cross_entropy_with_logits(decoder(z), 0.5 * (x + 1), reduction="none").sum(1)
    return (nll + gaussian_kl(mean, logvar)).mean()


rng = np.random.default_rng(0)
x, noise, weight = (nd.Tensor(rng.standard_normal(shape)).tanh() for shape in ((4, 6), (4, 3), (3, 6)))
assert nd.gradcheck(lambda mean, logvar: negative_elbo(lambda z: z @ weight, x, mean, logvar, noise),
                    [rng.standard_normal((4, 3)), rng.standard_normal((4, 3))])

# 2. Training: two small networks, and a code of 20 numbers between them


class VAE(nn.Module):
    def __init__(self, pixels=32 * 32, hidden=256, latent=20):
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels))

    def encode(self, x):
        code = self.encoder(x)
        return code[:, :self.latent], code[:, self.latent:]

    def reconstruct(self, images):  # an array (N, 1, 32, 32) -> the mean pictures of the codes μ(x)
        mean, _ = self.encode(nd.Tensor(images.reshape(len(images), -1)))
        return (2 * F.sigmoid(self.decoder(mean)) - 1).data.reshape(images.shape)


train, test = digits("train"), digits("test")
nd.manual_seed(0)
vae, losses = VAE(), []
adam = Adam(vae.parameters(), lr=1e-3)
for step in tqdm(range(1200), desc="VAE"):
    x = nd.Tensor(train.images[rng.integers(len(train), size=128)].reshape(128, -1))
    loss = negative_elbo(vae.decoder, x, *vae.encode(x), nd.Tensor(rng.standard_normal((128, vae.latent), np.float32)))
    adam.zero_grad()
    loss.backward()
    adam.step()
    losses.append(loss.item())
print(f"−ELBO of training digits: {losses[0]:.0f} nats at first, {np.mean(losses[-100:]):.0f} at the end")
assert np.mean(losses[-100:]) < 0.3 * losses[0]

# 3. Everything that denoises
#
# 24 test digits are made noisy, x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε (Ho et al. 2020, eq. 4). Each method says what x_0 was:
#   Gaussian blur    of the width that does best, at this level, on training digits
#   PCA Wiener       the best linear one: of all 1024 principal components, each is shrunk as far as noise drowns it
#   VAE              its picture of x_t/√ᾱ_t (to clip that to [−1, 1] helps at the highest levels only)
#   exact posterior  E[x_0 | x_t] if there were only the 60,000 training digits: their mean, weighted by how they fit
#   one-shot         the diffusion model's estimate of E[x_0 | x_t]: one pass, which is told t
#   DDIM, ancestral  10 deterministic steps, and 20 at random, from t to 0: a way to a digit that could have been x_0

LEVELS, COUNT = (50, 100, 200, 300, 400, 500, 600, 700, 800), 24
clean, tuning = test.images[:COUNT], train.images[-300:]
scheduler, ddpm, wiener = DDPMScheduler(), pretrained("mnist-ddpm"), PCAWiener(train.images)
square = np.subtract.outer(np.arange(32), np.arange(32))**2
kernels = [F.softmax(nd.Tensor(np.float32(-0.5 * square / width**2)), 1).data for width in np.geomspace(0.3, 30, 25)]
blurs = [lambda x, kernel=kernel: (kernel @ x @ kernel.T).clip(-1, 1) for kernel in kernels]
found, noises = {}, [rng.standard_normal(x.shape, dtype=np.float32) for x in (clean, tuning)]
for t in tqdm(LEVELS, desc="levels"):
    alpha_bar = float(scheduler.alphas_cumprod[t])
    x_t, tuning_t = (scheduler.add_noise(x, noise, t) for x, noise in zip((clean, tuning), noises))
    seen, tuning_seen = (x / np.float32(math.sqrt(alpha_bar)) for x in (x_t, tuning_t))
    blur = min(blurs, key=lambda blur: np.square(blur(tuning_seen) - tuning).mean())
    for name, pictures in {
            "noisy": seen, "Gaussian blur": blur(seen), "PCA Wiener": wiener(x_t, alpha_bar),
            "VAE": vae.reconstruct(seen), "exact posterior": posterior_mean(x_t, alpha_bar, train.images),
            "ancestral": denoise(ddpm, scheduler, x_t, t, "ancestral", 20, generator=rng),
            "DDIM": denoise(ddpm, scheduler, x_t, t, "ddim", 10), "one-shot": denoise(ddpm, scheduler, x_t, t)}.items():
        found.setdefault(name, []).append(pictures)
errors = {name: np.square(np.array(at) - clean).mean((1, 2, 3, 4)) for name, at in found.items()}
for name, row in {"level t": LEVELS, **errors}.items():
    print(f"{name:16s}", *(f"{value:8.3g}" for value in row))

# 4. Why it cannot
#
# It does take noise away, and is nearer than a blur from t = 200 to 600. But even of a hardly noisy digit it returns
# only what passes its code: how much depends on the 20 numbers, on training, and on the price of the KL. A linear
# filter that keeps all components is nearer. Noise moves the code, at last farther than another digit's is, and the
# decoder draws, in black and white, what lives there: another digit, or shards. The encoder knows clean digits only,
# and no t: what E[x_0 | x_t] says by grey, "perhaps", it cannot.

code = [vae.encode(nd.Tensor(x.reshape(COUNT, -1)))[0].data for x in (clean, *found["noisy"], np.roll(clean, 1, 0))]
*moved, apart = (np.linalg.norm(of - code[0], axis=1).mean() for of in code[1:])
print("moves of the code, over the distance to another digit's:", *(f"{m / apart:.2f}" for m in moved))
grey = {name: [np.mean(1 - at[k]**2) for k in (0, 5)] for name, at in found.items() if name in ("VAE", "one-shot")}
print("grey, mean of 1 − x², at t = 50 and 500:", *(f"{name} {a:.3f} {b:.3f}" for name, (a, b) in grey.items()))
assert grey["VAE"][1] < 1.3 * grey["VAE"][0] and grey["one-shot"][1] > 2 * grey["one-shot"][0]
assert (errors["VAE"][:2] > 1.3 * errors["PCA Wiener"][:2]).all()
assert (errors["VAE"][:5] > 1.1 * errors["one-shot"][:5]).all()

# The exact posterior is beaten at low levels, up to t = 200 even by the VAE: there it is the nearest training digit, no
# test digit. At high levels it is close to the least error there is, and one-shot is close to it. At t = 700 and
# 800 the linear PCA Wiener is as close or closer: hardly more than the mean digit is left to say.

assert (errors["exact posterior"][:3] > 1.5 * errors["one-shot"][:3]).all()
assert errors["one-shot"][-1] < 1.2 * errors["exact posterior"][-1]

# Why is the ancestral walk worse, whose digits look best? Given x_t, let m be the mean of p(x_0 | x_t), y a sample of
# it. The truth x_0 is another, independent of y, so E‖x_0 − y‖² = E‖x_0 − m‖² + E‖y − m‖² = 2 E‖x_0 − m‖²: twice
# one-shot's. DDIM draws nothing from x_t on: its end is no such sample, and nearer.

ratio = np.mean(errors["ancestral"] / errors["one-shot"])
print(f"squared error, ancestral to one-shot: {ratio:.2f}")
assert 1.3 < ratio < 2.3

# The figure: on the left the error of each method against the noise level, on the right a digit as each returns it. At
# no level is the VAE the best, and where one-shot and the exact posterior draw a blur, it draws something else. Grey
# squares: at high levels the best Gaussian blur is as wide as the picture.

figure = Figure(figsize=(12, 5.2), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
for name, style in zip(list(found)[1:], ("C7v-", "C8^-", "C3o-", "k*--", "C4D-", "C2s-", "C0o-")):
    left.semilogy(LEVELS, errors[name], style, ms=5, label=name)
left.set(xlabel="noise level t", ylabel="mean squared error (black −1, white 1)", title=f"{COUNT} digits")
left.grid(alpha=0.3, which="both")
left.legend(loc="lower right")
right.imshow(np.block([[x[1, 0] for x in at] for at in found.values()]), cmap="gray", vmin=-1, vmax=1)
right.set(xticks=32 * np.arange(len(LEVELS)) + 16, xticklabels=LEVELS, xlabel="noise level t",
          yticks=32 * np.arange(len(found)) + 16, yticklabels=found, title="what one of them becomes")
keep(figure, __file__)

# Try: train the VAE on noisy pictures with clean ones as targets, at one level, then at all (give it x_t: x_t/√ᾱ_t is
# huge at high levels); give it more steps, then a longer code as well (latent=100). Which of its faults goes, and which
# stays? Does it learn to say "perhaps"? Then the exercises: exercises/09_autoencoder.py.
