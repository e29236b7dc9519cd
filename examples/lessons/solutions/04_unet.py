"""Solutions of lesson 4."""

import numpy as np


def soft_dice_backward(p, y):
    # L = 1 − a/b with da/dp = 2y and db/dp = 1, so dL/dp = −(2y b − a) / b²
    a, b = 2 * (p * y).sum() + 1, (p + y).sum() + 1
    return (a - 2 * y * b) / b**2


def upsample_backward(g, k):
    h, w = g.shape
    return g.reshape(h // k, k, w // k, k).sum((1, 3))  # over the copies of each pixel


def tile_starts(size, tile, overlap):
    # a further tile is needed if more than the overlap is left after its start
    return [max(0, min(start, size - tile)) for start in range(0, max(1, size - overlap), tile - overlap)]


def mean_of_eight_ways(predict, x):
    total = 0
    for k in range(4):
        turned = np.rot90(x, k)
        mirrored = predict(turned[:, ::-1])[:, ::-1]
        total = total + np.rot90(predict(turned) + mirrored, -k)  # what was done last is undone first
    return total / 8
