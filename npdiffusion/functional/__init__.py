"""Ops on Tensors, with PyTorch's names, argument order, shapes (NCHW) and meaning.

Each op is its equation, its forward and, right below, the closure that runs backward. Most are methods too:
``x.exp()``, ``x + y``, ``x[0]``.
"""

from ..tensor import Tensor
from . import activation, arithmetic, conv, loss, normalization, pooling, products, reduction, shape
from .activation import *  # noqa: F401,F403
from .arithmetic import *  # noqa: F401,F403
from .arithmetic import compare
from .conv import *  # noqa: F401,F403
from .products import *  # noqa: F401,F403
from .loss import *  # noqa: F401,F403
from .normalization import *  # noqa: F401,F403
from .pooling import *  # noqa: F401,F403
from .reduction import *  # noqa: F401,F403
from .shape import *  # noqa: F401,F403

_rooms = (activation, arithmetic, conv, loss, normalization, pooling, products, reduction, shape)
__all__ = sorted(name for room in _rooms for name in room.__all__)

for _name in ("abs add clamp div exp expand flatten log matmul max mean min mul neg permute pow relu reshape sigmoid "
              "softmax log_softmax silu sqrt squeeze sub sum tanh transpose unsqueeze var").split():
    setattr(Tensor, _name, globals()[_name])

Tensor.view = Tensor.reshape
Tensor.T = property(lambda self: permute(self, *range(self.ndim)[::-1]))  # noqa: F405
Tensor.__getitem__ = getitem  # noqa: F405
Tensor.__neg__ = neg  # noqa: F405

for _symbol, _op in (("add", add), ("sub", sub), ("mul", mul), ("truediv", div), ("pow", pow),  # noqa: F405
                     ("matmul", matmul)):  # noqa: F405
    setattr(Tensor, f"__{_symbol}__", _op)
    setattr(Tensor, f"__r{_symbol}__", lambda self, other, op=_op: op(other, self))

for _symbol, _comparison in (("eq", "equal"), ("ne", "not_equal"), ("lt", "less"), ("le", "less_equal"),
                             ("gt", "greater"), ("ge", "greater_equal")):
    setattr(Tensor, f"__{_symbol}__", lambda self, other, name=_comparison: compare(name, self, other))
