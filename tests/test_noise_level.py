"""The network that estimates the level of noise, the estimates it is compared with, and its example."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from test_examples import ROOT, run

from npdiffusion import Tensor, gradcheck, manual_seed, no_grad
from npdiffusion.data import SyntheticDigits
from npdiffusion.diffusion import DDPMScheduler
from npdiffusion.models import NoiseLevelNet, laplace_nll, load_model, pretrained, save_model


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import train_noise_level
    return train_noise_level


def net(**options):
    manual_seed(0)
    return NoiseLevelNet(channels=(4, 8), hidden=6, **options)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


def test_the_scale_of_a_picture_does_not_matter():
    """So x_t and x_t/√ᾱ_t, what a camera sees, have the same estimate."""
    x = normal(3, 1, 16, 16)
    with no_grad():
        expected, scaled = net()(Tensor(x)).data, net()(Tensor(40 * x)).data
    assert expected.shape == (3, 2) and np.ptp(expected[:, 0]) > 1e-4
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-5)
    with no_grad():
        assert np.isfinite(net()(Tensor(np.zeros((1, 1, 16, 16), np.float32))).data).all()


def test_the_network_written_out():
    """Loops over pixels and channels for one small picture, in float64."""
    manual_seed(1)
    model = NoiseLevelNet(channels=(2, 3), hidden=4)
    x = normal(1, 1, 4, 4)
    with no_grad():
        result = model(Tensor(x)).data[0]

    def silu(a):
        return a / (1 + np.exp(-a))

    h = x[0].astype(np.float64) / math.sqrt((x.astype(np.float64) ** 2).mean())
    statistics = []
    for i, conv in enumerate(model.convs):
        if i == 2:
            h = h.reshape(len(h), 2, 2, 2, 2).mean((2, 4))
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1)))
        h = np.array([[[(padded[:, r:r + 3, c:c + 3] * weight).sum() + bias for c in range(h.shape[2])]
                       for r in range(h.shape[1])] for weight, bias in zip(conv.weight.data, conv.bias.data)])
        h = silu(h)
        if i % 2:
            statistics += [*h.mean((1, 2)), *np.log((h * h).mean((1, 2)) + 1e-6)]
    first, _, second = model.mlp
    hidden = silu(first.weight.data @ np.array(statistics) + first.bias.data)
    np.testing.assert_allclose(result, second.weight.data @ hidden + second.bias.data, rtol=1e-4)


def test_laplace_nll_by_hand():
    output = Tensor(np.array([[1.0, 0.0], [-2.0, math.log(3)]]), requires_grad=True)
    loss = laplace_nll(output, np.array([1.5, 4.0]))
    expected = (0.5 + math.log(2) + 6 / 3 + math.log(3) + math.log(2)) / 2
    assert abs(loss.item() - expected) < 1e-12
    # the density integrates to 1
    points = np.linspace(-60, 60, 24001)
    density = [math.exp(-laplace_nll(Tensor(np.array([[0.7, 0.3]])), np.array([p])).item()) for p in points[::40]]
    assert abs(sum(density) * (points[40] - points[0]) - 1) < 0.01
    gradcheck(lambda o: laplace_nll(o, np.array([1.5, 4.0])), [output])


def test_estimates_are_the_networks_outputs():
    model, scheduler, x = net(), DDPMScheduler(), normal(5, 1, 16, 16)
    with no_grad():
        output = model(Tensor(x)).data
    median, b = model.log_snr(x, batch_size=2)
    np.testing.assert_allclose(median, output[:, 0], rtol=1e-5)
    np.testing.assert_allclose(b, np.exp(output[:, 1]), rtol=1e-5)
    np.testing.assert_allclose(model.sigma(x.astype(np.float64)), np.exp(-output[:, 0] / 2), rtol=1e-5)
    model.mlp[2].weight.data[...] = 0
    for log_snr, t in ((-2 * math.log(scheduler.sigmas[300]), 300), (50.0, 0), (-50.0, 1023)):  # beyond: the ends
        model.mlp[2].bias.data[0] = log_snr
        assert model.timesteps(x, scheduler).tolist() == [t] * 5


def test_the_network_survives_a_file(tmp_path):
    model, x = net(in_channels=3), normal(2, 3, 8, 8)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert isinstance(again, NoiseLevelNet) and again.config == model.config
    np.testing.assert_array_equal(again.log_snr(x), model.log_snr(x))


def test_bad_input():
    with pytest.raises(ValueError, match="positive multiples"):
        NoiseLevelNet(channels=())
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        net()(Tensor(normal(2, 3, 8, 8)))


def test_estimate_from_known_pixels(example):
    """Against Bayes' rule written out pixel by pixel; and known pixels that hold no noise tell t = 0."""
    scheduler, (x0, noise) = DDPMScheduler(40, beta_end=0.2), normal(2, 3, 1, 4, 4, seed=3, dtype=np.float64)
    known = normal(1, 4, 4, seed=4) > 0
    t = np.array([3, 15, 30])
    noisy = scheduler.add_noise(x0, noise, t)
    best, median = example.estimate_from_known(scheduler, noisy, x0, known)
    for i in range(3):
        likelihood = []
        for alpha_bar in scheduler.alphas_cumprod:
            p = 1.0
            for a, b in zip(noisy[i][known], x0[i][known]):
                p *= math.exp(-(a - math.sqrt(alpha_bar) * b)**2 / 2 / (1 - alpha_bar)) / math.sqrt(1 - alpha_bar)
            likelihood.append(p)
        likelihood = np.array(likelihood)
        assert best[i] == likelihood.argmax()
        assert likelihood[:median[i]].sum() < likelihood.sum() / 2 <= likelihood[:median[i] + 1].sum()
    clean = scheduler.add_noise(x0, 0 * noise, [0, 0, 0])
    assert example.estimate_from_known(scheduler, clean, x0)[0].tolist() == [0, 0, 0]


