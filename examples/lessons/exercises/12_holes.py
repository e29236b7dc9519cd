"""Exercises of lesson 12: from measurements to pictures. Grade them with python examples/lessons/check.py 12"""

import numpy as np


def pooling_pinv(y, k):
    """A⁺ y for A that takes the mean of each k × k pixels.

    Of all pictures whose means are y it gives the shortest (least Σ x²): A⁺ = Aᵀ (A Aᵀ)⁻¹. Each row of A has k² times
    1/k². What is A Aᵀ?

    y: (h, w). Returns (h k, w k).
    """


def consistent(x, y, forward, pinv):
    """The picture nearest to x, in squared distance, of all that fit what was measured: A z = y.

    What is to be added to x has to make up for y − A x, and should be as short as possible.

    x: an array. y: what was measured. forward, pinv: functions, z to A z and r to A⁺ r. Returns an array like x.
    """


def pull_on_estimate(A, y, x0, sigma, r):
    """How far y, measured with noise, moves an estimate x̂_0 that is uncertain itself.

    Given x_t, let x_0 be N(x̂_0, r² I), and y = A x_0 + σ n, n ~ N(0, I). Then y given x_t is a Gaussian. What are its
    mean and covariance? r² ∇ log p(y | x_t), with the gradient taken in x̂_0, is what is asked for.

    A: (M, D). y: (M,). x0: x̂_0, (D,). sigma, r: numbers; with σ > 0 A Aᵀ need not have an inverse. Returns (D,).
    """


def fill(x, known, mean, C):
    """E[x | x_known] for Gaussian pictures, N(mean, C): the best linear way to fill a hole.

    With C cut into blocks, h the hole and k the known pixels, it is mean_h + C_hk C_kk⁻¹ (x_k − mean_k) in the hole.

    x: (D,), which in the hole may hold anything. known: (D,) bool. mean: (D,). C: (D, D). Returns (D,), x where it is
    known.
    """
