"""What all tests share: settings of the process that a test changes are put back after it."""

import sys

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import pytest
import standin_cupy
from on_devices import REAL, real_cupy

from npdiffusion import device, kernels, random, tensor
from npdiffusion.device import tf32_allowed
from npdiffusion.kernels.cupy import build
from npdiffusion.nn import module


@pytest.fixture(autouse=True)
def global_state():
    """TF32, threads, kernels on the CPU, recording, modes, seeds and generators: as before, and seeded."""
    before = (tf32_allowed(), npdiffusion.get_num_threads(), list(kernels._called), random._seed,
              dict(random._generators))
    own = [(state, state.get()) for state in (kernels._entered, tensor._no_grads, module._evaluated)]
    npdiffusion.manual_seed(0)
    yield
    tf32, threads, kernels._called[:], random._seed, generators = before
    for state, value in own:
        state.set(value)
    npdiffusion.allow_tf32(tf32)
    npdiffusion.set_num_threads(threads)
    random._generators.clear()
    random._generators.update(generators)


@pytest.fixture(params=["stand-in", *(["cuda"] if REAL else [])])
def cupy(request, monkeypatch):
    """The CuPy module: the stand-in, and where there is a GPU the real one."""
    if request.param == "cuda":
        return real_cupy
    monkeypatch.setitem(sys.modules, "cupy", standin_cupy.module)
    monkeypatch.setattr(device, "_cupy", None)
    monkeypatch.setattr(random, "_generators", {})
    for cache in (build.build, build.kernel):
        cache.cache_clear()
    request.addfinalizer(lambda: [cache.cache_clear() for cache in (build.build, build.kernel)])
    return standin_cupy.module
