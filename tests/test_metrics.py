"""Metrics against values computed by hand; figures are pictures of the expected size."""

import numpy as np
import pytest
from PIL import Image

from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr


def test_psnr_by_hand():
    a = np.zeros((3, 1, 2, 2), np.float32)
    b = a.copy()
    b[0] += 0.2  # mse 0.04: 10·log10(4/0.04) = 20 dB
    b[1, 0, 0, 0] = 2.0  # mse 1: 6.02 dB
    assert np.allclose(psnr(a, b)[:2], [20, 10 * np.log10(4)]) and psnr(a, b)[2] == np.inf
    assert np.isclose(psnr(a, b, peak=1)[0], 10 * np.log10(1 / 0.04))
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:2])


def test_picture_rows(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.uniform(-1, 1, (6, 1, 8, 8)) for _ in range(3)]
    figure = picture_rows(rows, ["noisy", "denoised", "original"], ["a", "b", "c"], group=2)
    save_figure(figure, tmp_path / "a.png", dpi=100)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert image.shape[1] > 6 * 60 and 3 * 60 < image.shape[0] < 3 * 60 + 80
    assert 0.5 < (image < 255).mean() < 0.9 and len(np.unique(image)) > 100
