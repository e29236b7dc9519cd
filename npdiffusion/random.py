"""Seeds, and the random generators that initialisation, dropout, noise and sampling draw from: one for each device."""

import numpy as np

from .device import cupy, device_of, to_device
from .distributed import Generator, world
from .kernels import kernels

_seed = None
_generators = {}  # "cpu", "cuda:0", ... -> its generator


def manual_seed(seed):
    """Seed the generators of the CPU and of all GPUs; returns the CPU's.

    The CPU and GPUs draw different numbers from one seed; each draws the same ones every time. All threads draw from
    the same generators; a fork's child has copies, which draw the same numbers: seed it, too.
    """
    global _seed
    _seed = seed
    _generators.clear()
    return default_generator()


def default_generator(device="cpu"):
    """The library's random generator of a device, as ``manual_seed`` left it.

    On the CPU a ``numpy.random.Generator``; on a GPU an object with its methods ``random``, ``standard_normal`` and
    ``integers``, which draws there. (Weights are always initialised from the CPU's.)
    """
    if device == "cuda":
        device = f"cuda:{cupy().cuda.Device().id}"  # the current one
    if device not in _generators:
        there = to_device(np.zeros(1), device)
        generator = kernels(there).default_rng(_seed)
        _generators.setdefault(device_of(there), generator if world is None else Generator(generator))
    return _generators[device]


def standard_normal(shape, dtype=np.float32, generator=None, device="cpu"):
    """Noise ε ~ N(0, I), an array on ``device``.

    generator: None takes the library's of that device. One of the CPU gives the same noise for all devices, drawn on
    the CPU and moved. Raises TypeError for what cannot draw.
    """
    generator = default_generator(device) if generator is None else generator
    if not hasattr(generator, "standard_normal"):
        raise TypeError(f"generator: expected np.random.default_rng(seed) or the like, got {generator!r}")
    return to_device(generator.standard_normal(shape, dtype=dtype), device)
