"""Modules, layers, their initialisation, and the UNet."""

import math

import numpy as np
import pytest

import npdiffusion
from npdiffusion import Tensor, functional as F, gradcheck, nn
from npdiffusion.checkpoint import save_weights
from npdiffusion.models import UNet, load_model, pretrained, timestep_embedding

LAYERS = {  # layer -> (input shape, op that it must agree with)
    nn.Linear(4, 3): ((2, 4), lambda l, x: F.linear(x, l.weight, l.bias)),
    nn.Linear(4, 3, bias=False): ((2, 4), lambda l, x: F.linear(x, l.weight)),
    nn.Conv2d(4, 6, (3, 2), 2, 1, groups=2): ((2, 4, 5, 6), lambda l, x: F.conv2d(x, l.weight, l.bias, 2, 1, 1, 2)),
    nn.Conv2d(2, 3, 3, padding="same", bias=False): ((2, 2, 5, 6), lambda l, x: F.conv2d(x, l.weight, padding="same")),
    nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2): (
        (2, 4, 3, 4), lambda l, x: F.conv_transpose2d(x, l.weight, l.bias, 2, 1, 1, 2)),
    nn.MaxPool2d(2): ((1, 2, 4, 6), lambda l, x: F.max_pool2d(x, 2)),
    nn.MaxPool2d(2, None, 0, 1, False, True): ((1, 2, 5, 5), lambda l, x: F.max_pool2d(x, 2, ceil_mode=True)),
    nn.AvgPool2d(3, 2, 1): ((1, 2, 5, 6), lambda l, x: F.avg_pool2d(x, 3, 2, 1)),
    nn.AvgPool2d(3, divisor_override=2): ((1, 2, 5, 6), lambda l, x: F.avg_pool2d(x, 3, divisor_override=2)),
    nn.Upsample(scale_factor=2): ((1, 2, 3, 3), lambda l, x: F.interpolate(x, scale_factor=2)),
    nn.GroupNorm(2, 6): ((2, 6, 3, 3), lambda l, x: F.group_norm(x, 2, l.weight, l.bias)),
    nn.LayerNorm((3, 4)): ((2, 3, 4), lambda l, x: F.layer_norm(x, (3, 4), l.weight, l.bias)),
    nn.Flatten(): ((2, 3, 4), lambda l, x: x.reshape(2, 12)),
    nn.Identity(): ((2, 3), lambda l, x: x),
    **{layer: ((2, 3), op) for layer, op in [
        (nn.ReLU(), lambda l, x: F.relu(x)), (nn.SiLU(), lambda l, x: F.silu(x)), (nn.GELU(), lambda l, x: F.gelu(x)),
        (nn.GELU("tanh"), lambda l, x: F.gelu(x, "tanh")), (nn.Softplus(2, 5), lambda l, x: F.softplus(x, 2, 5)),
        (nn.Sigmoid(), lambda l, x: F.sigmoid(x)), (nn.Tanh(), lambda l, x: F.tanh(x)),
        (nn.Softplus(), lambda l, x: F.softplus(x))]},
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda l: type(l).__name__)
def test_layers_are_their_ops(layer):
    shape, op = LAYERS[layer]
    x = Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    assert np.array_equal(layer(x).data, op(layer, x).data)


def test_default_initialisation():
    npdiffusion.manual_seed(0)
    for layer, fan_in in ((nn.Linear(50, 400), 50), (nn.Conv2d(8, 100, 3), 72), (nn.ConvTranspose2d(40, 90, 3), 810)):
        bound = 1 / math.sqrt(fan_in)
        for p in (layer.weight.data, layer.bias.data):
            assert p.dtype == np.float32 and abs(p).max() <= bound and p.max() > 0.9 * bound
            assert abs(p.std() - bound / math.sqrt(3)) < 0.15 * bound
    e = nn.Embedding(100, 50).weight.data
    assert abs(e.mean()) < 0.05 and abs(e.std() - 1) < 0.05


def test_embedding_and_dropout():
    e = nn.Embedding(5, 3)
    assert np.array_equal(e(np.array([4, 0])).data, e.weight.data[[4, 0]])
    layer, x = nn.Dropout(0.4), Tensor(np.ones((100, 100), np.float32))
    y = layer(x).data
    assert abs((y == 0).mean() - 0.4) < 0.02 and np.allclose(y[y != 0], 1 / 0.6)
    assert layer.eval()(x) is x


class Nested(nn.Module):
    def __init__(self):
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.body = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        self.extra = nn.ModuleList([nn.Dropout(), nn.Dropout()])

    def forward(self, x):
        return self.body(x) * self.scale


