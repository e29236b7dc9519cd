"""Every kernel in the shortest readable NumPy: forward, and right below it backward with its derivation.

How each backward is found. The loss depends on y = f(x). Known is g, the gradient of the loss with respect to y;
wanted is dx, the same with respect to x. Write <a, b> = Σ a·b for the sum over all elements. A small change δx
changes y by δy = J δx, where J is the Jacobian matrix of f, and the loss by <g, J δx>. Now

1. write δy = J δx: differentiate the forward, for a function of several arrays with respect to one at a time;
2. take the inner product <g, δy>, a sum over indices;
3. exchange the sums until δx stands alone: <g, J δx> = <Jᵀ g, δx>, where Jᵀ is called the adjoint of J;
4. read off dx = Jᵀ g. The matrix J itself is never formed.

This is reverse-mode differentiation (Griewank & Walther 2008, ch. 3). Images are (N, C, H, W); size, kernel, stride,
padding and dilation are pairs (vertical, horizontal). Arguments were checked before.
"""

from .attention import attention, attention_backward, softmax, softmax_backward
from .conv import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward
from .elementwise import (
    add, cat, erf, silu, silu_backward, squared_error, squared_error_backward, timestep_embedding,
)
from .index import add_at
from .norm import group_norm, group_norm_backward
from .optim import adam, clip_grad_norm, ema, sgd
from .pool import avg_pool2d, avg_pool2d_backward, max_pool2d, max_pool2d_backward
from .product import linear, linear_backward, matmul
from .random import default_rng

__all__ = [
    "adam", "add", "add_at", "attention", "attention_backward", "avg_pool2d", "avg_pool2d_backward", "cat",
    "clip_grad_norm", "conv2d", "conv2d_backward", "conv_transpose2d", "conv_transpose2d_backward", "default_rng",
    "ema", "erf", "group_norm", "group_norm_backward", "linear", "linear_backward", "matmul", "max_pool2d",
    "max_pool2d_backward", "sgd", "silu", "silu_backward", "softmax", "softmax_backward", "squared_error",
    "squared_error_backward", "timestep_embedding",
]
