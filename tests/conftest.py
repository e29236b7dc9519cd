"""What all tests share: settings of the process that a test changes are put back after it."""

import sys

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import pytest
import standin_cupy
from on_devices import REAL, real_cupy

from npdiffusion import device, random
from npdiffusion.device import tf32_allowed
from npdiffusion.kernels import use_kernels
from npdiffusion.kernels.cupy import build


@pytest.fixture(autouse=True)
def global_state():
    """TF32, threads, kernels on the CPU, recording, seeds and generators: as before, and seeded, whatever ran first."""
    before = (tf32_allowed(), npdiffusion.get_num_threads(), use_kernels.current, npdiffusion.tensor._recording,
              random._seed, dict(random._generators))
    npdiffusion.manual_seed(0)
    yield
    tf32, threads, use_kernels.current, npdiffusion.tensor._recording, random._seed, generators = before
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
