"""What the networks that come along do, as the numbers on their cards say; networks to files and back."""

from pathlib import Path

import numpy as np
import pytest

from npdiffusion import Tensor, no_grad
from npdiffusion.config import IGNORED
from npdiffusion.data import MNIST, SSTEM, DataNotFoundError
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, denoise, generate
from npdiffusion.metrics import psnr, segmentation_scores
from npdiffusion.models import (VAE, Classifier, NoiseLevelNet, UNet, UNet2DModel, load_model, pretrained, save_model,
                                timestep_embedding)
from npdiffusion.models.unet2d import CONFIG

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "examples" / "weights"
DIGITS = np.arange(10)


@pytest.fixture(scope="module")
def digits():
    """The first 200 test digits of MNIST, and their labels."""
    try:
        return MNIST("test", download=False)[:200]
    except DataNotFoundError as error:
        pytest.skip(f"MNIST is not here: {error}")


@pytest.fixture(scope="module")
def section():
    """A quarter of section 17 of the ssTEM set, which no network was trained on, (512, 512), and its mask."""
    try:
        data = SSTEM(download=False)
    except DataNotFoundError as error:
        pytest.skip(f"the ssTEM sections are not here: {error}")
    return data.images[17, :512, :512], data.masks[17, :512, :512]


def read(pictures):
    """The digit that mnist-classifier sees in each picture."""
    with no_grad():
        return pretrained("mnist-classifier")(Tensor(pictures)).data.argmax(1)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_mnist_ddpm_draws_the_digits_it_is_asked_for(scale):
    drawn = generate(pretrained("mnist-ddpm"), DDIMScheduler(), (20, 1, 32, 32), np.tile(DIGITS, 2), scale, 10,
                     generator=np.random.default_rng(0))
    assert (read(drawn).reshape(2, 10) == DIGITS).sum() >= 18  # 20 here


def test_mnist_ddpm_obeys_a_label_where_the_noise_hides_the_digit():
    noisy = np.random.default_rng(0).standard_normal((10, 1, 32, 32), dtype=np.float32)
    made = denoise(pretrained("mnist-ddpm"), DDPMScheduler(), noisy, 900, "ddim", 10, DIGITS, 3.0)
    assert (read(made) == DIGITS).sum() >= 9


def test_mnist_classifier_reads_test_digits(digits):
    images, labels = digits
    assert (read(images) == labels).mean() >= 0.98  # its card says 99.69 % of all


def test_mnist_ddpm_cleans_test_digits(digits):
    images, labels = digits
    scheduler = DDPMScheduler()
    noisy = scheduler.add_noise(images, np.random.default_rng(0).standard_normal(images.shape, np.float32), 300)
    clean = denoise(pretrained("mnist-ddpm"), scheduler, noisy, 300)
    assert psnr(clean, images).mean() > 21 and (read(clean) == labels).mean() > 0.93


def test_mnist_noise_level_estimates_levels(digits):
    images, _ = digits
    scheduler, t = DDPMScheduler(), np.arange(200) * 384 // 200
    noisy = scheduler.add_noise(images, np.random.default_rng(0).standard_normal(images.shape, np.float32), t)
    model = pretrained("mnist-noise-level")
    assert np.abs(model.timesteps(noisy, scheduler) - t).mean() < 7  # 5.1 on its card
    median, b = model.log_snr(noisy)
    assert 0.3 < (np.abs(median + 2 * np.log(scheduler.sigmas[t])) < b * np.log(2)).mean() < 0.7  # half lie there


