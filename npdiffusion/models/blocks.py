"""What several networks are made of, and the checks that they share."""

import operator

import numpy as np

from .. import functional as F, nn
from ..device import array_module, to_device
from ..tensor import Tensor

GROUPS = 8  # of channels, in every group norm


def check_sizes(network, channels, groups=GROUPS, **sizes):
    """The channels as a tuple of Python's integers, which JSON can hold, then each of the sizes (or None) as one.

    Raises ValueError for channels that cannot be normalised in groups, and for sizes below 1.
    """
    channels = tuple(map(operator.index, channels))
    if not channels or any(c < 1 or c % groups for c in channels):
        raise ValueError(f"{network}: channels must be positive multiples of {groups}, got {channels}")
    for name, n in sizes.items():
        if n is not None and operator.index(n) < 1:
            raise ValueError(f"{network}: {name} must be at least 1, got {n}")
    return channels, *(None if n is None else operator.index(n) for n in sizes.values())


def check_shape(network, x, *sizes):
    """Raises unless x is a Tensor of shape (N, *sizes), where "H" and "W" stand for any size."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{network} expects a Tensor, got {type(x).__name__}: npdiffusion.Tensor(x) makes one")
    if x.ndim != 1 + len(sizes) or any(size not in (n, "H", "W") for size, n in zip(sizes, x.shape[1:])):
        raise ValueError(f"{network} expects an input of shape (N, {', '.join(map(str, sizes))}), got {x.shape}")


def check_sides(network, x, halvings):
    """ValueError unless H and W of x (N, C, H, W) can be halved so often."""
    factor = 2**halvings
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(f"{network} with {halvings} halvings expects sides that divide by {factor}, got "
                         f"{x.shape[2]}×{x.shape[3]}: pad or crop the picture")


def per_sample(network, name, value, x, *sizes):
    """Numbers of shape sizes (one for all) or (N, *sizes), as (N, *sizes) on the array x's device; or an error."""
    value, shape = value if hasattr(value, "strides") else np.asarray(value), (len(x), *sizes)
    if value.dtype.kind not in "iuf":
        raise TypeError(f"{network} expects {name} to be real numbers, got {value.dtype}")
    if value.shape not in (sizes, shape):
        raise ValueError(f"{network} expects {name} of shape {shape}, got {value.shape}")
    return array_module(x).broadcast_to(to_device(value, x), shape)


def conv_pairs(in_channels, channels):
    """A list of 3×3 convolutions, two for each resolution."""
    inputs = (in_channels, *channels[:-1])
    return nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for i, o in zip(inputs, channels) for a, b in ((i, o), (o, o)))


def self_attention(x, query, key, value, out, head_dim):
    """out(softmax(q·kᵀ/√head_dim)·v) among all pixels of x (N, C, H, W), in heads of head_dim channels
    (Vaswani et al. 2017, sec. 3.2). query, key, value, out: layers from C channels to C, pixel by pixel."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view: memory is channels-last
    heads = (layer(pixels).reshape(n, h * w, c // head_dim, head_dim).permute(0, 2, 1, 3)
             for layer in (query, key, value))
    y = F.scaled_dot_product_attention(*heads)  # [n, heads, pixels, head_dim]
    y = out(y.permute(0, 2, 1, 3).reshape(n, h * w, c))
    return y.reshape(n, h, w, c).permute(0, 3, 1, 2)


class NormSiLU(nn.GroupNorm):
    """silu(group_norm(x)·(1 + scale) + shift); see ``functional.group_norm_silu``."""

    def forward(self, x, scale_shift=None):
        return F.group_norm_silu(x, self.num_groups, self.weight, self.bias, scale_shift, self.eps)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), where the second norm is norm(h)·(1 + scale) + shift.

    scale and shift are linear in the embedding of time and class (Dhariwal & Nichol 2021, eq. 3). The second
    convolution starts at 0, so that the block starts as its skip.
    """

    def __init__(self, in_channels, out_channels, embedding_dim=None, dropout=0.0):
        self.norm1 = NormSiLU(GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        if embedding_dim:
            self.embedding = nn.Linear(embedding_dim, 2 * out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.conv2.weight.data[...] = 0
        self.conv2.bias.data[...] = 0

    def forward(self, x, embedding=None):
        scale_shift = None if embedding is None else self.embedding(embedding)  # [n, 2c]
        h = self.norm2(self.conv1(self.norm1(x)), scale_shift)
        return self.conv2(self.dropout(h)) + self.skip(x)
