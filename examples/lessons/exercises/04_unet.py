"""Exercises of lesson 4: what a segmenter needs next. Grade them with python examples/lessons/check.py 4"""

import numpy as np


def soft_dice_backward(p, y):
    """The gradient of the Dice loss  L = 1 − (2 Σ p y + 1) / (Σ p + Σ y + 1)  with respect to p.

    p occurs above and below: the derivative of a quotient has two parts.

    p: (H, W) probabilities. y: (H, W), 1. where the label is, else 0. Returns dL/dp, (H, W).
    """


def upsample_backward(g, k):
    """The gradient of a picture that was enlarged k times by nearest neighbour: each pixel became k × k copies.

    The input of  y[i, j] = x[i // k, j // k]  was used several times: see lesson 1.

    g: (k·H, k·W), the gradient of the enlarged picture y. Returns that of x, (H, W).
    """


def tile_starts(size, tile, overlap):
    """Where tiles start along one axis of a picture that is too large for the network to see at once.

    Each tile shares ``overlap`` pixels with the one before it. If the last would stick out, it is moved back to end at
    the edge, and shares more. There are as few tiles as cover the picture; one, at 0, if it is no larger than a tile.

    size, tile, overlap: in pixels, overlap < tile. Returns a list of ints.
    """


def mean_of_eight_ways(predict, x):
    """What a network says of a square picture, as the mean over the eight ways to lay it: turned and mirrored.

    The network is asked about each way, and its answer is laid back before the mean is taken, so that answers about the
    same pixel meet. This is test-time augmentation.

    predict: a function of (n, n) that returns (n, n), one number for each pixel. x: (n, n). Returns (n, n).
    np.rot90(x, k) turns by k quarters; x[:, ::-1] mirrors.
    """
