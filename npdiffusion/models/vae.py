"""A convolutional variational autoencoder and its loss (Kingma & Welling 2014, "Auto-Encoding Variational Bayes")."""

import math

from .. import functional as F, nn
from ..device import to_device
from ..random import standard_normal
from ..tensor import Tensor, no_grad
from .blocks import GROUPS, NormSiLU, ResBlock, check_shape, check_sizes


def gaussian_kl(mean, logvar):
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²) in nats (Kingma & Welling 2014, app. B).

    mean, logvar: Tensors μ and log σ² of shape (N, J). Returns (N,).
    """
    return 0.5 * (mean * mean + logvar.exp() - 1 - logvar).sum(1)


def bernoulli_nll(logits, x):
    """−log p(x | z) in nats, summed over the pixels, each of them Bernoulli with p = σ(logit) (app. C.1).

    logits, x: Tensors (N, C, H, W); x in [−1, 1], and the target is (x + 1)/2. Returns (N,): the cross entropy, which
    for grey pixels is no less than their own entropy.
    """
    return F.binary_cross_entropy_with_logits(logits, 0.5 * (x + 1), reduction="none").sum((1, 2, 3))


def vae_loss(logits, x, mean, logvar, beta=1.0):
    """−log p(x | z) + β·KL(q(z | x) ‖ p(z)), the mean over the pictures, in nats: −ELBO with β = 1 (eq. 10).

    β > 1 asks for a simpler code, β < 1 for sharper pictures (Higgins et al. 2017, eq. 4). Arguments as above; returns
    a Tensor of one element.
    """
    return (bernoulli_nll(logits, x) + beta * gaussian_kl(mean, logvar)).mean()


class VAE(nn.Module):
    """Encoder q(z | x) = N(μ(x), σ²(x)) and Bernoulli decoder p(x | z); the prior of z is N(0, I).

    A residual block at each resolution on the way down, by strided convolution, and again on the way up, by transposed
    convolution.

    Args:
        latent: J, the size of the code z. hidden: units of the layer before the code, and of that after it.
        channels: one number for each resolution, from half the picture's size downwards; multiples of 8.
        in_channels, size: of the pictures, (in_channels, size, size) in [−1, 1]; size divides by 2^len(channels).

    Called with a Tensor (N, in_channels, size, size); returns logits of that shape, mean and logvar (N, J), what
    ``vae_loss`` takes. ``config`` holds the arguments.
    """

    def __init__(self, latent=20, channels=(32, 64), hidden=256, in_channels=1, size=32):
        channels, latent, hidden, in_channels, size = check_sizes("VAE", channels, latent=latent, hidden=hidden,
                                                                  in_channels=in_channels, size=size)
        self.config = dict(latent=latent, channels=channels, hidden=hidden, in_channels=in_channels, size=size)
        if size % 2 ** len(channels):
            raise ValueError(f"VAE with {len(channels)} halvings expects a size that divides by {2 ** len(channels)}, "
                             f"got {size}")
        side = size // 2 ** len(channels)
        self.bottom = side, side, channels[-1]
        features, pairs = math.prod(self.bottom), list(zip((in_channels, *channels[:-1]), channels))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.down_blocks = nn.ModuleList(ResBlock(c, c) for c in channels)
        self.norm_down = NormSiLU(GROUPS, channels[-1])
        self.to_code = nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.from_code = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, features))
        self.up_blocks = nn.ModuleList(ResBlock(c, c) for c in channels)
        self.up_norms = nn.ModuleList(NormSiLU(GROUPS, c) for c in channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, stride=2, padding=1) for a, b in pairs)

    def encode(self, x):
        """x (N, in_channels, size, size) -> mean and logvar, μ and log σ² of q(z | x), each (N, J)."""
        check_shape("VAE", x, self.config["in_channels"], self.config["size"], self.config["size"])
        for conv, block in zip(self.down, self.down_blocks):
            x = block(conv(x))
        x = self.norm_down(x).permute(0, 2, 3, 1).reshape(len(x), -1)  # a view: memory is channels-last
        code = self.to_code(x)
        return code[:, :self.config["latent"]], code[:, self.config["latent"]:]

    def reparameterise(self, mean, logvar, generator=None):
        """z = μ + σ·ε with ε ~ N(0, I) (sec. 2.4): a sample through which the gradient reaches μ and σ.

        generator: of any device; None takes the library's of the model's device.
        """
        return mean + (0.5 * logvar).exp() * Tensor(standard_normal(mean.shape, mean.dtype, generator, mean.device))

    def decode(self, z):
        """z (N, J) -> logits (N, in_channels, size, size)."""
        check_shape("VAE", z, self.config["latent"])
        x = self.from_code(z).reshape(len(z), *self.bottom).permute(0, 3, 1, 2)
        for conv, block, norm in reversed(list(zip(self.up, self.up_blocks, self.up_norms))):
            x = conv(norm(block(x)))
        return x

    def forward(self, x, generator=None):
        mean, logvar = self.encode(x)
        return self.decode(self.reparameterise(mean, logvar, generator)), mean, logvar

    def pictures(self, z):
        """The mean pictures 2·σ(logits) − 1 in [−1, 1] of codes z, an array (N, J); returns an array on z's device."""
        with no_grad():
            return to_device((0.5 * self.decode(Tensor(z, device=self.device))).tanh().data, z)

    def reconstruct(self, x):
        """Pictures, an array (N, in_channels, size, size), decoded from their μ(x): an array like x, on its device."""
        with no_grad():
            return to_device(self.pictures(self.encode(Tensor(x, device=self.device))[0].data), x)
