"""What the tests on devices share: see the fixture ``cupy`` in conftest.py."""

import contextlib

import numpy as np
import standin_cupy

import npdiffusion
from npdiffusion import Tensor, to_device
from npdiffusion.models import UNet

try:
    import cupy as real_cupy
except ImportError:
    real_cupy = None


REAL = real_cupy is not None and real_cupy.is_available()


def host(x):
    return to_device(x.data if isinstance(x, Tensor) else x, "cpu")


def small_unet(**changes):
    npdiffusion.manual_seed(1)
    model = UNet(**{**dict(channels=(8, 32), blocks=1, attention=(1,), num_classes=3), **changes})
    rng = np.random.default_rng(0)
    for p in model.parameters():
        if not p.data.any():
            p.data[...] = 0.1 * rng.standard_normal(p.shape)
    return model


@contextlib.contextmanager
def not_waiting(cupy):
    """Nothing in this context may wait for the GPU."""
    with standin_cupy.forbid_waiting() if cupy is standin_cupy.module else contextlib.nullcontext():
        yield


def bits(run):
    return [host(a) for a in (*run.model.state_dict().values(), *run.ema.weights.values(),
                              *(m for m in run.optimizer.m), *(v for v in run.optimizer.v))] + [
        np.array([float(x) for x in run.seen])]
