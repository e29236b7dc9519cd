"""Layers: an op, its parameters, and their default initialisation (PyTorch's)."""

import math
from inspect import Signature, signature

import numpy as np

from .. import functional as F
from ..functional._arguments import check_groups, ints, pair
from ..random import default_generator
from .module import Module, Parameter


def _uniform(shape, fan_in):
    """U(−1/√fan_in, 1/√fan_in), PyTorch's default (He et al. 2015 with a = √5)."""
    bound = 1 / math.sqrt(fan_in)
    return Parameter(default_generator().uniform(-bound, bound, shape).astype(np.float32))


class Linear(Module):
    """y = x·Wᵀ + b; weight (out_features, in_features), bias (out_features,). See ``functional.linear``."""

    def __init__(self, in_features, out_features, bias=True):
        self.in_features, self.out_features = in_features, out_features = ints((in_features, out_features))
        self.weight = _uniform((out_features, in_features), in_features)
        self.bias = _uniform((out_features,), in_features) if bias else None

    def forward(self, input):
        return F.linear(input, self.weight, self.bias)


class _Conv(Module):
    """What both convolutions have: sizes, and a weight with its bias."""

    transposed = False

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        self.in_channels, self.out_channels = channels = ints((in_channels, out_channels))
        for count in channels:
            self.groups = groups = check_groups(type(self).__name__, "groups", groups, count)
        self.kernel_size, self.stride = pair(kernel_size, "kernel_size"), stride
        self.padding, self.dilation = padding, dilation
        first, second = channels if self.transposed else channels[::-1]
        shape = first, second // groups, *self.kernel_size
        self.weight = _uniform(shape, math.prod(shape[1:]))
        channels_last = np.ascontiguousarray(self.weight.data.transpose(0, 2, 3, 1))
        self.weight.data = channels_last.transpose(0, 3, 1, 2)  # in memory as images are: no kernel can see to that
        self.bias = _uniform((out_channels,), math.prod(shape[1:])) if bias else None


class Conv2d(_Conv):
    """See ``functional.conv2d``; weight (out_channels, in_channels/groups, kh, kw), bias (out_channels,)."""

    def forward(self, input):
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose2d(_Conv):
    """See ``functional.conv_transpose2d``; weight (in_channels, out_channels/groups, kh, kw)."""

    transposed = True

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1,
                 bias=True, dilation=1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.output_padding = output_padding

    def forward(self, input):
        return F.conv_transpose2d(input, self.weight, self.bias, self.stride, self.padding, self.output_padding,
                                  self.groups, self.dilation)


class GroupNorm(Module):
    """See ``functional.group_norm``; weight and bias (num_channels,) start at 1 and 0."""

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True):
        num_groups, num_channels = ints((num_groups, num_channels))
        check_groups("GroupNorm", "num_groups", num_groups, num_channels)
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(np.ones(num_channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32)) if affine else None

    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(Module):
    """See ``functional.layer_norm``; weight and bias of shape ``normalized_shape`` start at 1 and 0."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True):
        self.normalized_shape = shape = ints(normalized_shape)
        self.eps = eps
        self.weight = Parameter(np.ones(shape, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if elementwise_affine else None

    def forward(self, input):
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class Embedding(Module):
    """See ``functional.embedding``; weight (num_embeddings, embedding_dim) starts as N(0, 1)."""

    def __init__(self, num_embeddings, embedding_dim):
        self.num_embeddings, self.embedding_dim = size = ints((num_embeddings, embedding_dim))
        self.weight = Parameter(default_generator().standard_normal(size, np.float32))

    def forward(self, input):
        return F.embedding(input, self.weight)


class Dropout(Module):
    """See ``functional.dropout``; drops in training mode only."""

    def __init__(self, p=0.5, inplace=False):
        self.p, self.inplace = p, inplace

    def forward(self, input):
        return F.dropout(input, self.p, self.training, self.inplace)


class Identity(Module):
    """Returns its input."""

    def forward(self, input):
        return input


def _layer(name, op, order=None, **defaults):
    """A layer without parameters, for an op of one Tensor: it takes the op's other arguments, in this order."""
    names = order.split() if order else list(signature(op).parameters)[1:]
    arguments = [signature(op).parameters[name] for name in names]
    arguments = Signature([p.replace(default=defaults.get(p.name, p.default)) for p in arguments])

    def __init__(self, *args, **options):
        given = arguments.bind(*args, **options)
        given.apply_defaults()
        vars(self).update(given.arguments)

    def forward(self, input):
        return op(input, **{name: getattr(self, name) for name in names})

    return type(name, (Module,), {"__doc__": f"See ``functional.{op.__name__}``.", "__module__": __name__,
                                  "__init__": __init__, "forward": forward})


MaxPool2d = _layer("MaxPool2d", F.max_pool2d, "kernel_size stride padding dilation return_indices ceil_mode")
AvgPool2d = _layer("AvgPool2d", F.avg_pool2d)
Flatten = _layer("Flatten", F.flatten, start_dim=1)  # keeps the batch axis
Upsample = _layer("Upsample", F.interpolate)
ReLU = _layer("ReLU", F.relu)
SiLU = _layer("SiLU", F.silu)
GELU = _layer("GELU", F.gelu)
Sigmoid = _layer("Sigmoid", F.sigmoid)
Tanh = _layer("Tanh", F.tanh)
Softplus = _layer("Softplus", F.softplus)
