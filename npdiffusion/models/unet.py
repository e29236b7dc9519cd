"""One UNet for all jobs: denoising with time and class, segmentation without."""

import operator

import numpy as np

from .. import functional as F, nn
from ..device import array_module
from ..kernels import kernels
from ..tensor import Tensor
from .blocks import GROUPS, NormSiLU, ResBlock, check_shape, check_sides, check_sizes, per_sample, self_attention

HEAD = 32  # channels of one attention head


def timestep_embedding(t, dim, max_period=10000.0, dtype=np.float64):
    """Sinusoids of the time step: cos(t·ω_i), then sin(t·ω_i), with ω_i = max_period^(−i/(dim/2)).

    t: (N,) numbers -> (N, dim); dim is even. Vaswani et al. 2017, sec. 3.5; Ho et al. 2020, app. B.
    """
    return kernels(t).timestep_embedding(t, dim, max_period, dtype)


class Attention(nn.Module):
    """x + out(attention(query, key, value of norm(x))) among all pixels, in heads of 32 channels."""

    def __init__(self, channels):
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x):
        return x + self_attention(self.norm(x), self.query, self.key, self.value, self.out, HEAD)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked."""

    def __init__(self, in_channels, channels, blocks, attention, embedding_dim, dropout):
        self.blocks = nn.ModuleList(
            ResBlock(channels if i else in_channels, channels, embedding_dim, dropout) for i in range(blocks))
        self.attentions = nn.ModuleList(Attention(channels) if attention else nn.Identity() for _ in range(blocks))

    def forward(self, x, embedding):
        for block, attention in zip(self.blocks, self.attentions):
            x = attention(block(x, embedding))
        return x


class UNet(nn.Module):
    """Down by max pooling, up by transposed convolution, skips by concatenation (Ronneberger et al. 2015).

    Args:
        in_channels, out_channels: of the picture and of the result.
        channels: one number for each resolution, from full size down by halves; multiples of 8.
        blocks: residual blocks for each resolution, on the way down and again on the way up.
        attention: indices into ``channels`` where self-attention follows the blocks (multiples of 32 there).
        time: whether the model takes the time step t (Ho et al. 2020: sinusoids → MLP → every block).
        num_classes: None, or K: the model then takes labels 0 … K − 1, and K for "no class", which classifier-free
            guidance needs (Ho & Salimans 2022).
        dropout: probability in the blocks.
        sample_size: side of the pictures that it is trained on, for whoever draws with it; nothing here depends on it.

    Called as ``unet(x, t, labels)`` with x a Tensor (N, in_channels, H, W), H and W multiples of 2^(len(channels) − 1),
    t integers (N,) or one integer, labels integers (N,) or None (no class), both on the CPU or on x's device; returns a
    Tensor (N, out_channels, H, W). ``config`` holds the arguments: UNet(**config) builds the same network.
    """

    def __init__(self, in_channels=1, out_channels=1, channels=(32, 64, 128), blocks=1, attention=(), time=True,
                 num_classes=None, dropout=0.0, sample_size=None):
        channels, in_channels, out_channels, blocks, num_classes, sample_size = check_sizes(
            "UNet", channels, in_channels=in_channels, out_channels=out_channels, blocks=blocks,
            num_classes=num_classes, sample_size=sample_size)
        attention, time, dropout = tuple(map(operator.index, attention)), bool(time), float(dropout)
        self.config = dict(in_channels=in_channels, out_channels=out_channels, channels=channels, blocks=blocks,
                           attention=attention, time=time, num_classes=num_classes, dropout=dropout,
                           sample_size=sample_size)
        if any(not 0 <= i < len(channels) or channels[i] % HEAD for i in attention):
            raise ValueError(f"UNet: attention lists levels 0 to {len(channels) - 1} whose channels divide by {HEAD}, "
                             f"got {attention} with channels {channels}")
        width = 4 * channels[0] if time or num_classes is not None else None  # of the embedding of time and class
        self.num_classes, self.time = num_classes, time
        if time:
            self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)

        def level(i, inputs, count=blocks):
            return Level(inputs, channels[i], count, i in attention, width, dropout)

        bottom = len(channels) - 1
        inputs = (channels[0], *channels)  # of each level on the way down
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(level(i, inputs[i]) for i in range(bottom))
        self.middle = level(bottom, inputs[bottom], 2 * blocks)
        self.up = nn.ModuleList(level(i, 2 * channels[i]) for i in range(bottom))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(channels[i + 1], channels[i], 2, stride=2)
                                      for i in range(bottom))
        self.norm_out = NormSiLU(GROUPS, channels[0])
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)
        self.conv_out.weight.data[...] = 0
        self.conv_out.bias.data[...] = 0

    def forward(self, x, t=None, labels=None):
        self._check(x, t, labels)
        embedding = self._embedding(x.data, t, labels)
        h, skips = self.conv_in(x), []
        for level in self.down:
            h = level(h, embedding)
            skips.append(h)
            h = F.max_pool2d(h, 2)
        h = self.middle(h, embedding)
        for level, upsample in reversed(list(zip(self.up, self.upsample))):
            h = level(F.cat([upsample(h), skips.pop()], 1), embedding)
        return self.conv_out(self.norm_out(h))

    def _embedding(self, x, t, labels):
        """What the blocks are told of time and class: (N, 4·channels[0]), or None."""
        embedding, xp, n = None, array_module(x), len(x)
        if self.time:
            t = per_sample("UNet", "t", t, x)
            sinusoids = timestep_embedding(t, self.time_mlp[0].in_features, dtype=x.dtype)
            embedding = self.time_mlp(Tensor(sinusoids))
        if self.num_classes is not None:
            labels = xp.full(n, self.num_classes) if labels is None else per_sample("UNet", "labels", labels, x)
            of_class = self.class_embedding(labels)
            embedding = of_class if embedding is None else embedding + of_class
        return None if embedding is None else F.silu(embedding)

    def _check(self, x, t, labels):
        check_shape("UNet", x, self.config["in_channels"], "H", "W")
        check_sides("UNet", x, len(self.down))
        if (t is not None) != self.time:
            raise ValueError(f"this UNet was built with time={self.time} and {'needs' if self.time else 'takes no'} t")
        if labels is not None and self.num_classes is None:
            raise ValueError("this UNet was built without num_classes and takes no labels")
