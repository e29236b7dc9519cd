"""What all tests share: settings of the process that a test changes are put back after it."""

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import pytest

from npdiffusion import random
from npdiffusion.device import tf32_allowed
from npdiffusion.kernels import use_kernels


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