def test_names_modes_and_freezing():
    m = Nested()
    assert list(m.state_dict()) == ["scale", "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]
    m.eval()
    assert not any(x.training for x in m.modules())
    m.train()
    assert all(x.training for x in m.modules()) and len(m.extra) == 2 and m.extra[1] is list(m.extra)[1]
    m.body[0].requires_grad_(False)
    m(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    assert [n for n, p in m.named_parameters() if p.grad is not None] == ["scale", "body.2.weight", "body.2.bias"]
    m.zero_grad()
    assert all(p.grad is None for p in m.parameters())
    assert m.to("float64").scale.dtype == np.float64 and "Linear(in_features=2" in repr(m)
    with pytest.raises(NotImplementedError, match="Module"):
        nn.Module()(1)


def test_load_state_dict_is_strict_and_all_or_nothing():
    m, other = Nested(), Nested()
    m.load_state_dict(other.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(m.state_dict().values(), other.state_dict().values()))
    assert not any(np.shares_memory(a, b) for a, b in zip(m.state_dict().values(), other.state_dict().values()))
    state = {k: v + 1 for k, v in m.state_dict().items()}
    before = {k: v.copy() for k, v in m.state_dict().items()}
    renamed = dict(state)
    renamed["body.0.wait"] = renamed.pop("body.0.weight")
    with pytest.raises(KeyError, match=r"missing \['body.0.weight'\], unexpected \['body.0.wait'\]"):
        m.load_state_dict(renamed)
    with pytest.raises(ValueError, match=r"scale: expected \(1,\), got \(2,\)"):
        m.load_state_dict({**state, "scale": np.ones(2)})
    assert all(np.array_equal(before[k], v) for k, v in m.state_dict().items())
    m.load_state_dict({"scale": np.array([7.0])}, strict=False)
    assert m.scale.data[0] == 7 and m.scale.dtype == np.float32


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3, groups=2), lambda: nn.GroupNorm(3, 4),
                                  lambda: nn.ConvTranspose2d(4, 3, 3, groups=2)])
def test_layers_check_their_groups(make):
    with pytest.raises(ValueError, match="divides"):
        make()


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.AvgPool2d(), TypeError, "kernel_size"), (lambda: nn.Tanh(1), TypeError, "positional"),
    (lambda: nn.ReLU(True)(Tensor([1.0])), ValueError, "inplace"), (lambda: nn.Linear(2.0, 3), TypeError, "integer"),
    (lambda: nn.Conv2d(1, 2, 3.0), ValueError, "integer"), (lambda: nn.Conv2d(1, 2, (1, 2, 3)), ValueError, "pair"),
    (lambda: nn.LayerNorm(3.0), TypeError, "integer"), (lambda: nn.GroupNorm(2.0, 4), TypeError, "integer")])
def test_layers_check_their_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


NUMBERS = [  # of an image, by integers and numbers of Python's or NumPy's
    lambda x, i, f: F.conv2d(x, x[:, :2, :3, :3], None, i(1), i(1), i(1), i(2)),
    lambda x, i, f: F.conv_transpose2d(x, x[:1].expand(4, 4, 6, 6), None, i(2), (i(1), i(1)), i(1), i(2), i(1)),
    lambda x, i, f: F.max_pool2d(x, i(2), i(1), i(1)),
    lambda x, i, f: F.max_pool2d(x, (i(2), i(3)), [i(1)]),
    lambda x, i, f: F.avg_pool2d(x, i(2), divisor_override=i(3)),
    lambda x, i, f: F.interpolate(x, i(4)),
    lambda x, i, f: F.interpolate(x, scale_factor=f(1.5)),
    lambda x, i, f: F.group_norm(x, i(2), eps=f(1e-2)),
    lambda x, i, f: F.group_norm_silu(x, i(2), eps=f(1e-2)),
    lambda x, i, f: F.layer_norm(x, i(6), eps=f(1e-2)),
    lambda x, i, f: F.layer_norm(x, (i(6), i(6))),
    lambda x, i, f: x.reshape(i(8), i(-1)),
    lambda x, i, f: x.reshape((i(8), i(36))),
    lambda x, i, f: x[:, :1].expand(i(2), i(-1), 6, 6),
    lambda x, i, f: F.pad(x, (i(1), i(-2)), value=f(0.1)),
    lambda x, i, f: x.permute(i(0), i(2), i(3), i(1)),
    lambda x, i, f: x.sum(i(1)),
    lambda x, i, f: x.mean((i(1), i(-1))),
    lambda x, i, f: x.flatten(i(1), i(2)),
    lambda x, i, f: x.var(i(1), correction=f(0.5)),
    lambda x, i, f: F.softmax(x, i(1)),
    lambda x, i, f: x.transpose(i(0), i(1)),
    lambda x, i, f: x.unsqueeze(i(1)).squeeze(i(1)),
    lambda x, i, f: F.cat([x, x], i(1)),
    lambda x, i, f: x[i(0), i(1):i(3)],
    lambda x, i, f: x.max(i(1)).values,
    lambda x, i, f: F.dropout(x, f(0.25), generator=np.random.default_rng(0)),
    lambda x, i, f: x.clamp(f(0), f(1)),
    lambda x, i, f: F.softplus(x, f(2), f(3)),
    lambda x, i, f: x * f(0.1) + i(2),
    lambda x, i, f: F.cross_entropy(x[:, :, 0, 0], Tensor([0, 1]), ignore_index=i(1), label_smoothing=f(0.1)),
    lambda x, i, f: F.scaled_dot_product_attention(x, x, x, scale=f(0.3)),
    lambda x, i, f: on(x, nn.Conv2d(i(4), i(2), i(3), groups=i(2)))(x),
    lambda x, i, f: on(x, nn.GroupNorm(i(2), i(4), f(0.1)))(x),
    lambda x, i, f: on(x, nn.ConvTranspose2d(i(4), i(2), i(3)))(x),
    lambda x, i, f: on(x, nn.Linear(i(6), i(2)))(x),
    lambda x, i, f: on(x, nn.LayerNorm(i(6)))(x),
    lambda x, i, f: on(x, nn.LayerNorm((i(6), i(6)), f(0.1)))(x),
    lambda x, i, f: on(x, nn.Embedding(i(3), i(2)))(Tensor([0, 1])),
    lambda x, i, f: nn.Dropout(f(0.0))(x),
]


