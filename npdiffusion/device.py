"""Where arrays live: NumPy's on "cpu", CuPy's on "cuda". This module alone imports CuPy, when a GPU is asked for."""

import sys

import numpy as np

_cupy = None  # the module, once it has been found to work
_tf32 = False


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
        if not isinstance(array, (np.ndarray, np.generic)):
            if not _is_cupys(array):
                raise TypeError(f"expected a NumPy array (or a CuPy one), got {type(array).__name__}; "
                                "wrap it: numpy.asarray(...)")
            return sys.modules["cupy"]
    return np


def _is_cupys(array):
    return type(array).__module__.partition(".")[0] == "cupy"  # asked without importing it


def is_device(name):
    """Whether ``name`` is written like a device: "cpu", "cuda" or "cuda:1"."""
    return isinstance(name, str) and name.partition(":")[0] in ("cpu", "cuda")


def device_of(array):
    """Where an array lives: "cpu", "cuda:0", ..."""
    return "cpu" if array_module(array) is np else f"cuda:{array.data.device_id}"


def to_device(array, device):
    """``array`` on ``device``: itself if it is there already, else a copy.

    Images and convolutions' weights (four axes) come to a GPU in channels-last memory, as the kernels want them.

    device: "cpu", "cuda" (the current GPU) or "cuda:1" (which becomes the current one: a program computes on one GPU
    at a time); or another array, to go where it is. Raises ValueError for other names, RuntimeError where there is no
    such GPU.
    """
    device = device if isinstance(device, str) else device_of(device)
    kind, _, number = device.partition(":")
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
    if array_module(array) is not np:  # from GPU to GPU by way of the CPU: CuPy copies only what is contiguous
        there = not number or device_of(array) == device
        return array if there else to_device(to_device(array, "cpu"), device)
    if xp.cuda.get_current_stream().is_capturing():  # CuPy would record the copy
        raise RuntimeError(f"an array of the CPU, of shape {array.shape}, would be copied to the GPU only once; pass "
                           "it as an argument, or move it there before")
    if array.ndim == 4:
        return xp.asarray(np.ascontiguousarray(array.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    return xp.asarray(array)


def copy_into(own, arrays, what, strict=True):
    """Copy named arrays into ``own``, in place, as ``Module.load_state_dict`` says. what: how its errors begin."""
    missing, unexpected = [k for k in own if k not in arrays], [k for k in arrays if k not in own]
    if strict and (missing or unexpected):
        raise KeyError(f"{what}: missing {_first(missing)}, unexpected {_first(unexpected)}")
    given = {name: arrays[name] for name in own if name in arrays}
    arrays = {name: a if _is_cupys(a) else np.asarray(a) for name, a in given.items()}
    wrong = [f"{name}: expected {own[name].shape}, got {a.shape}" for name, a in arrays.items()
             if a.shape != own[name].shape]
    if wrong:
        raise ValueError(f"{what} in shape: {_first(wrong, '; '.join)}")
    for name, a in arrays.items():
        own[name][...] = to_device(a, own[name])


def _first(texts, joined=str):
    """The first five of a list, and how many more there are."""
    return joined(texts[:5]) + f" and {len(texts) - 5} more" * (len(texts) > 5)


def allow_tf32(allow=True):
    """Let matrix products and convolutions on the GPU round their float32 operands to TF32 (10 bits of mantissa).

    Tensor cores then multiply several times as fast, with relative errors around 1e-3 instead of 1e-6; sums stay in
    float32. Off by default; one setting for all threads. No effect on the CPU and on float64.
    """
    global _tf32
    _tf32 = bool(allow)


def tf32_allowed():
    """What ``allow_tf32`` was last told."""
    return _tf32
