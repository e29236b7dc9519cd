"""Checks of what schedulers and sampling are given."""

import math
import operator

import numpy as np

from ..device import array_module, device_of, to_device


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
    """t as an int, or as an int64 array of n_samples; raise unless it lies in 0 … n_train - 1
    (the values of an array on a device are not looked at: that would wait for the device)."""
    t = np.asarray(t) if isinstance(t, (list, tuple)) else t
    if getattr(t, "ndim", 0) == 0:
        t = low = high = operator.index(t)
    else:
        if t.dtype.kind not in "iu" or t.shape != (n_samples,):
            raise ValueError(f"timesteps: expected integers of shape ({n_samples},), one for each sample, "
                             f"got {t.dtype} of shape {t.shape}")
        low, high = (t.min(), t.max()) if isinstance(t, np.ndarray) and t.size else (0, 0)
    if low < 0 or high >= n_train:
        raise ValueError(f"timesteps: expected 0 to {n_train - 1}, got {low if low < 0 else high}; "
                         f"this scheduler has num_train_timesteps={n_train}")
    return t if isinstance(t, int) else t.astype(np.int64, copy=False)  # of unsigned ones -t would be wrong


def check_shape(shape):
    """shape as a tuple of Python's integers; raise ValueError unless it is (N, C, H, W), all positive."""
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"expected images of shape (N, C, H, W), none of them 0, got {tuple(shape)}")
    return tuple(map(operator.index, shape))


def check_labels(labels, model, x, guidance_scale):
    """``labels`` as N integers, or what else the model embeds, on x's device, or None; raise unless they and
    guidance_scale make sense."""
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale: expected a finite number >= 0, got {guidance_scale}")
    if labels is None:
        return None
    required = getattr(model, "labels_required", False)
    if guidance_scale != 1 and required:
        raise ValueError('guidance_scale: guidance needs a network with a label for "no class", which this one lacks; '
                         "pass guidance_scale=1")
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if model.num_classes is None:
        if not required:
            raise ValueError("labels: this model has no classes; pass labels=None")
        if labels.dtype.kind not in "iuf" or labels.shape[:1] != (len(x),):
            raise ValueError(f"labels: expected {len(x)} numbers or vectors, one for each picture, "
                             f"got {labels.dtype} of shape {labels.shape}")
        return to_device(labels, x)
    if labels.dtype.kind not in "iu" or labels.shape not in ((), (len(x),)):
        raise ValueError(f"labels: expected an integer or {len(x)} integers, one for each picture, "
                         f"got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise ValueError(f"labels: expected 0 to {model.num_classes - 1}, got {labels}; "
                         f"for pictures without a class pass labels=None")
    return array_module(x).broadcast_to(to_device(labels.astype(np.int64, copy=False), x), (len(x),))
