"""How many launches of kernels a training step and a forward pass take: each costs time of its own on a GPU."""

import cuda_on_cpu
import numpy as np
import pytest
import standin_cupy
from on_devices import small_unet
from test_graphs import capture

from npdiffusion import Tensor, functional as F, no_grad, optim, to_device

NO_LAUNCH = {"empty", "empty_like", "asarray", "may_share_memory"}
MAY_BE_VIEWS = {"__getitem__", "ascontiguousarray", "astype", "broadcast_to", "expand_dims", "moveaxis", "ravel",
                "reshape", "transpose"}


def launches(graph):
    """{name: how often} of what was recorded, without views and memory that is only reserved."""
    names = []
    for new, function, args, _ in graph.calls:
        name = function.__name__
        view = new is None or any(new is getattr(x, "_a", None) for x in args)
        if name not in NO_LAUNCH and not (view and name in MAY_BE_VIEWS):
            names.append(name)
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("cupy", ["stand-in"], indirect=True)
def test_the_unets_launches(cupy, monkeypatch):
    monkeypatch.setattr(cuda_on_cpu.Kernels, "launch", lambda *_: None)  # only counted
    model = small_unet(channels=(32, 64, 128), attention=(2,), num_classes=10).to("cuda")  # the MNIST model
    optimizer, ema = optim.AdamW(model.parameters()), optim.EMA(model)
    x, noise = (Tensor(np.zeros((4, 1, 32, 32), np.float32), device="cuda") for _ in range(2))
    t, labels = (to_device(np.arange(4), "cuda") for _ in range(2))

    def step():
        loss = F.mse_loss(model(x, t, labels), noise)
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step()
        ema.update()

    for run, most in ((no_grad()(lambda: model(x, t, labels)), 75), (step, 260)):
        run()
        counted = launches(capture(run)[0])
        assert sum(counted.values()) <= most, counted


def test_counting():
    xp = standin_cupy.module
    x = xp.asarray(np.zeros((2, 3)))

    def function():
        y = xp.ascontiguousarray(xp.asarray(x).reshape(6)[1:].reshape(5, 1))  # all of it views
        z = xp.ascontiguousarray(x.T)
        z[0] = y[0] + 1
        z *= 2
        return z.sum()

    function()
    counted = launches(capture(function)[0])
    assert counted == {"ascontiguousarray": 1, "add": 1, "__setitem__": 1, "multiply": 1, "sum": 1}
