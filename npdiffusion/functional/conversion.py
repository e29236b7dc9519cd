"""To another device or another dtype: methods of Tensors."""

import numpy as np

from ..device import is_device, to_device
from ..tensor import record

__all__ = ["cpu", "cuda", "double", "float", "to"]


def to(self, target):
    """This Tensor on a device ("cpu", "cuda", "cuda:1") or, given a dtype, converted to it.

    The gradient goes back to where the Tensor was. Itself if there is nothing to do.
    """
    if is_device(target):
        own, moved = self.device, to_device(self.data, target)
        return self if moved is self.data else record(moved, "to", (self,), lambda g: (to_device(g, own),))
    dtype, own = np.dtype(target), self.dtype
    return self if dtype == own else record(self.data.astype(dtype), "to", (self,), lambda g: (g.astype(own),))


def cpu(self):
    """On the CPU."""
    return to(self, "cpu")


def cuda(self):
    """On the GPU."""
    return to(self, "cuda")


def float(self):
    """Converted to float32."""
    return to(self, "float32")


def double(self):
    """Converted to float64."""
    return to(self, "float64")
