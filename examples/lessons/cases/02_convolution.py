"""What the exercises of lesson 2 should return."""

import numpy as np


def output_size():
    """Windows are laid down one after the other, until one does not fit."""
    for n, kernel, stride, padding, dilation in [(3, 1, 1, 0, 1), (3, 2, 1, 0, 1), (4, 1, 2, 0, 1), (5, 2, 2, 0, 1),
                                                 (3, 3, 1, 1, 1), (5, 3, 1, 0, 2), (2, 3, 1, 2, 2), (32, 3, 2, 1, 1),
                                                 (28, 5, 3, 2, 2), (7, 7, 4, 0, 1)]:
        inside, count = set(range(-padding, n + padding)), 0
        while {-padding + count * stride + tap * dilation for tap in range(kernel)} <= inside:
            count += 1
        yield (n, kernel, stride, padding, dilation), count


def conv2d():
    """The definition: each window is picked from x by the places of its taps, those outside x being 0."""
    rng = np.random.default_rng(0)
    for shape, (O, K), stride, padding, dilation in [
            ((1, 1, 2, 2), (1, 1), 1, 0, 1), ((1, 1, 2, 3), (1, 2), 1, 0, 1), ((1, 1, 3, 3), (1, 1), 2, 0, 1),
            ((1, 1, 2, 2), (1, 2), 1, 1, 1), ((1, 1, 3, 3), (1, 2), 1, 0, 2), ((1, 2, 2, 2), (3, 2), 1, 0, 1),
            ((2, 1, 2, 2), (2, 2), 1, 0, 1), ((2, 3, 8, 7), (4, 3), 2, 1, 2), ((1, 2, 9, 9), (2, 2), 3, 2, 3)]:
        x, w = rng.integers(1, 10, shape).astype(float), rng.integers(1, 10, (O, shape[1], K, K)).astype(float)
        N, _, H, W = shape
        P, Q = ((size + 2 * padding - dilation * (K - 1) - 1) // stride + 1 for size in (H, W))
        y = np.zeros((N, O, P, Q))
        for p, q, i, j in np.ndindex(P, Q, K, K):
            h, v = p * stride + i * dilation - padding, q * stride + j * dilation - padding
            if 0 <= h < H and 0 <= v < W:
                y[:, :, p, q] += x[:, :, h, v] @ w[:, :, i, j].T
        yield (x, w, stride, padding, dilation), y


def conv_transpose2d_backward():
    """<g, y> is linear in x and in w: the gradient of an element is its value where that element is 1, all else 0."""
    rng = np.random.default_rng(0)

    def value(g, x, w):
        return sum((g[:, :, i : i + x.shape[2], j : j + x.shape[3]] * np.tensordot(w[:, :, i, j], x, (0, 1))
                    .swapaxes(0, 1)).sum() for i, j in np.ndindex(w.shape[2:]))

    def elements(shape):
        return np.eye(np.prod(shape)).reshape(-1, *shape)

    for N, O, C, K, P, Q in [(1, 1, 1, 1, 1, 2), (1, 1, 1, 2, 1, 1), (1, 1, 1, 2, 2, 1), (1, 2, 1, 1, 1, 2),
                             (1, 1, 2, 2, 1, 2), (2, 1, 1, 1, 1, 1), (2, 2, 3, 2, 3, 4)]:
        g = rng.integers(1, 10, (N, C, P + K - 1, Q + K - 1)).astype(float)
        x, w = rng.integers(1, 10, (N, O, P, Q)).astype(float), rng.integers(1, 10, (O, C, K, K)).astype(float)
        dx, dw = [value(g, e, w) for e in elements(x.shape)], [value(g, x, e) for e in elements(w.shape)]
        yield (g, x, w), (np.reshape(dx, x.shape), np.reshape(dw, w.shape))


def winograd_tile():
    """Y by its definition, M from the four products in one dimension, which are linear in d and in f."""
    def products(d, f):
        return np.array([(d[0] - d[2]) * f[0], (d[1] + d[2]) * (f[0] + f[1] + f[2]) / 2,
                         (d[2] - d[1]) * (f[0] - f[1] + f[2]) / 2, (d[1] - d[3]) * f[2]])

    one = np.array([[products(d, f) for f in np.eye(3)] for d in np.eye(4)])  # [pixel, tap, product]
    rng, ramp = np.random.default_rng(0), np.arange(16.0).reshape(4, 4)
    for d, f in [(np.ones((4, 4)), np.ones((3, 3))), (ramp, np.eye(1, 9, 1).reshape(3, 3)),
                 (ramp, np.eye(1, 9, 8).reshape(3, 3)), (rng.standard_normal((4, 4)), rng.standard_normal((3, 3)))]:
        M = np.einsum("kl, ij, kim, ljn -> mn", d, f, one, one)
        yield (d, f), (M, np.array([[(f * d[p : p + 3, q : q + 3]).sum() for q in range(2)] for p in range(2)]))
