"""What the exercises of lesson 12 should return."""

import numpy as np


def pooling_pinv():
    """A as a matrix, and NumPy's pseudo-inverse of it."""
    rng = np.random.default_rng(0)
    for h, w, k in [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 3)]:
        y = rng.integers(1, 10, (h, w)).astype(float)
        A = np.zeros((h * w, h * k * w * k))
        for i in range(h * k):
            for j in range(w * k):
                A[i // k * w + j // k, i * w * k + j] = 1 / k**2
        yield (y, k), (np.linalg.pinv(A) @ y.ravel()).reshape(h * k, w * k)


def consistent():
    """Lagrange's equations, z + Aᵀ μ = x and A z = y, solved as one system."""
    rng = np.random.default_rng(0)
    for m, d in [(1, 1), (1, 2), (2, 3), (2, 4)]:
        A, x, y = rng.integers(1, 4, (m, d)) + 3.0 * np.eye(m, d), rng.integers(-3, 4, d) / 2, rng.integers(1, 9, m) / 2
        system = np.block([[np.eye(d), A.T], [A, np.zeros((m, m))]])

        def forward(z, A=A):
            return A @ z

        def pinv(r, A=A):
            return np.linalg.pinv(A) @ r

        forward.__doc__ = f"z to A z, A = {A.tolist()}"
        pinv.__doc__ = f"r to A⁺ r, A = {A.tolist()}"
        yield (x, y, forward, pinv), np.linalg.solve(system, np.append(x, y))[:d]


def pull_on_estimate():
    """The best z of ‖z − x̂_0‖²/r² + ‖y − A z‖²/σ², as least squares, less x̂_0: the posterior mean of a Gaussian."""
    rng = np.random.default_rng(0)
    for m, d, sigma, r in [(1, 1, 1.0, 1.0), (1, 1, 1.0, 2.0), (1, 2, 0.5, 1.0), (2, 1, 1.0, 0.5), (2, 3, 2.0, 1.5)]:
        A, y, x0 = rng.integers(1, 4, (m, d)).astype(float), rng.integers(4, 9, m) / 2, rng.integers(-3, 1, d) / 2
        rows, right = np.concatenate([np.eye(d) / r, A / sigma]), np.append(x0 / r, y / sigma)
        yield (A, y, x0, sigma, r), np.linalg.lstsq(rows, right)[0] - x0


def fill():
    """Of all z that agree with x the one of highest density: (z − mean)ᵀ C⁻¹ (z − mean) is least."""
    rng = np.random.default_rng(0)
    for known in ([True, False], [False, True], [True, False, True], [False, True, False], [True, False, False, True]):
        known, d = np.array(known), len(known)
        root = rng.integers(-1, 2, (d, d)) + 2.0 * np.eye(d)
        mean, C, x = rng.integers(-2, 3, d) / 2, root @ root.T, rng.integers(1, 5, d).astype(float)
        precision, expected = np.linalg.inv(C), x.copy()
        # 0 = d/dz_h = P_hh (z_h − mean_h) + P_hk (x_k − mean_k)
        slope = precision[np.ix_(~known, known)] @ (x - mean)[known]
        expected[~known] = mean[~known] - np.linalg.solve(precision[np.ix_(~known, ~known)], slope)
        yield (x, known, mean, C), expected
