"""What the exercises of lesson 3 should return."""

import numpy as np


def _gradients(f, g, inputs):
    """Central differences: of each input the gradient of <g, f(inputs)>."""
    gradients = [np.zeros(x.shape) for x in inputs]
    for i, x in enumerate(inputs):
        for at in np.ndindex(x.shape):
            ahead, behind = ([a.copy() for a in inputs] for _ in range(2))
            ahead[i][at] += 1e-6
            behind[i][at] -= 1e-6
            gradients[i][at] = (g * (f(*ahead) - f(*behind))).sum() / 2e-6
    return tuple(np.round(gradient, 8) + 0.0 for gradient in gradients)


def avg_pool2d_backward():
    """Central differences of the mean of a list of pixels."""
    rng = np.random.default_rng(0)
    for shape, (P, Q), K, stride in [((1, 1, 1, 2), (1, 1), 1, 2), ((1, 1, 2, 2), (1, 1), 2, 2),
                                     ((1, 1, 1, 2), (1, 1), 2, 2), ((1, 1, 1, 3), (1, 2), 2, 1),
                                     ((1, 1, 2, 3), (1, 2), 2, 2), ((2, 2, 2, 3), (1, 2), 2, 2),
                                     ((1, 2, 5, 4), (3, 2), 3, 2)]:
        def pool(x):
            y = np.empty((*shape[:2], P, Q))
            for p, q in np.ndindex(P, Q):
                pixels = [x[:, :, h, w] for h in range(shape[2]) for w in range(shape[3])
                          if 0 <= h - p * stride < K and 0 <= w - q * stride < K]
                y[:, :, p, q] = np.mean(pixels, 0)
            return y

        g = rng.integers(1, 10, (*shape[:2], P, Q)).astype(float)
        yield (g, shape, K, stride), _gradients(pool, g, [np.zeros(shape)])[0]


def rms_norm_backward():
    """Central differences."""
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 2), (2, 1), (1, 3), (3, 4)]:
        g, x = rng.standard_normal((2, *shape)).round(1)
        weight, eps = rng.integers(2, 5, shape[1]).astype(float), 0.5

        def norm(x, weight):
            return weight * x / np.sqrt((x ** 2).sum(1)[:, None] / shape[1] + eps)

        yield (g, x, weight, eps), _gradients(norm, g, [x, weight])


def attention_backward():
    """Central differences of the definition, query by query."""
    rng = np.random.default_rng(0)
    for n, m, d, e in [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1), (1, 2, 4, 1), (2, 2, 1, 2), (3, 4, 2, 3)]:
        g, q, k, v = (rng.standard_normal(shape).round(1) for shape in ((n, e), (n, d), (m, d), (m, e)))

        def attention(q, k, v):
            weights = [[np.exp(sum(q_i * k_i) / d ** 0.5) for k_i in k] for q_i in q]
            return np.array([sum(w * v_i for w, v_i in zip(row, v)) / sum(row) for row in weights])

        yield (g, q, k, v), _gradients(attention, g, [q, k, v])


def receptive_field():
    """All pixels are followed, layer by layer: the set that one output sees, of each of these what it sees, …"""
    for layers, p in [([], 3), ([(3, 1, 0)], 0), ([(3, 1, 1)], 0), ([(1, 2, 0)], 3), ([(2, 2, 0)], 3),
                      ([(3, 1, 0), (2, 2, 0)], 0), ([(2, 2, 0), (3, 1, 0)], 1), ([(3, 1, 1), (3, 1, 1)], 5),
                      ([(3, 1, 1), (3, 2, 1), (3, 1, 1), (3, 2, 1)], 7)]:
        seen = {p}
        for kernel, stride, padding in layers[::-1]:
            seen = {output * stride - padding + tap for output in seen for tap in range(kernel)}
        yield (layers, p), (min(seen), max(seen))
