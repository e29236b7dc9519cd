"""The VAE and its loss against values computed by hand, by sampling and by quadrature."""

import math

import numpy as np
import pytest

import npdiffusion
from npdiffusion import Tensor, gradcheck, no_grad
from npdiffusion.models import VAE, bernoulli_nll, gaussian_kl, load_model, save_model, vae_loss
from npdiffusion.optim import AdamW


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tiny(latent=3, **changes):
    """A VAE in float64 for 8×8 pictures, with no parameter at 0."""
    npdiffusion.manual_seed(0)
    model = VAE(**{**dict(latent=latent, channels=(8,), hidden=6, size=8), **changes}).to(np.float64)
    for i, p in enumerate(model.parameters()):
        p.data += 0.1 * normal(*p.shape, seed=i)
    return model


def kl(mean, logvar):
    return gaussian_kl(Tensor(np.array(mean, float)), Tensor(np.array(logvar, float))).data


def test_kl_by_hand():
    assert np.allclose(kl([[0, 0], [1, 0], [0, 0], [3, -2]], [[0, 0], [0, 0], [1, 0], [1, math.log(4)]]),
                       [0, 0.5, (math.e - 2) / 2, (9 + math.e - 2) / 2 + (4 + 4 - 1 - math.log(4)) / 2])


def test_kl_by_sampling():
    mean, logvar = np.array([[0.7, -1.2, 0.1]]), np.array([[-1.0, 0.4, -3.0]])
    z = mean + np.exp(logvar / 2) * normal(400_000, 3)
    log_q = -0.5 * ((z - mean) ** 2 / np.exp(logvar) + logvar)  # log √(2π) is in both
    assert abs((log_q + 0.5 * z * z).sum(1).mean() - kl(mean, logvar)[0]) < 0.01


def test_nll_by_hand():
    logits, x = normal(3, 1, 4, 5), np.tanh(normal(3, 1, 4, 5, seed=1))
    p, y = 1 / (1 + np.exp(-logits)), (x + 1) / 2
    expected = [-sum(b * math.log(a) + (1 - b) * math.log(1 - a) for a, b in zip(p[i].flat, y[i].flat))
                for i in range(3)]
    assert np.allclose(bernoulli_nll(Tensor(logits), Tensor(x)).data, expected)
    blank = Tensor(np.full((1, 1, 28, 28), -1.0))
    assert np.allclose(bernoulli_nll(Tensor(np.zeros((1, 1, 28, 28))), blank).data, 784 * math.log(2))


def test_loss_is_the_mean_over_pictures_with_beta():
    logits, x = normal(4, 1, 8, 8), np.tanh(normal(4, 1, 8, 8, seed=1))
    mean, logvar = normal(4, 3), normal(4, 3, seed=2)
    inputs = [Tensor(a) for a in (logits, x, mean, logvar)]
    nll = bernoulli_nll(*inputs[:2]).data
    for beta in (0.0, 1.0, 4.0):
        assert np.isclose(vae_loss(*inputs, beta).item(), (nll + beta * kl(mean, logvar)).mean())


def test_loss_bounds_the_likelihood():
    """With one latent number, everything can be integrated: the loss is −ELBO, no less than −log p(x)."""
    model, x = tiny(latent=1), np.tanh(normal(1, 1, 8, 8))
    grid = np.linspace(-9, 9, 3001)
    with no_grad():
        mean, logvar = (a.data.item() for a in model.encode(Tensor(x)))
        p = 1 / (1 + np.exp(-model.decode(Tensor(grid[:, None])).data))
        many = Tensor(np.repeat(x, 4000, 0))
        loss = vae_loss(*(lambda y, *code: (y, many, *code))(*model(many, np.random.default_rng(0)))).item()
    y, step = (x + 1) / 2, grid[1] - grid[0]
    log_px_z = (y * np.log(p) + (1 - y) * np.log(1 - p)).sum((1, 2, 3))
    log_prior = -0.5 * (grid ** 2 + math.log(2 * math.pi))
    log_q = -0.5 * ((grid - mean) ** 2 / math.exp(logvar) + logvar + math.log(2 * math.pi))
    elbo = (np.exp(log_q) * (log_px_z + log_prior - log_q)).sum() * step
    log_px = math.log((np.exp(log_px_z + log_prior)).sum() * step)
    assert abs(loss + elbo) < 0.02 and -elbo >= -log_px


