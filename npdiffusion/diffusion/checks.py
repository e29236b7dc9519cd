"""Checks of what schedulers and sampling are given."""

import operator

import numpy as np

from ..device import array_module, device_of

__all__ = ["check_like", "check_sample", "check_timesteps"]


def check_sample(x, name):
    """Raise TypeError unless x is a float32 or float64 array."""
    array_module(x)  # raises for anything that is not an array
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}; "
                        f"scale images to [-1, 1] first, as in x.astype(np.float32) / 127.5 - 1")


def check_like(x, name, sample):
    """Raise unless x is an array with the shape, dtype and device of sample (nothing broadcasts by accident)."""
    check_sample(sample, "sample")
    check_sample(x, name)
    if x.shape != sample.shape:
        raise ValueError(f"{name}: expected shape {sample.shape} as the sample's, got {x.shape}")
    if x.dtype != sample.dtype:
        raise TypeError(f"{name}: expected {sample.dtype} as the sample's, got {x.dtype}; use .astype")
    if device_of(x) != device_of(sample):
        raise TypeError(f"{name}: expected an array on {device_of(sample)} as the sample, got one on {device_of(x)}; "
                        "use npdiffusion.to_device")


def check_timesteps(t, n_samples, n_train):
    """t as an int, or as an array of n_samples integers; raise unless it lies in 0 … n_train - 1
    (the values of an array on a device are not looked at: that would wait for the device)."""
    t = np.asarray(t) if isinstance(t, (list, tuple)) else t
    if getattr(t, "ndim", 0) == 0:
        try:
            t = low = high = operator.index(t)
        except TypeError:
            raise TypeError(f"timesteps: expected an integer or an integer array, got {t!r}") from None
    else:
        if t.dtype.kind not in "iu" or t.shape != (n_samples,):
            raise ValueError(f"timesteps: expected integers of shape ({n_samples},), one for each sample, "
                             f"got {t.dtype} of shape {t.shape}")
        low, high = (t.min(), t.max()) if isinstance(t, np.ndarray) and t.size else (0, 0)
    if low < 0 or high >= n_train:
        raise ValueError(f"timesteps: expected 0 to {n_train - 1}, got {low if low < 0 else high}; "
                         f"this scheduler has num_train_timesteps={n_train}")
    return t
