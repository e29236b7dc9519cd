"""Where arrays live: the one module that knows array libraries, devices and the random generators.

Every op asks here, by the type of its array, for the array library (``array_module``) and for the hand-written
kernels (``kernels``): NumPy's on "cpu", CuPy's on "cuda". This module alone imports CuPy, when a GPU is asked for.
"""

import sys
from functools import cache

import numpy as np

from .kernels import numpy as numpy_kernels

__all__ = ["allow_tf32", "array_module", "beside", "cuda_is_available", "cupy", "default_generator", "device_of",
           "is_device", "kernels", "manual_seed", "pack", "packed", "tf32_allowed", "to_device", "writeable"]

_cupy = None  # the module, once it has been found to work
_tf32 = False
_seed = None  # of the generators on GPUs
_generator = np.random.default_rng()
_device_generators = {}  # "cuda:0" -> its generator


def cupy():
    """The CuPy module; RuntimeError with what to do if it is missing or finds no GPU."""
    global _cupy
    if _cupy is None:
        try:
            import cupy
        except ImportError as error:
            raise RuntimeError("device 'cuda' needs CuPy: pip install 'npdiffusion[cuda]' (for CUDA 12; for another "
                               f"version of CUDA install its cupy wheel) [{error}]") from error
        if not cupy.is_available():
            raise RuntimeError("device 'cuda' needs an NVIDIA GPU and its driver: CuPy (which pip install "
                               "'npdiffusion[cuda]' brings) is there, but finds no GPU. Device 'cpu' always works")
        _cupy = cupy
    return _cupy


def cuda_is_available():
    """Whether device "cuda" works here."""
    try:
        return bool(cupy())
    except RuntimeError:
        return False


def array_module(*arrays):
    """The library whose functions take these arrays: cupy if one of them is on a GPU, else numpy."""
    for array in arrays:
        if (library := _library(type(array))) is not np:
            return library
    return np


@cache
def _library(kind):
    """The library that has this type of arrays. (An op asks many times, and on a GPU the CPU's time counts.)"""
    if issubclass(kind, (np.ndarray, np.generic)):
        return np
    if kind.__module__.partition(".")[0] == "cupy":  # asked without importing it
        return sys.modules["cupy"]
    raise TypeError(f"expected a NumPy array (or a CuPy one), got {kind.__name__}; wrap it: numpy.asarray(...)")


def kernels(*arrays):
    """The kernels (conv2d, max_pool2d, group_norm, ...) written for the library of these arrays."""
    if array_module(*arrays) is np:
        return numpy_kernels
    from .kernels import cupy as cupy_kernels
    return cupy_kernels


def is_device(name):
    """Whether ``name`` is written like a device: "cpu", "cuda" or "cuda:1"."""
    return isinstance(name, str) and name.partition(":")[0] in ("cpu", "cuda")


def device_of(array):
    """Where an array lives: "cpu", "cuda:0", ..."""
    return "cpu" if array_module(array) is np else f"cuda:{array.data.device_id}"


def to_device(array, device):
    """``array`` on ``device``: itself if it is there already, else a copy.

    device: "cpu", "cuda" (the current GPU) or "cuda:1" (which becomes the current one: a program computes on one GPU
    at a time). Raises ValueError for other names, RuntimeError where there is no such GPU.
    """
    kind, _, number = str(device).partition(":")
    if not is_device(device) or ":" in device and (kind == "cpu" or not number.isdigit()):
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:0', ..., got {device!r}")
    if kind == "cpu":
        return array if array_module(array) is np else sys.modules["cupy"].asnumpy(array)
    xp = cupy()
    if number:
        count = xp.cuda.runtime.getDeviceCount()
        if int(number) >= count:
            raise RuntimeError(f"there is no device {device!r}: this machine has {count} GPU(s), counted from 0")
        xp.cuda.Device(int(number)).use()
    elif array_module(array) is not np:
        return array
    if array_module(array) is np and xp.cuda.get_current_stream().is_capturing():  # CuPy would record the copy
        raise RuntimeError(f"an array of the CPU, of shape {array.shape}, would be copied to the GPU only once; pass "
                           "it as an argument, or move it there before")
    # from GPU to GPU by way of the CPU: CuPy copies only what is contiguous
    return array if device_of(array) == device else xp.asarray(to_device(array, "cpu"))


def beside(array, like):
    """A small array (levels, labels, indices) on the device of ``like``."""
    return to_device(array, device_of(like))


def writeable(array):
    """Whether the elements may be changed in place: no, where a broadcast view shows one of them many times."""
    if array_module(array) is np:
        return array.flags.writeable
    return all(stride or size == 1 for stride, size in zip(array.strides, array.shape))


def pack(arrays):
    """Copies of GPU arrays of one dtype in one flat array: views of it, one after the other.

    Those of four axes lie there with the second axis last, as the kernels want a convolution's weights.
    """
    xp = array_module(*arrays)
    rows = [xp.ascontiguousarray(a.transpose(0, 2, 3, 1)) if a.ndim == 4 else xp.ascontiguousarray(a) for a in arrays]
    flat = xp.empty(sum(a.size for a in rows), rows[0].dtype)
    kernels(flat).gather(rows, flat)
    views, start = [], 0
    for a in arrays:
        a = a.transpose(0, 2, 3, 1) if a.ndim == 4 else a
        view = flat[start:start + a.size].reshape(a.shape)
        views.append(view.transpose(0, 3, 1, 2) if a.ndim == 4 else view)
        start += a.size
    return views


def packed(arrays):
    """The flat array that GPU arrays are pieces of, if they lie in it as ``pack`` leaves them; else None."""
    base = arrays[0].base
    if base is None or base.ndim != 1:
        return None
    first = end = arrays[0].data.ptr
    for a in arrays:
        rows = a.transpose(0, 2, 3, 1) if a.ndim == 4 else a
        if a.base is not base or a.data.ptr != end or a.dtype != base.dtype or not rows.flags.c_contiguous:
            return None
        end += a.nbytes
    start = (first - base.data.ptr) // base.itemsize
    return base[start:start + (end - first) // base.itemsize]


def allow_tf32(allow=True):
    """Let matrix products and convolutions on the GPU round their float32 operands to TF32 (10 bits of mantissa).

    Tensor cores then multiply several times as fast, with relative errors around 1e-3 instead of 1e-6; sums stay in
    float32. Off by default. No effect on the CPU and on float64.
    """
    global _tf32
    _tf32 = bool(allow)


def tf32_allowed():
    """What ``allow_tf32`` was last told."""
    return _tf32


def manual_seed(seed):
    """Seed the generators that initialisation, dropout, noise and sampling draw from, on the CPU and on all GPUs.

    Returns the CPU's. The CPU and GPUs draw different numbers from one seed; each draws the same ones every time.
    """
    global _generator, _seed
    _generator, _seed = np.random.default_rng(seed), seed
    _device_generators.clear()
    return _generator


def default_generator(device="cpu"):
    """The library's random generator of a device, as ``manual_seed`` left it.

    On the CPU a ``numpy.random.Generator``; on a GPU an object with its methods ``random``, ``standard_normal`` and
    ``integers``, which draws there. (Weights are always initialised from the CPU's.)
    """
    if device == "cpu":
        return _generator
    if device == "cuda":
        device = f"cuda:{cupy().cuda.Device().id}"  # the current one
    if device not in _device_generators:
        from .kernels.cupy.random import Generator
        device = device_of(to_device(np.zeros(1), device))
        _device_generators.setdefault(device, Generator(_seed))
    return _device_generators[device]
