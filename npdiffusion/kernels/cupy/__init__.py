"""Hand-written CUDA kernels under the names and signatures of ``kernels.numpy``: CuPy arrays in, CuPy arrays out.

Each family is a .cu file, which says how its threads are laid out, and a Python file of the same name, which launches
it. Memory is channels-last as in the NumPy kernels; so are a convolution's weights and their gradients.
Sums are added in a fixed order, without atomics: the same bits every time. Nothing here waits for the device.
"""

from .conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from .elementwise import (
    add, bias_activation, bias_activation_backward, cat, channel_sums, squared_error, squared_error_backward,
    timestep_embedding,
)
from .index import add_at
from .matmul import linear_backward, matmul
from .norm import group_norm, group_norm_backward
from .optim import adam, clip_norm, ema, gather
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from .sampler import coefficients, sampler_step
from .softmax import softmax, softmax_backward

__all__ = [
    "adam", "add", "add_at", "avg_pool2d", "avg_pool2d_backward", "bias_activation", "bias_activation_backward", "cat",
    "channel_sums", "clip_norm", "coefficients", "conv2d", "conv2d_backward", "conv_transpose2d",
    "conv_transpose2d_backward", "ema", "gather", "group_norm", "group_norm_backward", "linear_backward", "matmul",
    "max_pool2d", "max_pool2d_backward", "sampler_step", "softmax", "softmax_backward", "squared_error",
    "squared_error_backward", "timestep_embedding",
]
