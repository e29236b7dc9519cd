"""Optimisers against their papers' formulas written out in plain Python; clipping, schedules, averages."""

import math
import re

import numpy as np
import pytest

from npdiffusion import Tensor, nn, optim
from npdiffusion.training import Training


def run(make, steps=5):
    """Parameters after some steps on fixed gradients, and the gradients as plain numbers."""
    rng = np.random.default_rng(0)
    w = nn.Parameter(rng.standard_normal(3))
    start, grads = w.data.tolist(), rng.standard_normal((steps, 3))
    optimizer = make([w])
    for g in grads:
        w.grad = g.copy()
        optimizer.step()
        assert np.array_equal(w.grad, g)  # gradients are read, not used as scratch
    return start, grads.tolist(), w.data


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1), (0.0, 0.1)])
def test_sgd(momentum, decay):
    start, grads, result = run(lambda p: optim.SGD(p, 0.1, momentum, decay))
    for i, w in enumerate(start):
        v = 0.0
        for g in grads:
            v = momentum * v + g[i] + decay * w
            w -= 0.1 * v
        assert math.isclose(w, result[i], rel_tol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam(decay, decoupled):
    kind = optim.AdamW if decoupled else optim.Adam
    start, grads, result = run(lambda p: kind(p, 0.01, (0.8, 0.95), 1e-6, decay))
    for i, w in enumerate(start):
        m = v = 0.0
        for k, g in enumerate(grads, 1):
            g = g[i]
            if decoupled:
                w -= 0.01 * decay * w
            else:
                g += decay * w
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            w -= 0.01 * (m / (1 - 0.8 ** k)) / (math.sqrt(v / (1 - 0.95 ** k)) + 1e-6)
        assert math.isclose(w, result[i], rel_tol=1e-10)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_state_goes_on_where_it_was(kind):
    extra = {"momentum": 0.9} if kind is optim.SGD else {}
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 4)).astype(np.float32)

    def steps(w, optimizer, some):
        for g in some:
            w.grad = g
            optimizer.step()

    w = nn.Parameter(np.ones(4, np.float32))
    optimizer = kind([w], 0.1, **extra)
    steps(w, optimizer, grads[:3])
    state = {k: np.array(v) for k, v in optimizer.state_dict().items()}
    other = nn.Parameter(w.data.copy())
    fresh = kind([other], 0.5, **extra)
    fresh.load_state_dict(state)
    steps(w, optimizer, grads[3:])
    steps(other, fresh, grads[3:])
    assert np.array_equal(w.data, other.data) and w.dtype == np.float32
    with pytest.raises(KeyError, match="missing"):
        fresh.load_state_dict({"steps": 1, "lr": 0.1, "other.0": np.ones(4)})
    state[optimizer.buffers[0] + ".0"] = np.ones(5)
    with pytest.raises(ValueError, match="shape"):
        fresh.load_state_dict(state)


def test_parameters_without_gradient_stay():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.Adam([a, b])
    a.grad = np.ones(2)
    optimizer.step()
    assert (a.data != 1).all() and (b.data == 1).all()
    optimizer.zero_grad()
    assert a.grad is None


@pytest.mark.parametrize("make", [lambda: optim.Adam([]), lambda: optim.SGD([nn.Parameter(np.ones(1))], -1.0),
                                  lambda: optim.Adam([nn.Parameter(np.ones(1))], betas=(0.9, 1.0)),
                                  lambda: optim.EMA(nn.Linear(1, 1), 1.0)])
def test_bad_settings(make):
    with pytest.raises(ValueError):
        make()


def test_clip_grad_norm():
    a, b, c = (nn.Parameter(np.zeros(2)) for _ in range(3))
    a.grad, b.grad = np.array([3.0, 0.0]), np.array([0.0, 4.0])
    assert math.isclose(optim.clip_grad_norm_([a, b, c], 10.0), 5.0) and a.grad[0] == 3
    assert math.isclose(optim.clip_grad_norm_([a, b, c], 1.0), 5.0)
    assert math.isclose(math.hypot(a.grad[0], b.grad[1]), 1.0, rel_tol=1e-5)
    assert optim.clip_grad_norm_([c], 1.0) == 0.0


