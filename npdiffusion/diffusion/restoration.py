"""Pictures from what was measured, y = A x_0 + σ n, A linear and n ~ N(0, I): holes, few pixels, blur, no colour.

An operator is any object with three methods, from arrays to arrays, (N, C, H, W) on one side and the shape of what was
measured on the other:

    forward(x)      A x
    pinv(y)         A⁺ y, the Moore–Penrose inverse: of all x with the least ‖A x - y‖ the shortest
    solve(r, rho)   (A Aᵀ + ρ I)⁻¹ r for a number ρ > 0
"""

import copy
import math
import operator as op

import numpy as np
from tqdm import tqdm

from ..device import array_module, device_of, to_device
from ..nn import Parameter
from ..random import standard_normal
from ..tensor import Tensor
from .checks import check_labels, check_like, check_sample, check_shape
from .sampling import guided
from .schedulers import DDIMScheduler


class Inpaint:
    """Some pixels are missing: A x = m x.

    mask: 1 or True where a pixel was measured, (H, W), or broadcasts to (C, H, W); the same for all pictures. What was
    measured has the picture's shape; what it holds where pixels are missing, even NaN, does not matter.
    """

    def __init__(self, mask):
        self.mask = np.asarray(mask).astype(bool)
        if not 2 <= self.mask.ndim <= 3 or not np.isin(mask, (0, 1)).all():
            raise ValueError("mask: expected (H, W) or (C, H, W) of bool, or of 0 (missing) and 1, got "
                             f"{np.asarray(mask).dtype} of shape {self.mask.shape}")
        if not self.mask.any():
            raise ValueError("mask: all pixels are missing; it is True where a pixel was measured")

    def forward(self, x):
        if any(mine not in (1, size) for mine, size in zip(self.mask.shape[::-1], x.shape[:0:-1])):
            raise ValueError(f"mask: shape {self.mask.shape} does not fit pictures of shape {x.shape}")
        return array_module(x).where(to_device(self.mask, x), x, 0)

    pinv = forward

    def solve(self, r, rho):  # A Aᵀ = m
        return r / (to_device(self.mask.astype(r.dtype), r) + rho)


