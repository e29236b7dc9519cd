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

import numpy as np

__all__ = ["kernels", "use_kernels"]

ON_CPU = ("plain", "numpy")  # the rooms that serve NumPy's arrays


class use_kernels:
    """Let ``room``, "plain" or "numpy" (the default), serve arrays on the CPU; as a context manager, for a while.

        npdiffusion.use_kernels("plain")         # from here on; or NPDIFFUSION_KERNELS=plain in the environment
        with npdiffusion.use_kernels("plain"):   # only inside
            ...

    Raises ValueError for another name. Arrays on a GPU have kernels of their own.
    """

    current = None

    def __init__(self, room):
        if room not in ON_CPU:
            raise ValueError(f"kernels on the CPU are 'plain' or 'numpy', got {room!r}")
        self.before, use_kernels.current = use_kernels.current, importlib.import_module(f"{__name__}.{room}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        use_kernels.current = self.before


def kernels(*arrays):
    """The room of kernels (conv2d, max_pool2d, group_norm, ...) that serves these arrays."""
    for array in arrays:
        if not isinstance(array, (np.ndarray, np.generic)):
            return importlib.import_module(f"{__name__}.cupy")
    return use_kernels.current


use_kernels(os.environ.get("NPDIFFUSION_KERNELS", "numpy"))
