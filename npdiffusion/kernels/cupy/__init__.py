"""Hand-written CUDA kernels: CuPy arrays in, CuPy arrays out.

Each family is a .cu file, which says how its threads are laid out, and a Python file of the same name, which launches
it. Images lie channels-last in memory; so do a convolution's weights and their gradients.
Sums are added in a fixed order, without atomics: the same bits every time. Nothing here waits for the device, and what
changes from step to step (counts, learning rates) is read on the device: all launches can be captured in a CUDA graph.
Equations, shapes and gradients: see ``kernels.plain``.
"""

from ..plain import __all__  # the same names
from .attention import attention, attention_backward, softmax, softmax_backward
from .conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from .elementwise import (
    add, add_at, cat, erf, silu, silu_backward, squared_error, squared_error_backward, timestep_embedding,
)
from .norm import group_norm, group_norm_backward
from .optim import adam, clip_grad_norm, ema, sgd
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from .product import linear, linear_backward, matmul
from .random import Generator as default_rng