def test_warmup_cosine():
    values = [optim.warmup_cosine(k, 110, 10) for k in range(111)]
    assert values[0] == 0.1 and values[9] == values[10] == 1.0 and abs(values[60] - 0.5) < 1e-12
    assert values[110] == 0 and all(a >= b for a, b in zip(values[10:], values[11:]))
    assert optim.warmup_cosine(500, 110, final=0.1) == 0.1 and optim.warmup_cosine(0, 10) == 1.0


def test_ema():
    layer = nn.Linear(2, 2)
    first = layer.weight.data.copy()
    ema = optim.EMA(layer, 0.5)
    expected, rng = first.copy(), np.random.default_rng(0)
    for k in range(1, 20):
        layer.weight.data[...] = rng.standard_normal((2, 2))
        ema.update()
        d = min(0.5, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * layer.weight.data
        assert np.allclose(ema.weights["weight"], expected, atol=1e-6)
    now = layer.weight.data.copy()
    ema.swap()
    assert np.allclose(layer.weight.data, expected, atol=1e-6) and np.array_equal(ema.weights["weight"], now)
    ema.swap()
    assert np.array_equal(layer.weight.data, now) and ema.weights["weight"].dtype == np.float32


def test_optimisers_learn():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((64, 3)).astype(np.float32), np.float32([[1.0], [-2.0], [0.5]])
    for make in (lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.Adam(p, 0.05),
                 lambda p: optim.AdamW(p, 0.05, weight_decay=0)):
        layer = nn.Linear(3, 1)
        optimizer = make(layer.parameters())
        for _ in range(300):
            loss = ((layer(Tensor(x)) - Tensor(x @ target)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 1e-4


# What optimisers and clipping are given

KINDS = [optim.SGD, optim.Adam, optim.AdamW]


def parameter(*values):
    return nn.Parameter(np.array(values, np.float32))


def used_up():
    given = nn.Linear(1, 1).parameters()
    list(given)
    return given


WRONG = {  # what is given: (error of optimisers, error of clip_grad_norm_, words)
    "Parameter": (lambda: parameter(1.0), TypeError, None, "iterable of Tensors.*got a Parameter"),
    "Tensor": (lambda: Tensor([1.0]), TypeError, None, "iterable of Tensors"),
    "module": (lambda: nn.Linear(1, 1), TypeError, TypeError, "got a Linear"),
    "iterable module": (lambda: nn.Sequential(nn.Linear(1, 1)), TypeError, TypeError, "got a Sequential"),
    "state_dict": (lambda: nn.Linear(1, 1).state_dict(), TypeError, TypeError, "got a dict"),
    "set": (lambda: {parameter(1.0)}, TypeError, TypeError, "got a set"),
    "groups": (lambda: [{"params": [parameter(1.0)], "lr": 1}], TypeError, TypeError, "each group.*got a dict"),
    "names": (lambda: nn.Linear(1, 1).named_parameters(), TypeError, TypeError, "got a tuple"),
    "modules": (lambda: [nn.Linear(1, 1)], TypeError, TypeError, "got a Linear"),
    "array": (lambda: np.ones(2), TypeError, TypeError, "got a float64"),
    "arrays": (lambda: [np.ones(2)], TypeError, TypeError, "got a ndarray"),
    "None": (lambda: [None], TypeError, TypeError, "got a NoneType"),
    "number": (lambda: 3, TypeError, TypeError, "iterable"),
    "integers": (lambda: [Tensor([1, 2])], TypeError, TypeError, "got a Tensor int64"),
    "non-leaf": (lambda: [parameter(1.0) * 2], ValueError, None, "each once, none a non-leaf"),
    "twice": (lambda: [parameter(1.0)] * 2, ValueError, None, "each once, none a non-leaf"),
    "nothing": (list, ValueError, None, "got 0"),
    "used up": (used_up, ValueError, None, "got 0"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRONG)
def test_optimisers_refuse_what_they_cannot_move(name, kind):
    make, error, _, words = WRONG[name]
    with pytest.raises(error, match=words):
        kind(make(), 0.1)


@pytest.mark.parametrize("name", [name for name in WRONG if WRONG[name][2]])
def test_clipping_refuses_the_same(name):
    make, _, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        optim.clip_grad_norm_(make(), 1.0)


@pytest.mark.parametrize("kind, options", [
    *((kind, {"lr": lr}) for kind in KINDS for lr in (-0.1, math.nan)), *(
        (kind, {"weight_decay": -0.1}) for kind in KINDS), (optim.SGD, {"lr": 0.1, "momentum": -0.5}),
    *((kind, {name: value}) for kind in KINDS[1:] for name, value in (
        ("eps", -1e-8), ("eps", math.nan), ("betas", (-0.1, 0.9)), ("betas", (0.9, math.nan)))),
    (lambda _, max_norm: optim.clip_grad_norm_([], max_norm), {"max_norm": -1.0}),
    (lambda _, max_norm: optim.clip_grad_norm_([], max_norm), {"max_norm": math.nan})])
def test_numbers_that_make_no_sense(kind, options):
    with pytest.raises(ValueError, match=re.escape(repr(next(iter(reversed(options.values())))))):
        kind([parameter(1.0)], **{"lr": 0.1} | options if isinstance(kind, type) else options)


def test_the_learning_rate_is_checked_whenever_it_is_set():
    w = parameter(1.0)
    optimizer = optim.SGD([w], np.float64(0.1))
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="lr >= 0"):
            optimizer.lr = wrong
    w.grad = np.ones(1, np.float32)
    optimizer.step()
    optimizer.lr = np.float32(0.5)
    optimizer.step()
    np.testing.assert_allclose(w.data, [0.4], rtol=1e-6)


def test_clipping_takes_one_tensor_or_an_iterator_and_counts_each_once():
    w = parameter(0.0, 0.0)
    for given in (w, [w], iter([w]), [w, w], (w for _ in range(2))):
        w.grad = np.float32([3, 4])
        assert optim.clip_grad_norm_(given, 1) == pytest.approx(5)
        np.testing.assert_allclose(w.grad, [0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_clipping_gradients_that_are_not_finite_is_pytorch_s(value):
    torch = pytest.importorskip("torch")
    ours, theirs = [parameter(0.0), parameter(0.0)], [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for p, q, g in zip(ours, theirs, (value, 2.0)):
        p.grad, q.grad = np.float32([g]), torch.tensor([g])
    norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    np.testing.assert_equal(optim.clip_grad_norm_(ours, 1.0), norm.item())
    np.testing.assert_equal([p.grad.item() for p in ours], [q.grad.item() for q in theirs])


def test_parameters_of_several_dtypes():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer, ema = optim.Adam(model.parameters(), 0.1), optim.EMA(model, 0.5)
    model[1].to("float64")  # not the first
    before = {name: a.copy() for name, a in model.state_dict().items()}
    for p in model.parameters():
        p.grad = np.ones_like(p.data)
    optimizer.step()
    ema.update()
    for name, a in model.state_dict().items():
        assert a.dtype == ema.weights[name].dtype == before[name].dtype
        np.testing.assert_allclose(a, before[name] - 0.1, rtol=1e-6)
    assert [m.dtype for m in optimizer.m] == [p.dtype for p in model.parameters()]


def test_each_parameter_counts_its_own_steps():
    """The first step of Adam is 1·lr long for each, however long others have been moving."""
    a, b = parameter(0.0), parameter(0.0)
    optimizer = optim.Adam([a, b], 0.1)
    a.grad = np.ones(1, np.float32)
    for _ in range(1000):
        optimizer.step()
    b.grad = np.ones(1, np.float32)
    optimizer.step()
    np.testing.assert_allclose(b.data, [-0.1], rtol=1e-5)
    assert optimizer.steps.tolist() == [1001, 1]


# Tied weights: one parameter under several names


class Tied(nn.Module):
    def __init__(self):
        self.a, self.again = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.again.weight = self.a.weight
        self.shared = self.a
        self.a.weight.data[...] = 1

    def forward(self, x):
        return self.again(self.shared(self.a(x)))


NAMES = ["a.weight", "again.weight", "shared.weight"]


def test_sgd_moves_a_tied_weight_once():
    model = Tied()
    w, = model.parameters()
    w.grad = np.ones((1, 1), np.float32)
    assert optim.clip_grad_norm_(model.parameters(), 10) == 1
    optim.SGD(model.parameters(), 0.1).step()
    assert w.data == np.float32(0.9)
    model.zero_grad()
    model(Tensor([[2.0]])).backward()
    assert w.grad == pytest.approx(3 * 0.9**2 * 2)  # (w³x)'


def test_a_tied_weight_has_all_its_names_and_is_averaged_once():
    model = Tied()
    optimizer, ema = optim.AdamW(model.parameters(), 0.1), optim.EMA(model, 0.9)
    assert list(model.state_dict()) == list(ema.weights) == NAMES and len(optimizer.m) == 1
    model.a.weight.data[...] = 3
    ema.update()
    average = 2 / 11 * 1 + 9 / 11 * 3
    assert all(a == pytest.approx(average) for a in ema.weights.values())
    ema.swap()
    assert model.again.weight.data == pytest.approx(average) and ema.weights["shared.weight"] == 3
    ema.swap()
    other = Tied()
    other.load_state_dict(ema.weights)
    assert other.a.weight is other.again.weight and other.a.weight.data == pytest.approx(average)
    again = optim.EMA(other)
    again.load({name: np.full((1, 1), 5, np.float32) for name in NAMES})
    assert all(a == 5 for a in again.weights.values())
    model.to("float64")
    ema.update()
    assert ema.weights["a.weight"] is ema.weights["shared.weight"] and ema.weights["a.weight"].dtype == np.float64


def test_what_does_not_fit_is_not_loaded():
    layer = nn.Linear(2, 2)
    ema, optimizer = optim.EMA(layer), optim.Adam(layer.parameters(), 1)
    before = {name: a.copy() for name, a in ema.weights.items()}
    with pytest.raises(ValueError, match=r"bias: expected \(2,\), got \(1,\)"):  # it would broadcast
        ema.load({"weight": np.ones((2, 2), np.float32), "bias": np.ones(1, np.float32)}, 7)
    assert ema.updates == 0 and all(np.array_equal(a, before[name]) for name, a in ema.weights.items())
    optimizer.load_state_dict({**optimizer.state_dict(), "lr": np.array(0.25)})
    assert optimizer.lr == optimizer.rate == 0.25  # although it was an integer


def test_a_training_of_tied_weights_is_resumed(tmp_path):
    def begun():
        model = Tied()
        model.config = {}
        return Training(model, 2, {}, steps=4, batch_size=1, lr=0.1)

    def loss(run):
        return lambda index: (run.model(Tensor([[1.0]])) - 3) ** 2

    whole, first, second = begun(), begun(), begun()
    whole.fit(loss(whole), tmp_path / "whole")
    for _ in range(2):
        first.losses.append(first.train_step(first.descent(loss(first))))
    first.save(tmp_path / "checkpoint.safetensors")
    second.fit(loss(second), tmp_path, resume=True)
    a, b = whole.model, second.model
    assert b.a.weight is b.again.weight and a.a.weight.data == b.a.weight.data != 1
    assert whole.ema.weights == second.ema.weights