def on(x, layer):
    return layer.to(x.device)


@pytest.mark.parametrize("of", NUMBERS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("cupy", ["stand-in"], indirect=True)
def test_numpys_numbers_are_numbers(cupy, device, of):
    """The same bits, and float32, as with Python's."""
    image, results = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32), []
    for i, f in ((int, float), (np.int64, np.float64)):
        npdiffusion.manual_seed(0)
        results.append(of(Tensor(image, device=device), i, f).cpu().data)
    assert results[0].dtype == results[1].dtype == np.float32 and np.array_equal(*results)


def test_shared_modules_and_parameters_are_pytorchs():
    """Names, order and number with and without duplicates."""
    torch = pytest.importorskip("torch")

    def tied(nn):
        model, inner = nn.Module(), nn.Linear(2, 2)
        model.first, model.second, model.list = inner, inner, nn.ModuleList([inner, nn.Linear(2, 2), inner])
        model.list[1].weight = inner.weight
        model.own = inner.bias
        return model

    ours, theirs = tied(nn), tied(torch.nn)
    for options in ({}, {"remove_duplicate": False}, {"prefix": "net"}):
        a, b = ([name for name, _ in model.named_parameters(**options)] for model in (ours, theirs))
        assert a == b, options
    for method in ("parameters", "modules"):
        assert len(list(getattr(ours, method)())) == len(list(getattr(theirs, method)()))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert len(ours.list) == len(theirs.list) == 3 and ours.list[0] is ours.list[2] is ours.first
    ours.load_state_dict({name: x.numpy() + 1 for name, x in theirs.state_dict().items()})
    assert np.array_equal(ours.second.weight.data, theirs.second.weight.detach().numpy() + 1)
    with pytest.raises(KeyError, match=r"missing \['second.weight'\]"):
        ours.load_state_dict({name: x for name, x in ours.state_dict().items() if name != "second.weight"})
    assert not any(m.training for m in ours.eval().modules())
    assert ours.to("float64").requires_grad_(False).second.bias.dtype == np.float64


def test_a_layer_used_twice_runs_twice():
    double = nn.Linear(1, 1, bias=False)
    double.weight.data[...] = 2
    assert nn.Sequential(double, double, double)(Tensor([[1.0]])).item() == 8


# UNet


def small_unet(**changes):
    npdiffusion.manual_seed(1)
    model = UNet(**{**dict(channels=(8, 16, 32), blocks=1, attention=(2,), num_classes=3), **changes})
    rng = np.random.default_rng(0)
    for p in model.parameters():
        if not p.data.any():
            p.data[...] = 0.1 * rng.standard_normal(p.shape)
    return model


def test_timestep_embedding_is_the_papers():
    t, dim = np.array([0, 1, 500]), 8
    expected = [[math.cos(s / 10000 ** (i / 4)) for i in range(4)] + [math.sin(s / 10000 ** (i / 4)) for i in range(4)]
                for s in t]
    assert np.allclose(timestep_embedding(t, dim), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (20, 8)])
def test_unet_takes_any_size_that_divides(size):
    model = small_unet()
    x = Tensor(np.random.default_rng(0).standard_normal((2, 1, *size)).astype(np.float32))
    y = model(x, np.array([3, 700]), np.array([0, 2]))
    assert y.shape == x.shape and y.dtype == np.float32
    y.backward(np.ones(y.shape, np.float32))
    assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())


