"""The kernels: array functions that do the work beneath the ops, three times under the same names and signatures.

========== ====================================================================================================
``plain``  the shortest readable NumPy: forward, and right below it backward with its derivation. Begin here
``numpy``  the same numbers fast: channels-last memory, pieces that stay in cache, threads, Winograd
``cupy``   CUDA C
========== ====================================================================================================

Arrays in, arrays out; images are (N, C, H, W). Arguments were checked in ``functional``.
"""

import importlib
import os
from contextvars import ContextVar

import numpy as np

ON_CPU = ("plain", "numpy")  # the rooms that serve NumPy's arrays
_called = []  # rooms that calls of use_kernels asked for: the last one serves all threads
_entered = ContextVar("entered", default=())  # those of the ``with`` that this thread is inside: they come first


class use_kernels:
    """Let ``room``, "plain" or "numpy" (the default), serve arrays on the CPU; as a context manager, for a while.

        npdiffusion.use_kernels("plain")         # from here on; or NPDIFFUSION_KERNELS=plain in the environment
        with npdiffusion.use_kernels("plain"):   # only inside, and only in this thread
            ...

    Raises ValueError for another name. Arrays on a GPU have kernels of their own.
    """

    def __init__(self, room):
        if room not in ON_CPU:
            raise ValueError(f"kernels on the CPU are 'plain' or 'numpy', got {room!r}")
        self.room = importlib.import_module(f"{__name__}.{room}")
        _called.append(self)

    def __enter__(self):
        if self in _called:  # it is no call, as it turns out
            _called.remove(self)
        _entered.set((*_entered.get(), self.room))
        return self

    def __exit__(self, *exc):
        _entered.set(_entered.get()[:-1])


def kernels(*arrays):
    """The room of kernels (conv2d, max_pool2d, group_norm, ...) that serves these arrays."""
    for array in arrays:
        if not isinstance(array, (np.ndarray, np.generic)):
            return importlib.import_module(f"{__name__}.cupy")
    return (_entered.get() or (_called[-1].room,))[-1]


use_kernels(os.environ.get("NPDIFFUSION_KERNELS", "numpy"))
