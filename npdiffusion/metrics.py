"""How good a result is, in numbers."""

import numpy as np

__all__ = ["psnr"]


def psnr(images, originals, peak=2.0):
    """Peak signal-to-noise ratio in dB for each picture: 10·log₁₀(peak²/MSE); infinite where they are equal.

    images, originals: (N, …) arrays of one shape; peak: the width of their range, 2 for [−1, 1]. Returns (N,) float64.
    """
    if images.shape != originals.shape:
        raise ValueError(f"psnr expects two arrays of one shape, got {images.shape} and {originals.shape}")
    difference = images.astype(np.float64) - originals
    mse = (difference * difference).reshape(len(images), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak * peak / mse)
