"""The reverse process as a whole: pictures from noise (``generate``), or from noisy pictures (``denoise``).

Both take an optional class for each picture and classifier-free guidance (Ho & Salimans 2022), and both
leave the model's mode, the scheduler's timesteps and their inputs as they were.
"""

import copy
import functools
import math
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from ..backend import array_module, beside, to_device
from ..tensor import Tensor, no_grad
from .checks import check_sample, check_timesteps
from .schedulers import DDIMScheduler, DDPMScheduler, draw_noise, trailing_timesteps

__all__ = ["denoise", "generate"]


def generate(model, scheduler, shape, labels=None, guidance_scale=1.0, num_inference_steps=None, *,
             dtype=np.float32, generator=None, progress=False):
    """Draw pictures: x_T ~ N(0, I), then ``scheduler.step`` down to x_0 (Ho et al. 2020, algorithm 2).

    Args:
        model: called as ``model(x, t, labels)`` with x of shape (N, C, H, W), t and labels (N,).
        scheduler: a DDPMScheduler or DDIMScheduler.
        shape: (N, C, H, W).
        labels: one class for all, (N,) classes in 0 … model.num_classes - 1, or None: no condition.
        guidance_scale: s in  ε = ε(x, ∅) + s (ε(x, c) - ε(x, ∅)).  s = 0 ignores the labels, s = 1 is the
            conditional model as it is (one pass instead of two), s > 1 trades variety for pictures more
            typical of their class. Ho & Salimans' w (eq. 6) is s - 1. Without labels s does nothing.
            x_0 and v are affine in ε, so models that predict those are guided alike.
        num_inference_steps: passed to ``set_timesteps`` of a copy; None visits ``scheduler.timesteps``.
        dtype: of the pictures; the model's.
        generator: random generator; None takes the library's (see ``manual_seed``).
        progress: show a progress bar.

    Returns an array of the given shape on the model's device (``npdiffusion.to_device(x, "cpu")`` brings it back),
    x_0 as the last step left it (within ±clip_sample_range if the scheduler clips and adds no noise at the end).
    """
    check_shape(shape)
    scheduler = copy.copy(scheduler)  # the caller's keeps its timesteps
    if num_inference_steps is not None:
        scheduler.set_timesteps(num_inference_steps)
    x = draw_noise(tuple(shape), dtype, generator, getattr(model, "device", "cpu"))
    labels = check_labels(labels, model, x, guidance_scale)
    return reverse(model, scheduler, x, labels, guidance_scale, generator, progress).prev_sample


def on_the_models_device(denoise):
    """``denoise`` for pictures on any device: they are moved to the model's, and the result back."""
    @functools.wraps(denoise)
    def moved(model, scheduler, noisy, *args, **options):
        return beside(denoise(model, scheduler, to_device(noisy, getattr(model, "device", "cpu")), *args, **options),
                      noisy)
    return moved