def test_unet_depends_on_time_class_and_each_picture_alone():
    model = small_unet().to("float64")
    rng = np.random.default_rng(0)
    x, t, labels = rng.standard_normal((3, 1, 8, 8)), np.array([1, 500, 900]), np.array([0, 1, 2])
    y = model(Tensor(x), t, labels).data
    for other_t, other_labels in ((t + 1, labels), (t, (labels + 1) % 3), (t, None)):
        assert abs(model(Tensor(x), other_t, other_labels).data - y).max() > 1e-4
    alone = np.concatenate([model(Tensor(x[i:i + 1]), t[i:i + 1], labels[i:i + 1]).data for i in range(3)])
    assert np.allclose(y, alone, atol=1e-10)
    null = np.full(3, 3)
    assert np.array_equal(model(Tensor(x), t, None).data, model(Tensor(x), t, null).data)
    assert np.array_equal(model(Tensor(x), 7, labels).data, model(Tensor(x), np.full(3, 7), labels).data)


def test_unet_gradients():
    model = small_unet(channels=(8, 32), attention=(1,)).to("float64")
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4))
    t, labels, modules = np.array([3, 700]), np.array([0, 3]), dict(named_modules(model))
    names = ["conv_in.weight", "down.0.blocks.0.embedding.weight", "up.0.blocks.0.skip.weight", "time_mlp.0.weight",
             "class_embedding.weight", "middle.attentions.0.key.weight", "upsample.0.weight", "norm_out.bias"]
    places = [(modules[owner], attribute) for owner, attribute in (name.rsplit(".", 1) for name in names)]

    def function(x, *values):
        for (owner, attribute), value in zip(places, values):
            setattr(owner, attribute, value)
        return model(x, t, labels)

    assert gradcheck(function, [x] + [getattr(*place).data.copy() for place in places], directions=2)


def named_modules(module, prefix=""):
    for name, child in module.named_children():
        yield prefix + name, child
        yield from named_modules(child, f"{prefix}{name}.")


def test_unet_without_time_and_class_is_a_segmentation_net():
    model = small_unet(in_channels=1, out_channels=1, time=False, num_classes=None, attention=())
    assert not any("embedding" in name or "time" in name for name, _ in model.named_parameters())
    assert model(Tensor(np.zeros((1, 1, 16, 8), np.float32))).shape == (1, 1, 16, 8)


def test_unet_errors():
    model, x = small_unet(), Tensor(np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(ValueError, match="divide by 4, got 8×10"):
        model(Tensor(np.zeros((2, 1, 8, 10), np.float32)), 1)
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\)"):
        model(Tensor(np.zeros((2, 3, 8, 8), np.float32)), 1)
    with pytest.raises(ValueError, match="needs t"):
        model(x)
    with pytest.raises(ValueError, match="t of shape"):
        model(x, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="from 0 to 3"):
        model(x, 1, np.array([0, 4]))
    with pytest.raises(ValueError, match="takes no t"):
        small_unet(time=False)(x, 1)
    with pytest.raises(ValueError, match="takes no labels"):
        small_unet(num_classes=None)(x, 1, np.array([0, 1]))
    with pytest.raises(ValueError, match="multiples of 8"):
        UNet(channels=(10, 20))
    with pytest.raises(ValueError, match="divide by 32"):
        UNet(channels=(8, 16), attention=(1,))
    with pytest.raises(TypeError, match="float32"):
        model(Tensor(np.zeros((2, 1, 8, 8))), 1)


def test_models_from_files(tmp_path):
    model = small_unet()
    path = tmp_path / "m.safetensors"
    save_weights(path, model.state_dict(), model.config)
    again = load_model(path)
    assert again.config == model.config and not again.training
    assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    save_weights(path, model.state_dict(), {**model.config, "blocks": 2})
    with pytest.raises(ValueError, match="not a checkpoint of a UNet.*missing"):
        load_model(path)
    save_weights(path, model.state_dict(), {"width": 3})
    with pytest.raises(ValueError, match="width"):
        load_model(path)
    with pytest.raises(ValueError, match="no pretrained network called 'nothing'; there are: .*mnist-ddpm"):
        pretrained("nothing")


def test_the_packages_own_weights_predict_noise():
    """On drawn digits, at a middle level, the guess explains most of ε (it would not, had files been mixed up)."""
    from npdiffusion.data import SyntheticDigits
    from npdiffusion.diffusion import DDPMScheduler

    digits, rng = SyntheticDigits(16, seed=5), np.random.default_rng(0)
    noise = rng.standard_normal(digits.images.shape, dtype=np.float32)
    noisy = DDPMScheduler().add_noise(digits.images, noise, 300)
    with npdiffusion.no_grad():
        guess = pretrained("mnist-ddpm")(Tensor(noisy), 300, digits.labels).data
    assert ((guess - noise) ** 2).mean() < 0.1
