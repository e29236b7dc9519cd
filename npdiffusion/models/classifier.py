"""A small convolutional classifier, which judges what the generative models make."""

from .. import functional as F
from .. import nn
from .unet import GROUPS, check_channels

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Two 3×3 convolutions and a max pooling for each resolution, then the mean over pixels and one linear layer.

    Args:
        num_classes: K.
        in_channels: of the picture.
        channels: one number for each resolution; multiples of 8.
        dropout: probability before the linear layer.

    Called with a Tensor (N, in_channels, H, W); returns the logits (N, K). ``features`` returns what the linear
    layer sees, (N, channels[-1]): the space in which the classifier-FID compares pictures.
    """

    def __init__(self, num_classes=10, in_channels=1, channels=(32, 64, 128), dropout=0.0):
        channels = tuple(channels)
        self.config = dict(num_classes=num_classes, in_channels=in_channels, channels=channels, dropout=dropout)
        self.num_classes = num_classes
        check_channels("Classifier", channels)
        inputs = (in_channels, *channels[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1)
                                   for i, o in zip(inputs, channels) for a, b in ((i, o), (o, o)))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, o) for o in channels for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels[-1], num_classes)

    def features(self, x):
        """(N, channels[-1]): the mean over all pixels of the last resolution."""
        if x.ndim != 4 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(f"Classifier expects an input of shape (N, {self.config['in_channels']}, H, W), "
                             f"got {x.shape}")
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if i and i % 2 == 0:
                x = F.max_pool2d(x, 2)
            x = F.group_norm_silu(conv(x), GROUPS, norm.weight, norm.bias)
        return x.mean((2, 3))

    def forward(self, x):
        return self.linear(self.dropout(self.features(x)))
