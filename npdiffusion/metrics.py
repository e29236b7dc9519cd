"""How good a result is, in numbers; all arrays are NumPy's."""

import numpy as np

WINDOW = 11  # pixels: width of the window of ssim


def as_float64(images, originals, peak):
    """Both arrays as float64, and the width of their range: 2 if ``peak`` is None and both are floating."""
    if peak is None and not images.dtype.kind == originals.dtype.kind == "f":
        raise ValueError(f"peak must be given for pictures of {images.dtype} and {originals.dtype}, as peak=255: "
                         "the default is for floats in [-1, 1]")
    return images.astype(np.float64), originals.astype(np.float64), 2.0 if peak is None else peak


def psnr(images, originals, peak=None):
    """Peak signal-to-noise ratio in dB for each picture: 10·log₁₀(peak²/MSE); infinite where they are equal.

    images, originals: (N, …) arrays of one shape. peak: the width of their range, by default 2 for floats in [−1, 1];
    integers need it (ValueError). Returns (N,) float64.
    """
    if images.shape != originals.shape:
        raise ValueError(f"psnr expects two arrays of one shape, got {images.shape} and {originals.shape}")
    images, originals, peak = as_float64(images, originals, peak)
    difference = images - originals
    mse = (difference * difference).reshape(len(images), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak * peak / mse)


def ssim(images, originals, peak=None):
    """Structural similarity of each picture: 1 where they are equal, near 0 where they have nothing in common.

    SSIM = (2 μ_x μ_y + C_1) (2 σ_xy + C_2) / ((μ_x² + μ_y² + C_1) (σ_x² + σ_y² + C_2)), the mean over all places where
    an 11×11 Gaussian window (σ = 1.5) fits into the picture, C_1 = (0.01 peak)², C_2 = (0.03 peak)² (Wang et al. 2004,
    eq. 13). It is what scikit-image computes with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.

    images, originals: (N, …, H, W) arrays of one shape, H and W at least 11. peak: as for :func:`psnr`. Returns (N,)
    float64.
    """
    if images.shape != originals.shape or images.ndim < 3 or min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim expects two arrays of one shape (N, …, H, W), H and W at least {WINDOW}, "
                         f"got {images.shape} and {originals.shape}")
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / 1.5) ** 2)
    weights /= weights.sum()

    def mean(a):  # over the window, at every place where it fits
        for axis in (-2, -1):
            a = np.lib.stride_tricks.sliding_window_view(a, WINDOW, axis) @ weights
        return a

    x, y, peak = as_float64(images, originals, peak)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.reshape(len(x), -1).mean(1)


def frechet_distance(a, b):
    """Fréchet distance of two sets of features, each taken for a Gaussian: FID's formula (Heusel et al. 2017, eq. 6).

    d² = ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½)

    a, b: (N, D) and (M, D), at least two rows each. Returns d², a float. It falls with N and M until they are much
    larger than D: compare only numbers from sets of equal size.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError("frechet_distance expects features of shapes (N, D) and (M, D), two rows at least, "
                         f"got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.cov(x, rowvar=False).reshape(a.shape[1], -1) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T  # rounding can leave −1e-17
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def segmentation_scores(predicted, labelled):
    """How well two foregrounds agree: {"iou", "dice", "precision", "recall"}, floats from 0 to 1.

    With P and L the numbers of pixels predicted and labelled and B those in both: IoU = B/(P + L − B),
    Dice = 2B/(P + L), precision = B/P, recall = B/L. What divides by 0 counts as 1 where P = L = 0, else as 0.

    predicted, labelled: bool arrays of one shape; of several pictures, all pixels count together.
    """
    if predicted.shape != labelled.shape or predicted.dtype != bool or labelled.dtype != bool:
        raise ValueError(f"segmentation_scores expects two bool arrays of one shape, got {predicted.dtype} "
                         f"{predicted.shape} and {labelled.dtype} {labelled.shape}")
    p, l, b = (int(np.count_nonzero(mask)) for mask in (predicted, labelled, predicted & labelled))
    parts = {"iou": (b, p + l - b), "dice": (2 * b, p + l), "precision": (b, p), "recall": (b, l)}
    return {name: up / down if down else float(p == l) for name, (up, down) in parts.items()}