@on_the_models_device
def denoise(model, scheduler, noisy, t, method="one-shot", num_inference_steps=None, labels=None,
            guidance_scale=1.0, *, generator=None, progress=False):
    """Estimate x_0 from x_t = ``noisy``: the reverse process, started at level t of the input.

    ``noisy`` is on the scheduler's scale, as ``add_noise`` makes it: √ᾱ_t x_0 + √(1 - ᾱ_t) ε.

    ========== ======================================== =====================================================
    method     computes                                 good for
    ========== ======================================== =====================================================
    one-shot   the model's x_0 (Ho et al. 2020, eq. 15) lowest squared error: the posterior mean E[x_0 | x_t];
                                                        one pass; smooth where the noise hides the detail
    ddim       about 20 DDIM steps                      sharper; deterministic (unless the scheduler is a
               (Song et al. 2021, eq. 12)               DDIMScheduler with η > 0); a middle way
    ancestral  all t + 1 DDPM steps                     most natural: a sample of p(x_0 | x_t), plausible
               (Ho et al. 2020, algorithm 2)            detail, about twice the squared error of one-shot
    ========== ======================================== =====================================================

    Args:
        model, labels, guidance_scale, generator, progress: as for ``generate``.
        scheduler: a DDPMScheduler or DDIMScheduler; ``method`` decides how to step, so either will do.
        noisy: (N, C, H, W), float32 or float64, finite.
        t: noise level 0 … T - 1, or (N,) integers. one-shot takes different levels in one pass; the
            other methods run pictures of equal level together.
        num_inference_steps: evenly spaced levels from t down; None for the number in the table.

    Returns the estimate, an array like ``noisy`` and on its device, clipped to [-1, 1].
    """
    check_sample(noisy, "noisy")
    check_shape(noisy.shape)
    xp = array_module(noisy)
    if not xp.isfinite(noisy).all():
        raise ValueError("noisy: expected finite values, got NaN or infinity; clean the images first")
    t = check_timesteps(t, len(noisy), scheduler.num_train_timesteps)
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: expected at least 1, got {num_inference_steps}")
    labels = check_labels(labels, model, noisy, guidance_scale)
    if method == "one-shot":
        with evaluating(model):
            output = predict(model, noisy, t, labels, guidance_scale)
        return scheduler.predict_original_sample(output, t, noisy).clip(-1.0, 1.0)
    if method not in ("ddim", "ancestral"):
        raise ValueError(f"method: expected 'one-shot', 'ddim' or 'ancestral', got {method!r}")

    kind, default_steps = (DDIMScheduler, 20) if method == "ddim" else (DDPMScheduler, math.inf)
    stepper = kind.from_config(scheduler.config)
    result = xp.empty_like(noisy)
    levels = np.full(len(noisy), t) if isinstance(t, int) else to_device(t, "cpu")
    for level in np.unique(levels).tolist():  # on the host before the loop: no step waits for a device
        steps = min(num_inference_steps or default_steps, level + 1)
        stepper.set_timesteps(timesteps=trailing_timesteps(level + 1, steps))
        chosen = beside(np.flatnonzero(levels == level), noisy)
        some_labels = labels if labels is None else labels[chosen]
        out = reverse(model, stepper, noisy[chosen], some_labels, guidance_scale, generator, progress)
        # x_0 of the last step, not x_{-1}: the two differ only by noise added after the last pass
        result[chosen] = out.pred_original_sample.clip(-1.0, 1.0)
    return result


def reverse(model, scheduler, x, labels, guidance_scale, generator, progress):
    """Step x down through ``scheduler.timesteps``; returns the last SchedulerOutput."""
    timesteps = scheduler.timesteps.tolist()
    if progress:
        timesteps = tqdm(timesteps)
    options = {"use_clipped_model_output": True} if isinstance(scheduler, DDIMScheduler) else {}
    with evaluating(model):
        for t in timesteps:
            out = scheduler.step(predict(model, x, t, labels, guidance_scale), t, x, generator=generator, **options)
            x = out.prev_sample
    return out


def predict(model, x, t, labels, guidance_scale):
    """The model's output at level t (an int or (N,) integers), guided (see ``generate``).

    Guidance needs the model with and without labels: both halves go through it as one batch of 2 N.
    """
    xp, n = array_module(x), len(x)
    t = xp.full(n, t, dtype=np.int64) if isinstance(t, int) else beside(t, x)
    with no_grad():
        if labels is None or guidance_scale == 1:
            return model(Tensor(x), t, labels).data
        no_label = xp.full_like(labels, model.num_classes)
        twice = Tensor(xp.concatenate([x, x]))
        output = model(twice, xp.concatenate([t, t]), xp.concatenate([labels, no_label])).data
    conditional, unconditional = output[:n], output[n:]
    return unconditional + guidance_scale * (conditional - unconditional)


@contextmanager
def evaluating(model):
    """The model in eval mode, then back in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_shape(shape):
    """Raise ValueError unless shape is (N, C, H, W), all positive."""
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"expected images of shape (N, C, H, W), none of them 0, got {tuple(shape)}")


def check_labels(labels, model, x, guidance_scale):
    """``labels`` as N integers beside x, or None; raise unless they and guidance_scale make sense."""
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale: expected a finite number >= 0, got {guidance_scale}")
    if labels is None:
        return None
    if model.num_classes is None:
        raise ValueError("labels: this model has no classes; pass labels=None")
    labels = np.asarray(labels) if isinstance(labels, (int, list, tuple)) else labels
    if labels.dtype.kind not in "iu" or labels.shape not in ((), (len(x),)):
        raise ValueError(f"labels: expected an integer or {len(x)} integers, one for each picture, "
                         f"got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise ValueError(f"labels: expected 0 to {model.num_classes - 1}, got {labels}; "
                         f"for pictures without a class pass labels=None")
    return array_module(x).broadcast_to(beside(labels.astype(np.int64, copy=False), x), (len(x),))
