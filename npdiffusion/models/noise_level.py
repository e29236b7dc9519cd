"""A small convolutional network that tells how noisy a picture is."""

import numpy as np

from .. import functional as F, nn
from ..diffusion.checks import check_sample
from ..tensor import Tensor, no_grad
from .blocks import check_shape, check_sizes, conv_pairs


class NoiseLevelNet(nn.Module):
    """The log signal-to-noise ratio λ of a noisy picture, and how sure that is.

    λ = log(ᾱ_t/(1 − ᾱ_t)) = −2 log σ_t for x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, and as well for x_0 + σ_t ε: the picture is
    first divided by its root mean square. Two 3×3 convolutions for each resolution, without normalisation, because
    noise shows in how strongly the features vary; then the mean and the log mean square of each feature, and an MLP.

    Args:
        in_channels: of the picture. hidden: width of the MLP.
        channels: one number for each resolution; halved by average pooling in between.

    Called with a Tensor (N, in_channels, H, W); returns (N, 2): the median and log b of a Laplace distribution
    p(λ | x) = exp(−|λ − median|/b)/(2b). The median of λ is also that of t, whatever the schedule.
    """

    def __init__(self, in_channels=1, channels=(16, 32, 64), hidden=64):
        channels, in_channels, hidden = check_sizes("NoiseLevelNet", channels, groups=1, in_channels=in_channels,
                                                    hidden=hidden)
        self.config = dict(in_channels=in_channels, channels=channels, hidden=hidden)
        self.convs = conv_pairs(in_channels, channels)
        for conv in self.convs:  # from PyTorch's 1/(3 fan_in) to variance 3/fan_in: nothing else keeps SiLU's scale
            conv.weight.data *= 3
        self.mlp = nn.Sequential(nn.Linear(2 * sum(channels), hidden), nn.SiLU(), nn.Linear(hidden, 2))

    def forward(self, x):
        check_shape("NoiseLevelNet", x, self.config["in_channels"], "H", "W")
        x = x / ((x * x).mean((1, 2, 3), keepdim=True) + 1e-12).sqrt()
        statistics = []
        for i, conv in enumerate(self.convs):
            if i and i % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = F.silu(conv(x))
            if i % 2:
                statistics += [x.mean((2, 3)), ((x * x).mean((2, 3)) + 1e-6).log()]
        return self.mlp(F.cat(statistics, 1))

    def log_snr(self, pictures, batch_size=250):
        """λ's median and b for each of the pictures (N, C, H, W), on any device: two float64 NumPy arrays (N,)."""
        check_sample(pictures, "pictures")
        batches = (pictures[i:i + batch_size].astype(np.float32) for i in range(0, len(pictures), batch_size))
        with no_grad():
            results = [self(Tensor(x, device=self.device)).cpu().data for x in batches]
        median, log_b = np.concatenate(results).astype(np.float64).T
        return median, np.exp(log_b)

    def sigma(self, pictures):
        """Standard deviation of the noise, (N,), in units of the clean picture x_0: exp(−λ/2)."""
        return np.exp(-0.5 * self.log_snr(pictures)[0])

    def timesteps(self, pictures, scheduler):
        """The scheduler's level t of each picture: (N,) int64, the nearest to the median of λ."""
        return scheduler.sigma_to_t(self.sigma(pictures).clip(scheduler.sigmas[0], scheduler.sigmas[-1]))


def laplace_nll(output, log_snr):
    """−log p(λ | x) = |λ − median|/b + log 2b, averaged (Kendall & Gal 2017, eq. 5, with Laplace's distribution).

    output: Tensor (N, 2) of a ``NoiseLevelNet``. log_snr: array (N,) on any device, the true λ.
    """
    median, log_b = output[:, 0], output[:, 1]
    error = (median - Tensor(log_snr.astype(output.dtype), device=output.device)).abs()
    return (error * (-log_b).exp() + log_b).mean() + float(np.log(2))
