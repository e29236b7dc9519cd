"""A small convolutional classifier, which judges what the generative models make."""

from .. import functional as F, nn
from .blocks import GROUPS, NormSiLU, check_shape, check_sizes, conv_pairs


class Classifier(nn.Module):
    """Two 3×3 convolutions and a max pooling for each resolution, then the mean over pixels and one linear layer.

    Args:
        num_classes: K. in_channels: of the picture.
        channels: one number for each resolution; multiples of 8.
        dropout: probability before the linear layer.

    Called with a Tensor (N, in_channels, H, W); returns the logits (N, K).
    """

    def __init__(self, num_classes=10, in_channels=1, channels=(32, 64, 128), dropout=0.0):
        channels, num_classes, in_channels = check_sizes("Classifier", channels, num_classes=num_classes,
                                                         in_channels=in_channels)
        self.config = dict(num_classes=num_classes, in_channels=in_channels, channels=channels, dropout=float(dropout))
        self.num_classes = num_classes
        self.convs = conv_pairs(in_channels, channels)
        self.norms = nn.ModuleList(NormSiLU(GROUPS, c) for c in channels for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels[-1], num_classes)

    def features(self, x):
        """What the linear layer sees, (N, channels[-1]): the space in which the classifier-FID compares pictures."""
        check_shape("Classifier", x, self.config["in_channels"], "H", "W")
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if i and i % 2 == 0:
                x = F.max_pool2d(x, 2)
            x = norm(conv(x))
        return x.mean((2, 3))

    def forward(self, x):
        return self.linear(self.dropout(self.features(x)))
