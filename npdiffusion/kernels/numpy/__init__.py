"""The kernels fast: what ``plain`` computes, with NumPy's memory traffic and Python's time in mind.

Images have PyTorch's NCHW shapes over channels-last memory: ``x.transpose(0, 2, 3, 1)`` is contiguous.
A pixel's channels then lie side by side, so that convolution becomes a few large matrix products.
Kernels accept any strides, split the batch over threads and work through it in pieces that stay in cache.
Where nothing faster is known, the plain kernel serves. Equations, shapes and gradients: see ``kernels.plain``.
"""

from ..plain import __all__  # the same names
from ..plain import (
    adam, add_at, clip_grad_norm, default_rng, ema, erf, sgd, silu, silu_backward, squared_error,
    squared_error_backward, timestep_embedding,
)
from .attention import attention, attention_backward, softmax, softmax_backward
from .conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from .elementwise import add, cat
from .norm import group_norm, group_norm_backward
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from .product import linear, linear_backward, matmul