def test_loss_gradients():
    model, x = tiny(), Tensor(np.tanh(normal(2, 1, 8, 8)))
    slots = [(module, name) for module in model.modules() for name, p in list(vars(module).items())
             if isinstance(p, Tensor)]

    def loss(*parameters):
        for (module, name), p in zip(slots, parameters):
            setattr(module, name, p)
        logits, mean, logvar = model(x, np.random.default_rng(0))
        return vae_loss(logits, x, mean, logvar, beta=0.7)

    assert len(slots) == len(list(model.parameters())) > 20
    assert gradcheck(loss, [getattr(*slot) for slot in slots], directions=1, coordinates=2)


def test_reparameterise():
    model = tiny()
    mean, logvar = Tensor(np.tile([0.5, -2.0, 0.0], (50_000, 1))), Tensor(np.tile([0.0, -2.0, 1.0], (50_000, 1)))
    z = model.reparameterise(mean, logvar, np.random.default_rng(0)).data
    assert np.allclose(z.mean(0), [0.5, -2, 0], atol=0.03) and np.allclose(z.var(0), np.exp([0, -2, 1]), rtol=0.03)
    npdiffusion.manual_seed(0)  # the library's generator is the default
    assert np.array_equal(model.reparameterise(mean, logvar).data, z)


@pytest.mark.parametrize("config", [dict(latent=1), dict(latent=5, channels=(8, 16, 24), hidden=7, size=16),
                                    dict(in_channels=3, channels=(16,), size=6)])
def test_shapes_and_files(config, tmp_path):
    model = VAE(**config)
    c = model.config
    x = np.tanh(normal(2, c["in_channels"], c["size"], c["size"])).astype(np.float32)
    logits, mean, logvar = model(Tensor(x))
    assert logits.shape == x.shape and mean.shape == logvar.shape == (2, c["latent"]) and logits.dtype == np.float32
    save_model(tmp_path / "vae.safetensors", model)
    again = load_model(tmp_path / "vae.safetensors")
    y = again.reconstruct(x)
    assert type(again) is VAE and again.config == c and np.array_equal(y, model.reconstruct(x))
    assert y.shape == x.shape and np.abs(y).max() < 1
    with no_grad():
        p = 1 / (1 + np.exp(-model.decode(mean.detach()).data))
    assert np.allclose(y, 2 * p - 1, atol=1e-6)


def test_it_learns_a_few_pictures():
    npdiffusion.manual_seed(0)
    x = Tensor(np.sign(normal(8, 1, 8, 8)).astype(np.float32))
    model = VAE(latent=4, channels=(16,), hidden=32, size=8)
    optimizer, losses = AdamW(model.parameters(), lr=5e-3), []
    for _ in range(100):
        logits, mean, logvar = model(x)
        loss = vae_loss(logits, x, mean, logvar)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 40 and np.mean(losses[-5:]) < 12  # 64·ln 2 = 44 nats know nothing; 8 pictures are ln 8 = 2.1
    assert (np.sign(model.reconstruct(x.data)) == x.data).mean() > 0.97


def test_bad_input():
    for wrong in (dict(latent=0), dict(hidden=0)):
        with pytest.raises(ValueError, match="at least 1"):
            VAE(**wrong)
    for channels in ((), (10,)):
        with pytest.raises(ValueError, match="multiples of 8"):
            VAE(channels=channels)
    with pytest.raises(ValueError, match="divides by 4, got 30"):
        VAE(size=30)
    model = VAE(latent=2, channels=(8,), hidden=8, size=8)
    for shape in ((1, 1, 28, 28), (1, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"\(N, 1, 8, 8\), got"):
            model.reconstruct(np.zeros(shape, np.float32))
    for shape in ((2,), (4, 3)):
        with pytest.raises(ValueError, match=r"\(N, 2\), got"):
            model.pictures(np.zeros(shape, np.float32))
