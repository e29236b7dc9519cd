"""What several networks are made of, and the checks that they share."""

from .. import functional as F
from .. import nn

__all__ = ["GROUPS", "NormSiLU", "ResBlock", "check_channels", "check_shape", "conv_pairs", "mlp"]

GROUPS = 8  # of channels, in every group norm


def check_channels(network, channels):
    """ValueError unless the channels can be normalised in groups."""
    if not channels or any(c % GROUPS for c in channels):
        raise ValueError(f"{network}: channels must be multiples of {GROUPS}, got {channels}")


def check_shape(network, x, *sizes):
    """ValueError unless x has the shape (N, *sizes); a letter stands for any size."""
    if x.ndim != 1 + len(sizes) or any(size not in (n, "H", "W") for size, n in zip(sizes, x.shape[1:])):
        raise ValueError(f"{network} expects an input of shape (N, {', '.join(map(str, sizes))}), got {x.shape}")


def mlp(inputs, hidden, outputs):
    """Two linear layers with a SiLU in between."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def conv_pairs(in_channels, channels):
    """Two 3×3 convolutions for each resolution: the first from the channels of the one above, both to its own."""
    inputs = (in_channels, *channels[:-1])
    return nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for i, o in zip(inputs, channels) for a, b in ((i, o), (o, o)))


class NormSiLU(nn.GroupNorm):
    """silu(group_norm(x)·(1 + scale) + shift), with (scale, shift) a Tensor (N, 2C) or None for zeros."""

    def __init__(self, channels):
        super().__init__(GROUPS, channels)

    def forward(self, x, scale_shift=None):
        return F.group_norm_silu(x, self.num_groups, self.weight, self.bias, scale_shift)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where time and class scale and shift the second norm.

    The conditioning is Dhariwal & Nichol 2021, eq. 3: norm(h)·(1 + scale) + shift, with scale and shift linear in
    the embedding. The second convolution starts at 0, so that the block starts as its skip.
    """

    def __init__(self, in_channels, out_channels, embedding_dim=None, dropout=0.0):
        self.norm1 = NormSiLU(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        if embedding_dim:
            self.embedding = nn.Linear(embedding_dim, 2 * out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.conv2.weight.data[...] = 0
        self.conv2.bias.data[...] = 0

    def forward(self, x, embedding=None):
        h = self.conv1(self.norm1(x))
        h = self.norm2(h, None if embedding is None else self.embedding(embedding))  # [n, 2c]
        return self.conv2(self.dropout(h)) + self.skip(x)
