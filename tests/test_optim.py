"""Optimisers against their papers' formulas written out in plain Python; clipping, schedules, averages."""

import math

import numpy as np
import pytest

from npdiffusion import Tensor, nn, optim


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
