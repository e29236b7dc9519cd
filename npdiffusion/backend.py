"""Where arrays live: the one module that knows array libraries, devices and the random generator.

Every op asks here, by the type of its array, for the array library (``array_module``) and for the
hand-written kernels (``kernels``). NumPy is the only backend so far; this module alone may import
another one.
"""

import numpy as np

from .kernels import numpy as numpy_kernels

__all__ = ["array_module", "default_generator", "kernels", "manual_seed", "to_device"]

_generator = np.random.default_rng()


def array_module(array):
    """The library whose functions take ``array``: numpy for an ndarray."""
    if isinstance(array, (np.ndarray, np.generic)):
        return np
    raise TypeError(f"expected a NumPy array, got {type(array).__name__}; wrap it: numpy.asarray(...)")


def kernels(array):
    """The kernels (conv2d, max_pool2d, group_norm, ...) written for the library of ``array``."""
    array_module(array)
    return numpy_kernels


def to_device(array, device):
    """``array`` on ``device``; "cpu" is the only one so far."""
    if device != "cpu":
        raise ValueError(f"device must be 'cpu', got {device!r}: this version computes on the CPU only")
    array_module(array)
    return array


def manual_seed(seed):
    """Seed the generator that initialisation, dropout, noise and sampling draw from; returns it."""
    global _generator
    _generator = np.random.default_rng(seed)
    return _generator


def default_generator():
    """The library's ``numpy.random.Generator``, as ``manual_seed`` left it."""
    return _generator
