"""Random numbers drawn on the GPU."""

from threading import RLock

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch


class Generator:
    """Philox4x32-10 (Salmon et al. 2011) on the current GPU, with those methods of ``numpy.random.Generator`` that this
    library uses.

    The state is two numbers on the GPU, a key and a counter, so that drawing waits for nothing and may be captured in
    a CUDA graph. One seed gives the same bits on every run. ``bit_generator.state`` is the state, to save and set.
    """

    def __init__(self, seed):
        self._lock = RLock()
        key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        self._state = cupy().asarray(np.array([key, 0], np.uint64))

    bit_generator = property(lambda self: self)

    @property
    def state(self):
        """{"bit_generator": "Philox4x32", "key": …, "counter": …}; reading it waits for the GPU."""
        key, counter = self._state.get().tolist()
        return {"bit_generator": "Philox4x32", "key": key, "counter": counter}

    @state.setter
    def state(self, state):
        if state.get("bit_generator") != "Philox4x32":
            raise ValueError(f"expected the state of a GPU's generator (Philox4x32), got {state!r}")
        self._state.set(np.array([state["key"], state["counter"]], np.uint64))

    def random(self, size=(), dtype=np.float64):
        """Uniform in [0, 1)."""
        return self._draw("draw_uniform", size, dtype)

    def standard_normal(self, size=(), dtype=np.float64):
        """Normal with mean 0 and variance 1."""
        return self._draw("draw_normal", size, dtype)

    def integers(self, low, high=None, size=()):
        """Integers (int64) in [low, high), or in [0, low)."""
        low, high = (0, low) if high is None else (low, high)
        if not 0 < high - low <= 2**32:
            raise ValueError(f"integers: expected low < high, at most 2³² apart, got {low} and {high}")
        return self._draw("draw_integers", size, np.int64, np.int64(low), np.uint64(high - low))

    def _draw(self, name, size, dtype, *args):
        out = cupy().empty(size, dtype)
        threads = ceil_div(out.size, 4 if name == "draw_integers" else 16 // out.itemsize)
        real = "float32" if name == "draw_integers" else out.dtype.name
        with self._lock:  # no other thread draws the same numbers
            args = self._state, out, *args, np.int64(out.size)
            launch(kernel(name, "random", real), (ceil_div(threads, 256),), (256,), args)
            launch(kernel("advance_counter", "random", real), (1,), (1,), (self._state, np.uint64(threads)))
        return out
