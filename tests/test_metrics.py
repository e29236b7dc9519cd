"""Metrics against values computed by hand; figures are pictures of the expected size."""

import numpy as np
import pytest
from PIL import Image

from npdiffusion.diffusion import DDPMScheduler, PCAWiener, denoise, posterior_mean, variational_bound
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import frechet_distance, psnr, ssim
from npdiffusion.models import VAE, NoiseLevelNet


def test_psnr_by_hand():
    a = np.zeros((3, 1, 2, 2), np.float32)
    b = a.copy()
    b[0] += 0.2  # mse 0.04: 10·log10(4/0.04) = 20 dB
    b[1, 0, 0, 0] = 2.0  # mse 1: 6.02 dB
    assert np.allclose(psnr(a, b)[:2], [20, 10 * np.log10(4)]) and psnr(a, b)[2] == np.inf
    assert np.isclose(psnr(a, b, peak=1)[0], 10 * np.log10(1 / 0.04))
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:2])


def test_ssim_by_hand():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3, 1, 11, 11))
    assert np.allclose(ssim(x, x), 1)
    # Flat pictures have no variance: what is left is (2 μ_x μ_y + C_1) / (μ_x² + μ_y² + C_1)
    flat = np.full((1, 1, 16, 20), 0.5)
    assert np.allclose(ssim(flat, -flat), (-0.5 + 0.02**2) / (0.5 + 0.02**2))
    # One window: the formula with plain sums over its 121 weights
    y = np.clip(x + 0.3 * rng.standard_normal(x.shape), -1, 1)
    i = np.arange(11) - 5
    w = np.exp(-(i[:, None] ** 2 + i**2) / (2 * 1.5**2))
    w /= w.sum()
    for a, b, found in zip(x[:, 0], y[:, 0], ssim(x, y)):
        ma, mb = (w * a).sum(), (w * b).sum()
        va, vb, vab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
        assert np.isclose(found, (2 * ma * mb + 0.0004) / (ma**2 + mb**2 + 0.0004)
                          * (2 * vab + 0.0036) / (va + vb + 0.0036))
    with pytest.raises(ValueError, match="at least 11"):
        ssim(x[..., :10], x[..., :10])
    with pytest.raises(ValueError, match="one shape"):
        ssim(x, x[:2])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_peak_of_integers(metric):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 1, 12, 12)).astype(np.uint8)
    y = np.clip(x + rng.integers(-9, 9, x.shape), 0, 255).astype(np.uint8)
    expected = metric(x.astype(float), y.astype(float), 255)
    if metric is psnr:
        np.testing.assert_allclose(metric(x / 127.5 - 1, y / 127.5 - 1), expected)
    for dtype in (np.uint8, np.uint16, np.int16, np.int64, np.float32):
        np.testing.assert_allclose(metric(x.astype(dtype), y, peak=255), expected)
    assert metric(x > 99, x > 99, peak=1)[0] in (1, np.inf)
    for a, b in ((x > 99, y > 99), (x, y), (x, y / 255), (x.astype(np.int8), x)):
        with pytest.raises(ValueError, match="peak must be given for pictures of"):
            metric(a, b)


def test_ssim_against_scikit_image():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (4, 1, 32, 40)).astype(np.float32)
    y = (x + 0.2 * rng.standard_normal(x.shape)).astype(np.float32)
    for peak in (1.0, 2.0):
        expected = [structural_similarity(a[0].astype(float), b[0].astype(float), data_range=peak, sigma=1.5,
                                          gaussian_weights=True, use_sample_covariance=False) for a, b in zip(x, y)]
        assert np.allclose(ssim(x, y, peak), expected, atol=1e-12)


def whitened(rng, n, d):
    """(n, d) with mean exactly 0 and covariance exactly I."""
    x = rng.standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_distance_of_diagonal_gaussians():
    """Where the covariances commute it is ‖μ_a − μ_b‖² + Σ (σ_a − σ_b)²."""
    rng = np.random.default_rng(0)
    sa, sb, shift = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 0.1]), np.array([1.0, 0.0, -2.0])
    a, b = whitened(rng, 50, 3) * sa, whitened(rng, 80, 3) * sb + shift
    assert np.isclose(frechet_distance(a, b), 5 + 4 + 2.25 + 0.01)
    assert np.isclose(frechet_distance(b, a), 5 + 4 + 2.25 + 0.01)
    assert abs(frechet_distance(a, a)) < 1e-9
    assert np.isclose(frechet_distance(a[:, :1], b[:, :1]), 1 + 4)
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(a[:1], b)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        frechet_distance(a, b[:, :2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool, np.float16])
def test_frechet_distance_of_integers(dtype):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 30, 4)).astype(dtype)
    assert np.isclose(frechet_distance(a, b), frechet_distance(a.astype(float), b.astype(float)))


def test_frechet_distance_against_scipy():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    rng = np.random.default_rng(1)
    a = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6))
    b = rng.standard_normal((30, 6)) @ rng.standard_normal((6, 6)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert np.isclose(frechet_distance(a, b), expected)


def test_picture_rows(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.uniform(-1, 1, (6, 1, 8, 8)) for _ in range(3)]
    figure = picture_rows(rows, ["noisy", "denoised", "original"], ["a", "b", "c"], group=2)
    save_figure(figure, tmp_path / "a.png", dpi=100)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert image.shape[1] > 6 * 60 and 3 * 60 < image.shape[0] < 3 * 60 + 80
    assert 0.5 < (image < 255).mean() < 0.9 and len(np.unique(image)) > 100
    with pytest.raises(ValueError, match="expects floating-point pictures"):
        picture_rows([rows[0], (rows[1] * 100).astype(np.uint8)], ["a", "b"])


def integer_calls():
    """What takes pictures in [-1, 1], called with integers or booleans x of shape (2, 1, 32, 32)."""
    scheduler, level = DDPMScheduler(), np.array([5, 500])
    ones = np.ones((2, 1, 32, 32), np.float32)
    return {
        "posterior_mean": lambda x: posterior_mean(x, 0.5, ones), "its images": lambda x: posterior_mean(ones, 0.5, x),
        "PCAWiener": PCAWiener, "its call": lambda x: PCAWiener(ones[..., :4])(x[..., :4], 0.5),
        "variational_bound": lambda x: variational_bound(None, scheduler, np.zeros_like(x)),
        "sigma": lambda x: NoiseLevelNet().sigma(x), "timesteps": lambda x: NoiseLevelNet().timesteps(x, scheduler),
        "reconstruct": lambda x: VAE().reconstruct(x), "codes": lambda x: VAE().pictures(x.reshape(-1, 32)[:, :20]),
        "add_noise": lambda x: scheduler.add_noise(x, ones, level),
        "noise": lambda x: scheduler.add_noise(ones, x, level),
        "get_velocity": lambda x: scheduler.get_velocity(x, ones, level),
        "step": lambda x: scheduler.step(x, 5, x), "predict": lambda x: scheduler.predict_original_sample(x, 5, x),
        "denoise": lambda x: denoise(None, scheduler, x, 5)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, bool])
@pytest.mark.parametrize("name", integer_calls())
def test_integer_pixels_are_refused(name, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32)).astype(dtype)
    with pytest.raises(TypeError, match="expected float32 or float64, got|floating-point dtype"):
        integer_calls()[name](pixels)
