"""The UNet of npdiffusion.models written in PyTorch, parameter for parameter, to measure and check against."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from npdiffusion.models import unet


def timestep_embedding(t, dim):
    """npdiffusion's, on t's device."""
    omega = torch.exp(torch.arange(dim // 2, device=t.device, dtype=torch.float64) * (-math.log(10000) / (dim // 2)))
    angle = t[:, None] * omega
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1)


class ResBlock(nn.Module):
    def __init__(self, in_channels, out_channels, embedding_dim):
        super().__init__()
        self.norm1 = nn.GroupNorm(unet.GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(unet.GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if embedding_dim:
            self.embedding = nn.Linear(embedding_dim, 2 * out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, embedding):
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if embedding is not None:
            scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(unet.GROUPS, channels)
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x):
        n, c, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, c)
        heads = (layer(pixels).reshape(n, h * w, c // unet.HEAD, unet.HEAD).permute(0, 2, 1, 3)
                 for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*heads)
        y = self.out(y.permute(0, 2, 1, 3).reshape(n, h * w, c))
        return x + y.reshape(n, h, w, c).permute(0, 3, 1, 2)


class Level(nn.Module):
    def __init__(self, in_channels, channels, blocks, attention, embedding_dim):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(channels if i else in_channels, channels, embedding_dim) for i in range(blocks))
        self.attentions = nn.ModuleList(Attention(channels) if attention else nn.Identity() for _ in range(blocks))

    def forward(self, x, embedding):
        for block, attention in zip(self.blocks, self.attentions):
            x = attention(block(x, embedding))
        return x


class UNet(nn.Module):
    def __init__(self, in_channels, out_channels, channels, blocks, attention, time, num_classes, dropout=0.0,
                 sample_size=None):
        super().__init__()
        width = 4 * channels[0] if time or num_classes is not None else None
        self.time, self.num_classes, self.width = time, num_classes, width
        if time:
            self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, width)

        def level(i, inputs, count=blocks):
            return Level(inputs, channels[i], count, i in attention, width)

        bottom = len(channels) - 1
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(level(i, channels[max(i - 1, 0)]) for i in range(bottom))
        self.middle = level(bottom, channels[max(bottom - 1, 0)], 2 * blocks)
        self.up = nn.ModuleList(level(i, 2 * channels[i]) for i in range(bottom))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(channels[i + 1], channels[i], 2, stride=2)
                                      for i in range(bottom))
        self.norm_out = nn.GroupNorm(unet.GROUPS, channels[0])
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(self, x, t=None, labels=None):
        embedding = None
        if self.time:
            embedding = self.time_mlp(timestep_embedding(t, self.width).to(x.dtype))
        if self.num_classes is not None:
            of_class = self.class_embedding(labels)
            embedding = of_class if embedding is None else embedding + of_class
        embedding = None if embedding is None else F.silu(embedding)
        h, skips = self.conv_in(x), []
        for level in self.down:
            h = level(h, embedding)
            skips.append(h)
            h = F.max_pool2d(h, 2)
        h = self.middle(h, embedding)
        for level, upsample in reversed(list(zip(self.up, self.upsample))):
            h = level(torch.cat([upsample(h), skips.pop()], 1), embedding)
        return self.conv_out(F.silu(self.norm_out(h)))
