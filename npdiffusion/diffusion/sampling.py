"""The reverse process as a whole: pictures from noise (``generate``), or from noisy pictures (``denoise``).

Both take an optional class for each picture and classifier-free guidance (Ho & Salimans 2022), and both
leave the model's mode, the scheduler's timesteps and their inputs as they were.
"""

import copy
import operator

import numpy as np
from tqdm import tqdm

from .. import functional as F
from ..cuda_graph import replayed
from ..device import array_module, device_of, to_device
from ..distributed import all_gather, over_ranks, share
from ..random import standard_normal
from ..tensor import Tensor, no_grad
from .checks import check_labels, check_like, check_sample, check_shape, check_timesteps
from .multistep import DPMSolverMultistepScheduler
from .schedulers import DDIMScheduler, DDPMScheduler

# Of denoise: the scheduler, and in how many steps (None: as many as there are levels)
METHODS = {"one-shot": (None, 1), "dpm": (DPMSolverMultistepScheduler, 8), "ddim": (DDIMScheduler, 20),
           "ancestral": (DDPMScheduler, None)}


def generate(model, scheduler, shape, labels=None, guidance_scale=1.0, num_inference_steps=None, *,
             dtype=np.float32, generator=None, progress=False):
    """Draw pictures: x_T ~ N(0, I), then ``scheduler.step`` down to x_0 (Ho et al. 2020, algorithm 2).

    Args:
        model: a Module, called as ``model(x, t, labels)`` with x of shape (N, C, H, W), t and labels (N,). On a GPU
            the passes of ``npdiffusion.captured(model)``, with the scheduler's steps, are replayed as a CUDA graph;
            keep it for later calls.
        scheduler: a DDPMScheduler, DDIMScheduler, or one of ``multistep.py``.
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
    x = standard_normal(check_shape(shape), dtype, generator, model.device)
    guidance_scale = float(guidance_scale)  # NumPy's float64 would make float64 of all
    labels = check_labels(labels, model, x, guidance_scale)
    walk = copy.copy(scheduler)  # the caller's keeps its timesteps
    if num_inference_steps is not None:
        walk.set_timesteps(num_inference_steps)
    paths = [(walk.timesteps, walk.alpha_bars)], [len(x)]
    return all_gather(reverse(model, scheduler, x, *paths, labels, guidance_scale, generator, progress)[0], x)


def denoise(model, scheduler, noisy, t=None, method="one-shot", num_inference_steps=None, labels=None,
            guidance_scale=1.0, *, sigma=None, noise_level=None, generator=None, progress=False):
    """Estimate x_0 from noisy pictures: the reverse process, started at the level of their noise.

    The level, one for all pictures or one for each, is known in one of three ways: ``t``, ``sigma``, ``noise_level``.

    Args:
        model, labels, guidance_scale, generator, progress: as for ``generate``.
        scheduler: of any kind; ``method`` decides how to step.
        noisy: (N, C, H, W), float32 or float64, finite.
        t: noise level 0 … T - 1, or (N,) integers: ``noisy`` is x_t as ``add_noise`` makes it, √ᾱ_t x_0 + √(1 - ᾱ_t) ε.
        method: "one-shot", the model's x_0 (Ho et al. 2020, eq. 15), has the lowest squared error: the posterior mean
            E[x_0 | x_t]; one pass; smooth where the noise hides the detail. "dpm", 8 steps of DPM-Solver++ (Lu et al.
            2022), is a middle way: sharper; deterministic. "ddim", 20 DDIM steps (Song et al. 2021, eq. 12), is the
            same way, walked slowly (and at random if the scheduler is a DDIMScheduler with η > 0). "ancestral", all
            t + 1 DDPM steps (Ho et al. 2020, algorithm 2), is most natural: a sample of p(x_0 | x_t), plausible detail,
            about twice the squared error of one-shot.
        num_inference_steps: levels from t down, evenly spaced, for "dpm" in log-SNR (or in σ^(1/7), if the scheduler
            has use_karras_sigmas); None for as many as the method says.
        sigma: standard deviation of the noise in units of x_0, or (N,) of them: ``noisy`` is x_0 + σ ε, as a camera
            sees it, and x_t = √ᾱ_t noisy, where σ² = (1 - ᾱ_t)/ᾱ_t (``scheduler.sigma_to_t``).
        noise_level: a ``NoiseLevelNet`` trained on such pictures, as pretrained("mnist-noise-level") is on digits:
            it estimates t of each x_t. If you have x_0 + σ ε and don't know σ, give ``sigma=noise_level.sigma(noisy)``.

    Returns the estimate, an array like ``noisy`` and on its device, on the scale of x_0, clipped to [-1, 1].
    """
    check_sample(noisy, "noisy")
    check_shape(noisy.shape)
    place, x = device_of(noisy), to_device(noisy, model.device)
    if not array_module(x).isfinite(x).all():
        raise ValueError("noisy: expected finite values, got NaN or infinity; clean the images first")
    if num_inference_steps is not None and operator.index(num_inference_steps) < 1:
        raise ValueError(f"num_inference_steps: expected at least 1, got {num_inference_steps}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
    guidance_scale = float(guidance_scale)
    labels = check_labels(labels, model, x, guidance_scale)
    if sum(known is not None for known in (t, sigma, noise_level)) != 1:
        raise ValueError("expected one of t= (for pictures on the scheduler's scale), sigma= (on their own), or "
                         "noise_level=, a NoiseLevelNet that estimates the level: pretrained('mnist-noise-level') for "
                         "digits")
    if t is not None:
        t = check_timesteps(t, len(x), scheduler.num_train_timesteps)
    elif noise_level is not None:
        t = noise_level.timesteps(x, scheduler)
    else:
        if np.shape(sigma) not in ((), (len(x),)):
            raise ValueError(f"sigma: expected a number or {len(x)}, one for each picture, got shape {np.shape(sigma)}")
        t = scheduler.sigma_to_t(sigma)
        shrink = np.sqrt(scheduler.alphas_cumprod[t]).reshape(-1, 1, 1, 1).astype(x.dtype)  # x_t = √ᾱ_t (x_0 + σ ε)
        x = to_device(shrink, x) * x
    if method == "one-shot":
        def estimate(x, t, labels):
            return scheduler.predict_original_sample(predict(model, x, t, labels, guidance_scale), t, x)

        with model.evaluating():
            x0 = over_ranks(estimate, x, t, labels)
    else:
        kind, most = METHODS[method]
        lu = not scheduler.config.get("use_karras_sigmas", False)
        walk = kind.from_config(scheduler.config | {"timestep_spacing": "trailing", "use_lu_lambdas": lu})
        levels = np.broadcast_to(t if isinstance(t, int) else to_device(t, "cpu"), len(x))
        order = np.argsort(-levels, kind="stable")
        there, back = to_device(order, x), to_device(np.argsort(order), x)
        starts, counts = np.unique(levels, return_counts=True)
        trajectories = [walk.trajectory(t, num_inference_steps or most or t + 1) for t in starts[::-1].tolist()]
        # x_0 of the last step is the result, not x_{-1}: the two differ only by noise added after the last pass
        _, x0 = reverse(model, walk, x[there], trajectories, counts[::-1], None if labels is None else labels[there],
                        guidance_scale, generator, progress)
        x0 = all_gather(x0, x)[back]
    return to_device(x0.clip(-1.0, 1.0), place)


def reverse(model, scheduler, x, trajectories, counts, labels, guidance_scale, generator, progress):
    """The reverse process: Ho et al. 2020, algorithm 2, lines 2 to 5, with the step of any scheduler.

    x: (N, C, H, W). trajectories: what ``scheduler.trajectory`` gives, the longest first; the first counts[0] pictures
    take the first of them, and so on. All end together; those with fewer steps wait at first, so that different levels
    cost no more than the highest one. Returns x_{t-1} and x_0 of the last step, on each rank of its share of the
    pictures.
    """
    lengths = [len(timesteps) for timesteps, _ in trajectories]
    mine, steps = share(), np.repeat(lengths, counts)

    def table(values):  # [step, picture]
        filled = [np.pad(v, (lengths[0] - n, 0), "edge") for v, n in zip(values, lengths)]
        return np.repeat(np.stack(filled, 1), counts, 1)

    def placed(values):  # of this rank's pictures, on x's device
        return to_device(np.ascontiguousarray(values[:, mine]), x)

    levels, alpha_bars = map(table, zip(*trajectories))
    t, alpha_bars = placed(levels), placed(alpha_bars[:, :, None, None, None])
    if scheduler.multistep:
        weights = placed(table([scheduler.extrapolation(*path) for path in trajectories])[:, :, None, None, None])
    x, x0, labels = x[mine].copy(), x[mine].copy(), None if labels is None else labels[mine]
    with model.evaluating():
        for k in tqdm(range(lengths[0]), disable=not progress):
            walking = steps >= lengths[0] - k
            n = int(walking[mine].sum())
            z = None  # none is added in the step from t = 0
            if scheduler.stochastic and levels[k].any():
                z = standard_normal((int(walking.sum()), *x.shape[1:]), x.dtype, generator, device_of(x))[mine]
            label = None if labels is None else labels[:n]
            if not n:
                continue
            before = (x0[:n], weights[k, :n]) if scheduler.multistep else ()
            x[:n], x0[:n] = replayed(model, one_step, scheduler, guidance_scale, x[:n], t[k, :n], alpha_bars[k, :n],
                                     alpha_bars[k + 1, :n], label, z, *before)
    return x, x0


def one_step(model, scheduler, guidance_scale, x, t, alpha_bar, alpha_bar_prev, labels, noise, *before):
    """x_t -> x_{t-1} and x_0, for pictures at levels t (N,): the network, then the scheduler's formula."""
    output = predict(model, x, t, labels, guidance_scale)
    check_like(output, "the model's output", x)
    return scheduler.reverse_step(output, x, alpha_bar, alpha_bar_prev, noise, *before)


def predict(model, x, t, labels, guidance_scale):
    """The model's output at level t (an int or (N,) integers), guided (see ``generate``), as an array."""
    with no_grad():
        return guided(model, Tensor(x), t, labels, guidance_scale).data


def guided(model, x, t, labels, guidance_scale):
    """As ``predict``, of and as a Tensor, through which gradients flow.

    Guidance needs the model with and without labels: both halves go through it as one batch of 2 N.
    """
    xp, n = array_module(x.data), len(x)
    t = xp.full(n, t, dtype=np.int64) if isinstance(t, int) else to_device(t, x.data)
    if labels is None or guidance_scale == 1:
        return model(x, t, labels)
    no_label = xp.full_like(labels, model.num_classes)
    output = model(F.cat([x, x]), xp.concatenate([t, t]), xp.concatenate([labels, no_label]))
    conditional, unconditional = output[:n], output[n:]
    return unconditional + guidance_scale * (conditional - unconditional)