class AveragePool:
    """Fewer pixels, each the mean of k × k (super-resolution is the way back): (N, C, H, W) to (N, C, H/k, W/k)."""

    def __init__(self, k):
        self.k = op.index(k)
        if self.k < 1:
            raise ValueError(f"k: expected an int >= 1, got {k}")

    def forward(self, x):
        n, c, h, w = x.shape
        if h % self.k or w % self.k:
            raise ValueError(f"pictures of {h} × {w} pixels have no blocks of {self.k} × {self.k}")
        return x.reshape(n, c, h // self.k, self.k, w // self.k, self.k).mean((3, 5))

    def pinv(self, y):
        return y.repeat(self.k, 2).repeat(self.k, 3)

    def solve(self, r, rho):  # A Aᵀ = I / k²
        return r / (1 / self.k**2 + rho)


class Blur:
    """Circular convolution with a kernel (h, w) of numbers, its centre at (h // 2, w // 2), on each channel.

    By FFT: A = F⁻¹ diag(K) F. Frequencies with |K| ≤ rcond · max |K| are taken as lost, K = 0: to bring them back would
    be to multiply rounding errors by 1/K.
    """

    def __init__(self, kernel, rcond=1e-3):
        self.kernel, self.rcond = np.asarray(kernel, np.float64), float(rcond)
        if self.kernel.ndim != 2 or not np.isfinite(self.kernel).all() or not self.kernel.any():
            raise ValueError(f"kernel: expected (h, w) of finite numbers, not all 0, got shape {self.kernel.shape}")
        if not 0 < self.rcond < 1:
            raise ValueError(f"rcond: expected a number above 0 and below 1, got {rcond}")

    def _filtered(self, x, gain):
        """F⁻¹ gain(K) F x."""
        (h, w), size, fft = self.kernel.shape, x.shape[2:], array_module(x).fft
        if h > size[0] or w > size[1]:
            raise ValueError(f"kernel: {h} × {w} is larger than pictures of {size[0]} × {size[1]} pixels")
        around_0 = np.roll(np.pad(self.kernel, ((0, size[0] - h), (0, size[1] - w))), (-(h // 2), -(w // 2)), (0, 1))
        k = np.fft.rfft2(around_0)
        k[abs(k) <= self.rcond * abs(k).max()] = 0
        return fft.irfft2(to_device(gain(k), x) * fft.rfft2(x), s=size).astype(x.dtype, copy=False)

    def forward(self, x):
        return self._filtered(x, lambda k: k)

    def pinv(self, y):
        return self._filtered(y, lambda k: np.divide(1, k, out=np.zeros_like(k), where=k != 0))

    def solve(self, r, rho):  # A Aᵀ = F⁻¹ diag(|K|²) F
        return self._filtered(r, lambda k: 1 / (abs(k)**2 + rho))


class Gray:
    """Grey from colours (to colourise is the way back): Σ_c w_c x_c, (N, C, H, W) to (N, 1, H, W).

    weights: of the C channels, by default those of ITU-R BT.601 for red, green and blue.
    """

    def __init__(self, weights=(0.299, 0.587, 0.114)):
        self.weights = np.asarray(weights, np.float64).reshape(-1, 1, 1)
        self.square = float((self.weights**2).sum())
        if not 0 < self.square < math.inf:
            raise ValueError(f"weights: expected finite numbers, not all 0, got {weights}")

    def forward(self, x):
        if x.shape[1] != len(self.weights):
            raise ValueError(f"expected pictures of {len(self.weights)} channels, one for each weight, got {x.shape}")
        return (x * to_device(self.weights.astype(x.dtype), x)).sum(1, keepdims=True)

    def pinv(self, y):
        if y.shape[1] != 1:
            raise ValueError(f"expected grey pictures (N, 1, H, W), got {y.shape}")
        return y * to_device((self.weights / self.square).astype(y.dtype), y)

    def solve(self, r, rho):  # A Aᵀ = ‖w‖² I
        return r / (self.square + rho)


def restore(model, scheduler, measured, operator, sigma=0.0, labels=None, guidance_scale=1.0, num_inference_steps=50, *,
            num_samples=None, weight=4.0, generator=None, progress=False):
    """Draw pictures x_0 that could have been measured as y = A x_0 + σ n: ΠGDM (Song, Vahdat, Mardani & Kautz 2023,
    "Pseudoinverse-guided diffusion models for inverse problems", ICLR, algorithm 1).

    Where p(x_0 | x_t) is taken as N(x̂_0, r_t² I), x̂_0 the network's estimate and J = ∂x̂_0/∂x_t (their eq. 7),

        ∇ log p(y | x_t) = Jᵀ Aᵀ (r_t² A Aᵀ + σ² I)⁻¹ (y - A x̂_0)      with r_t² = σ_t²/(σ_t² + 1) = 1 - ᾱ_t

    as if the data were N(0, I). (Their σ_t² is (1 - ᾱ_t)/ᾱ_t here, ``scheduler.sigmas``.) r_t² times that, g, is added
    to each step of DDIM with η = 1:

        x_{t-1} = DDIM(x_t) + √ᾱ_t g,     g = Jᵀ Aᵀ (A Aᵀ + ρ I)⁻¹ (y - A x̂_0),     ρ = σ²/r_t².

    Aᵀ (A Aᵀ + ρ I)⁻¹ r = A⁺ (r - ρ (A Aᵀ + ρ I)⁻¹ r) needs no Aᵀ; without noise it is A⁺ r. x̂_0 is clipped, if the
    scheduler clips, in y - A x̂_0, but not for J. In the end x is clipped, or, if σ = 0, made to fit (``fitted``).

    √ᾱ_t is the paper's weight, for the sake of results. That of the score, (1 - ᾱ_t)/√ᾱ_t on x̂_0, comes near the
    posterior of Gaussian data in many steps, but pictures lie on so few dimensions that r_t² is far too large for them:
    digits with a hole come out 2 to 4 dB worse. In return samples differ less than the posterior's do, and follow y too
    far if σ is as large as what is measured, the more so the more steps are taken. Here √ᾱ_t g is multiplied by
    1 + (w - 1) (1 - ᾱ_t), w = ``weight``: more than once where x_t is noise, and y - A x̂_0 shrinks slowly; once where
    J √ᾱ_t comes near I, and twice would be to overshoot.

    Args:
        model, labels, guidance_scale, generator, progress: as for ``generate``. (Captured passes are not replayed.)
        scheduler: of any kind; its levels and clipping are used.
        measured: y, (N, …) as ``operator.forward`` of N pictures gives it; float32 or float64, finite.
        operator: A, ``Inpaint``, ``AveragePool``, ``Blur``, ``Gray``, or another object with their methods.
        sigma: σ, standard deviation of the noise in y, in units of y; 0 makes A x = y.
        num_inference_steps: trailing levels. Each costs a forward and a backward pass, about three of ``generate``'s.
        num_samples: how many pictures for each measurement, as one batch. ``samples.mean(0)`` is nearer to the truth
            than any of them, ``samples.std(0)`` tells where they differ.
        weight: w ≥ 0; 1 is the paper's. With 4, digits from holes and few pixels come out 0.5 to 1.5 dB nearer to the
            truth (blurred ones do not), and samples differ less; for micrographs 2 is better.

    Returns (N, C, H, W), or with ``num_samples`` (num_samples, N, C, H, W), on the device of ``measured``.
    """
    check_sample(measured, "measured")
    check_shape(measured.shape)
    sigma, guidance_scale = float(sigma), float(guidance_scale)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma: expected the noise's standard deviation, finite and >= 0, got {sigma}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight: expected a finite number >= 0, got {weight}")
    count = 1 if num_samples is None else op.index(num_samples)
    if count < 1:
        raise ValueError(f"num_samples: expected at least 1, or None, got {num_samples}")
    y = to_device(measured, model.device)
    with np.errstate(invalid="ignore"):  # what is not finite is told below
        start = operator.pinv(y)
    if not array_module(start).isfinite(start).all():
        raise ValueError("measured: expected finite values, got NaN or infinity; for missing pixels there is Inpaint")
    y, shape = operator.forward(start), start.shape  # what no picture could give is left out
    if y.shape != measured.shape:
        raise ValueError(f"measured: expected shape {y.shape}, as the operator makes it, got {measured.shape}")
    labels = check_labels(labels, model, y, guidance_scale)
    y, labels = [None if a is None else array_module(y).concatenate([a] * count) for a in (y, labels)]
    options = {"eta": 1.0, "timestep_spacing": "trailing", "set_alpha_to_one": True}
    walk = DDIMScheduler.from_config(scheduler.config | options)
    walk.set_timesteps(num_inference_steps)
    x = standard_normal((len(y), *shape[1:]), y.dtype, generator, device_of(y))
    model = frozen(model)
    with model.evaluating():
        for k in tqdm(range(len(walk.timesteps)), disable=not progress):
            z = standard_normal(x.shape, x.dtype, generator, device_of(x))
            t, alpha_bar, alpha_bar_prev = int(walk.timesteps[k]), *walk.alpha_bars[k:k + 2].tolist()
            output, g = guidance(model, walk, x, t, y, operator, sigma, labels, guidance_scale)
            x = walk.reverse_step(output, x, alpha_bar, alpha_bar_prev, z).prev_sample
            x = x + (1 + (float(weight) - 1) * (1 - alpha_bar)) * alpha_bar**0.5 * g
    limit = walk.clip_sample_range if walk.clip_sample else math.inf
    x = x.clip(-limit, limit) if sigma else fitted(x, y, operator, limit)
    return to_device(x if num_samples is None else x.reshape(count, *shape), device_of(measured))


def guidance(model, scheduler, x, t, y, operator, sigma, labels, guidance_scale):
    """The network's output at x_t = ``x``, and g = Jᵀ Aᵀ (A Aᵀ + ρ I)⁻¹ (y - A x̂_0) of ``restore``: one backward."""
    alpha_bar, x = float(scheduler.alphas_cumprod[t]), Tensor(x, requires_grad=True)
    output = guided(model, x, t, labels, guidance_scale)
    check_like(output.data, "the model's output", x.data)
    unclipped = copy.copy(scheduler)
    unclipped.clip_sample = False
    x0, _ = unclipped._estimates(output, x, alpha_bar)
    r = y - operator.forward(scheduler.predict_original_sample(output.data, t, x.data))
    if sigma:
        rho = sigma**2 / (1 - alpha_bar)
        r = r - rho * operator.solve(r, rho)
    x0.backward(operator.pinv(r))
    return output.data, x.grad


def fitted(x, y, operator, limit, rounds=200):
    """x with A x = y, and as far as that allows within ±limit: by turns the nearest point there, and x + A⁺ (y - A x)
    (alternating projections: Bregman 1965). A x = y is last. For ``Inpaint`` one round is all."""
    for _ in range(rounds):
        x = x.clip(-limit, limit)
        x = x + operator.pinv(y - operator.forward(x))
        if abs(x).max() <= limit * (1 + 1e-6):
            break
    return x


def frozen(model):
    """A model with the same weights that asks for no gradients of them (the caller's may be in training)."""
    model = getattr(model, "_function", model)  # through a captured one no gradient flows
    return copy.deepcopy(model, {id(p): Parameter(p.data, requires_grad=False) for p in model.parameters()})