def test_sstem_mitochondria_finds_them(section, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    from segment_mitochondria import probability
    image, mask = section
    found = probability(load_model(WEIGHTS / "sstem-mitochondria.safetensors"), image, tta=False) > 0.5
    assert segmentation_scores(found, mask)["iou"] > 0.85


def test_sstem_ddpm_cleans_a_section(section):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    clean = section[0].reshape(1, 1, 256, 2, 256, 2).mean((3, 5), dtype=np.float32) / 127.5 - 1
    noisy = clean + np.random.default_rng(0).standard_normal(clean.shape, np.float32) * (50 / 127.5)
    restored = denoise(load_model(WEIGHTS / "sstem-ddpm.safetensors"), scheduler, noisy, sigma=50 / 127.5)
    assert psnr(noisy, clean)[0] < 14.3 and psnr(restored, clean)[0] > 20.3  # 20.6 on its card


# Files

I, F = np.int64, np.float64
UNET2D = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
UNET2D_DEFAULTS = [(key, entry) for key, entry in CONFIG.items() if entry is not IGNORED]


@pytest.mark.parametrize("model, config", [
    (lambda: UNet(I(1), I(2), np.array([32, 64], np.uint8), I(1), np.array([1]), np.True_, I(3), np.float32(0.25),
                  I(64)),
     dict(in_channels=1, out_channels=2, channels=(32, 64), blocks=1, attention=(1,), time=True, num_classes=3,
          dropout=0.25, sample_size=64)),
    (lambda: VAE(I(3), np.array([8, 16]), I(8), I(1), I(32)),
     dict(latent=3, channels=(8, 16), hidden=8, in_channels=1, size=32)),
    (lambda: Classifier(I(3), I(1), np.array([8, 16]), F(0.5)),
     dict(num_classes=3, in_channels=1, channels=(8, 16), dropout=0.5)),
    (lambda: UNet2DModel(block_out_channels=np.array([4, 8]), norm_num_groups=I(4), norm_eps=F(1e-3),
                         add_attention=np.False_, sample_size=[I(8), I(8)], **UNET2D),
     {key: default for key, (default, _) in UNET2D_DEFAULTS} | UNET2D
     | dict(block_out_channels=(4, 8), norm_num_groups=4, norm_eps=1e-3, add_attention=False, sample_size=(8, 8))),
    (lambda: NoiseLevelNet(I(1), np.array([4, 8]), I(8)), dict(in_channels=1, channels=(4, 8), hidden=8)),
], ids=["UNet", "VAE", "Classifier", "UNet2DModel", "NoiseLevelNet"])
def test_networks_built_with_numpy_s_numbers_survive_a_file(tmp_path, model, config):
    model = model()
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert type(again) is type(model) and again.config == model.config == config
    assert {name: p.shape for name, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("kind, config", [
    (UNet, dict(in_channels=1, out_channels=1, channels=(32, 64, 128), blocks=1, attention=(), time=True,
                num_classes=None, dropout=0.0, sample_size=None)),
    (VAE, dict(latent=20, channels=(32, 64), hidden=256, in_channels=1, size=32)),
    (Classifier, dict(num_classes=10, in_channels=1, channels=(32, 64, 128), dropout=0.0)),
    (NoiseLevelNet, dict(in_channels=1, channels=(16, 32, 64), hidden=64))])
def test_defaults_are_what_the_docs_say(kind, config):
    assert kind().config == config


def test_more_defaults(tmp_path):
    weights = {name: p.data for name, p in pretrained("mnist-ddpm").named_parameters()}
    assert all(np.array_equal(weights[name], p.data) for name, p in pretrained().named_parameters())
    model = NoiseLevelNet(channels=(4,), hidden=2)
    save_model(tmp_path / "m.safetensors", model)  # as they are: float16 would round them
    assert all(np.array_equal(a.data, b.data) for a, b in zip(load_model(tmp_path / "m.safetensors").parameters(),
                                                              model.parameters()))
    t = np.arange(5)
    assert np.array_equal(timestep_embedding(t, 8), timestep_embedding(t, 8, max_period=10000.0, dtype=np.float64))


@pytest.mark.parametrize("build, message", [
    (lambda: UNet(channels=(0,)), r"channels must be positive multiples of 8, got \(0,\)"),
    (lambda: UNet(channels=(-8, 8)), "channels must be positive multiples of 8"),
    (lambda: UNet(channels=()), "channels must be positive multiples of 8"),
    (lambda: UNet(blocks=0), "UNet: blocks must be at least 1, got 0"),
    (lambda: UNet(in_channels=0), "in_channels"),
    (lambda: UNet(out_channels=-1), "out_channels"),
    (lambda: UNet(num_classes=0), "num_classes"),
    (lambda: VAE(latent=0), "VAE: latent must be at least 1, got 0"),
    (lambda: VAE(size=0), "VAE: size"),
    (lambda: Classifier(num_classes=0), "num_classes"),
    (lambda: NoiseLevelNet(hidden=0), "hidden"),
    (lambda: NoiseLevelNet(channels=(4, 0)), "positive multiples"),
])
def test_sizes_below_1(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [lambda: UNet(channels=(8.0,)), lambda: UNet(blocks=1.0), lambda: VAE(latent=2.0),
                                   lambda: Classifier(num_classes=3.0), lambda: NoiseLevelNet(channels=(4.0,))])
def test_sizes_that_are_no_integers(build):
    with pytest.raises(TypeError, match="integer"):
        build()
