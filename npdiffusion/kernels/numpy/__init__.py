"""Hand-written NumPy kernels: arrays in, arrays out.

Images have PyTorch's NCHW shapes over channels-last memory: ``x.transpose(0, 2, 3, 1)`` is contiguous.
A pixel's channels then lie side by side, so that convolution becomes a few large matrix products.
Kernels accept any strides, split the batch over threads and work through it in pieces that stay in cache.
"""

from .conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from .elementwise import (
    add, bias_activation, bias_activation_backward, cat, channel_sums, squared_error, squared_error_backward,
    timestep_embedding,
)
from .index import add_at
from .matmul import linear_backward, matmul
from .norm import group_norm, group_norm_backward
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from .softmax import softmax, softmax_backward

__all__ = [
    "add", "add_at", "avg_pool2d", "avg_pool2d_backward", "bias_activation", "bias_activation_backward", "cat",
    "channel_sums", "conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward", "group_norm",
    "group_norm_backward", "linear_backward", "matmul", "max_pool2d", "max_pool2d_backward", "softmax",
    "softmax_backward", "squared_error", "squared_error_backward", "timestep_embedding",
]
