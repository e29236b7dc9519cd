"""Random numbers."""

import numpy as np


def default_rng(seed):
    """NumPy's generator with this seed."""
    return np.random.default_rng(seed)