def test_the_oracle_s_error_is_the_known_floor(example):
    """29.9 steps for whole digits, 47.1 for the 240 pixels of the border, on MNIST; digits of a like kind here."""
    scheduler, images = DDPMScheduler(), SyntheticDigits(2000, seed=5).images
    t = np.random.default_rng(0).permutation(2000) * 1024 // 2000
    noisy = example.noisy_pictures(scheduler, images, t)
    border = np.pad(np.zeros((28, 28), bool), 2, constant_values=True)
    oracle = example.errors(scheduler, example.estimate_from_known(scheduler, noisy, images)[1], t)
    frame = example.errors(scheduler, example.estimate_from_known(scheduler, noisy, -1.0, border)[1], t)
    assert 27 < oracle["mae"] < 33 and 44 < frame["mae"] < 51 and oracle["mae_t_le_384"] < 6


def test_errors_by_hand(example):
    scheduler = DDPMScheduler()
    t = np.array([0, 100, 130, 300, 384, 385, 600, 700, 800, 1023])
    estimate = t + [2, 0, 3, 0, -4, 15, 5, 7, -1, -10]
    result = example.errors(scheduler, estimate, t)
    assert result["mae"] == 47 / 10 and result["mae_t_le_384"] == 9 / 5
    assert list(result["mae_by_bin"].values()) == [1, 3, 0, 9.5, 5, 7, 1, 10]
    log_snr = np.log(scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod))
    assert abs(result["mae_log_snr"] - np.abs(log_snr[estimate] - log_snr[t]).mean()) < 1e-12


def test_the_package_s_network_estimates_levels(example):
    """On synthetic digits, which it has never seen, nearly as well as on MNIST; and on either scale."""
    scheduler, images = DDPMScheduler(), SyntheticDigits(400, seed=6).images
    t = np.arange(400) * 600 // 400
    noisy, model = example.noisy_pictures(scheduler, images, t), pretrained("mnist-noise-level")
    error = np.abs(model.timesteps(noisy, scheduler) - t)
    assert error[t <= 384].mean() < 8 and error.mean() < 16
    camera = noisy / np.sqrt(scheduler.alphas_cumprod[t]).reshape(-1, 1, 1, 1).astype(np.float32)
    np.testing.assert_allclose(model.sigma(camera), model.sigma(noisy), rtol=1e-3)


@pytest.mark.slow
def test_example(tmp_path):
    run("train_noise_level.py", "--preset", "smoke", "--data", "synthetic", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["psnr_loss_db"]) == {"100", "200", "300", "400", "500", "600"}
    assert 0 < metrics["mae"] < 1024 and 0 < metrics["mae_t_le_384"] < 1024
    oracle, border = (metrics["baselines"][name]["posterior_median"]["mae"] for name in ("oracle", "border pixels"))
    assert oracle < border < 80
    for name in ("levels.png", "wrong_levels.png", "loss.png"):
        image = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert min(image.shape) > 500 and image.std() > 10, name
    assert load_model(tmp_path / "model.safetensors").config["channels"] == (8, 16)
