"""Ops on Tensors, with PyTorch's names, argument order, shapes (NCHW) and meaning.

Each op is its equation, its forward and, right below, the closure that runs backward. Most are methods too:
``x.exp()``, ``x + y``, ``x[0]``; which ones is written at the end of this file.
"""

from ..tensor import Tensor
from .activation import dropout, gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh
from .arithmetic import (
    abs, add, clamp, comparison, div, exp, log, maximum, minimum, mul, neg, pow, sqrt, sub, where,
)
from .conv import conv2d, conv_transpose2d
from .loss import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss
from .normalization import group_norm, group_norm_silu, layer_norm
from .pooling import avg_pool2d, interpolate, max_pool2d
from .products import embedding, linear, matmul, scaled_dot_product_attention
from .reduction import max, mean, min, sum, var
from .shape import cat, expand, flatten, getitem, pad, permute, reshape, squeeze, stack, to, transpose, unsqueeze

# The ops: what the modules of this folder give, but for two that are methods alone
__all__ = sorted(name for name, op in vars().items()
                 if getattr(op, "__module__", "").startswith(f"{__name__}.") and name not in ("comparison", "to"))

for _op in (abs, add, clamp, div, exp, expand, flatten, log, log_softmax, matmul, max, mean, min, mul, neg, permute,
            pow, relu, reshape, sigmoid, silu, softmax, sqrt, squeeze, sub, sum, tanh, to, transpose, unsqueeze, var):
    setattr(Tensor, _op.__name__, _op)
Tensor.view = reshape
Tensor.cpu, Tensor.cuda = lambda self: to(self, "cpu"), lambda self: to(self, "cuda")
Tensor.float, Tensor.double = lambda self: to(self, "float32"), lambda self: to(self, "float64")
Tensor.T = property(lambda self: permute(self, *range(self.ndim)[::-1]))

Tensor.__getitem__ = getitem
Tensor.__neg__ = neg
Tensor.__add__, Tensor.__radd__ = add, lambda self, other: add(other, self)
Tensor.__sub__, Tensor.__rsub__ = sub, lambda self, other: sub(other, self)
Tensor.__mul__, Tensor.__rmul__ = mul, lambda self, other: mul(other, self)
Tensor.__truediv__, Tensor.__rtruediv__ = div, lambda self, other: div(other, self)
Tensor.__pow__, Tensor.__rpow__ = pow, lambda self, other: pow(other, self)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda self, other: matmul(other, self)
Tensor.__eq__, Tensor.__ne__ = comparison("equal"), comparison("not_equal")
Tensor.__lt__, Tensor.__le__ = comparison("less"), comparison("less_equal")
Tensor.__gt__, Tensor.__ge__ = comparison("greater"), comparison("greater_equal")
