"""npdiffusion: diffusion models from scratch on NumPy, fast enough to use and short enough to read."""

from . import _process  # noqa: F401  (before NumPy)
from . import checkpoint, data, diffusion, functional, metrics, models, nn, optim
from .backend import allow_tf32, cuda_is_available, default_generator, manual_seed, to_device
from .gradcheck import gradcheck
from .graphs import captured
from .tensor import Tensor, graph, no_grad
from .threads import get_num_threads, set_num_threads

__version__ = "0.1.0"
__all__ = ["Tensor", "allow_tf32", "captured", "checkpoint", "cuda_is_available", "data", "default_generator",
           "diffusion", "functional", "get_num_threads", "gradcheck", "graph", "manual_seed", "metrics", "models", "nn",
           "no_grad", "optim", "set_num_threads", "to_device"]
