"""npdiffusion: diffusion models from scratch on NumPy, fast enough to use and short enough to read."""

import importlib

from . import _process  # noqa: F401  (first: it chooses NumPy's BLAS kernels)
from . import functional, nn, optim
from .cuda_graph import captured
from .device import allow_tf32, cuda_is_available, to_device
from .gradcheck import gradcheck
from .graph import graph
from .kernels import use_kernels
from .random import default_generator, manual_seed
from .tensor import Tensor, no_grad
from .threads import get_num_threads, set_num_threads

__version__ = "0.2.0"
__all__ = ["Tensor", "allow_tf32", "captured", "checkpoint", "cuda_is_available", "data", "default_generator",
           "diffusion", "functional", "get_num_threads", "gradcheck", "graph", "manual_seed", "metrics", "models", "nn",
           "no_grad", "optim", "set_num_threads", "to_device", "use_kernels"]


def __getattr__(name):
    """Rooms that need more than NumPy are opened when they are first asked for: importing the package stays quick."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
