"""Noise schedules: the forward process q and one step of the reverse process p, after DDPM and DDIM.

Symbols are the papers': x_0 a clean sample, ε ~ N(0, I), β_t the variance added at step t, α_t = 1 - β_t,
ᾱ_t = α_0 ⋯ α_t, and x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε. Steps count from t = 0 (nearly clean) to T - 1 (noise);
before t = 0 comes x_0 itself, with ᾱ = 1. Names and behaviour are those of diffusers, but for where a DDIM step
arrives (``previous_timestep``).

Tables are float64; each coefficient is cast last, so float32 samples stay float32.
"""

import math
import operator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from ..device import device_of, to_device
from ..random import standard_normal
from .checks import check_like, check_timesteps

CHOICES = {"beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
           "prediction_type": ("epsilon", "sample", "v_prediction"),
           "timestep_spacing": ("leading", "trailing", "linspace"), "variance_type": ("fixed_small", "fixed_large"),
           "solver_type": ("midpoint",), "final_sigmas_type": ("zero", "sigma_min")}


class SchedulerOutput(NamedTuple):
    """What ``step`` returns: x_{t-1}, and the estimate of x_0 that it was made from."""

    prev_sample: np.ndarray
    pred_original_sample: np.ndarray


def make_betas(schedule, n, start, end):
    """The n variances β_t, float64: linear (Ho et al. 2020, section 4), scaled_linear (linear in √β:
    Rombach et al. 2022), squaredcos_cap_v2 (ᾱ a squared cosine: Nichol & Dhariwal 2021, eq. 17) or
    sigmoid (Xu et al. 2022, GeoDiff)."""
    if schedule == "linear":
        return np.linspace(start, end, n)
    if schedule == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), n) ** 2
    if schedule == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n)))
    alpha_bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def cast(sample, *coefficients):
    """Coefficients (float64 arrays of shape (N, 1, …), or numbers) as they may multiply the sample."""
    return [c.astype(sample.dtype) if getattr(c, "ndim", 0) else float(c) for c in coefficients]


def rates(sample, alpha_bar):
    """√ᾱ_t and √(1 - ᾱ_t), the shares of x_0 and ε in x_t, as they may multiply the sample."""
    return cast(sample, alpha_bar**0.5, (1 - alpha_bar)**0.5)


@dataclass(eq=False)
class Scheduler:
    """Tables, forward process and conversions that all schedulers share.

    ``betas``, ``alphas``, ``alphas_cumprod`` (ᾱ) and ``sigmas`` hold T = num_train_timesteps float64 values.
    ``sigmas``, as in k-diffusion, is the noise of a picture on its own scale: x_t/√ᾱ_t = x_0 + σ_t ε, with
    σ_t² = (1 - ᾱ_t)/ᾱ_t = 1/SNR. ``timesteps`` are the K levels that a sampling loop visits, descending, on the host;
    ``alpha_bars`` (K + 1,) their ᾱ, and that of where the last step arrives.
    """

    num_train_timesteps: int = 1024
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    final_alpha_cumprod = 1.0  # where the last step arrives: x_0
    multistep = False  # whether a step needs the x_0 of the one before

    def __post_init__(self):
        for name, value in self.config.items():
            kind = type(getattr(type(self), name))  # the default's
            choices = (True, False) if kind is bool else CHOICES.get(name)
            if choices and value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}; got {value!r}")
            try:  # NumPy's numbers become Python's, so that JSON can hold ``config``
                setattr(self, name, operator.index(value) if kind is int else kind(value))
            except (TypeError, ValueError):
                raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}") from None
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps: expected an int >= 1, got {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"expected 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}")
        if not self.clip_sample_range > 0:
            raise ValueError(f"clip_sample_range: expected a number > 0, got {self.clip_sample_range}")
        self.betas = make_betas(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(self.alphas)
        if self.alphas_cumprod[-1] < 1e-300:  # σ would be infinite
            raise ValueError(f"beta_end: nothing of x_0 is left after {self.num_train_timesteps} such steps, got "
                             f"{self.beta_end}")
        self.sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        self.num_inference_steps = None
        self._alphas_cumprod_on = {}  # device -> the table there, for levels t that lie there
        self.timesteps = np.arange(self.num_train_timesteps)[::-1].copy()
        self.alpha_bars = self._alpha_bars_of(self.timesteps)

    @property
    def config(self):
        """The constructor's arguments as a dict."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_config(cls, config):
        """A scheduler of this class from another's ``config``; what only the other class has is left out."""
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    def set_timesteps(self, num_inference_steps=None, timesteps=None):
        """Choose the levels that a sampling loop visits.

        Either ``num_inference_steps`` of them (1 to T), spaced by ``timestep_spacing`` (Lin et al. 2023,
        table 2): leading t = ⌊T/n⌋ i + steps_offset, linspace from 0 to T - 1, trailing down from T - 1;
        or your own ``timesteps``, strictly descending.
        """
        n, n_train = num_inference_steps, self.num_train_timesteps
        if (n is None) == (timesteps is None):
            raise ValueError("set_timesteps: expected either num_inference_steps or timesteps")
        if n is not None:
            n = operator.index(n)
            if not 1 <= n <= n_train:
                raise ValueError(f"num_inference_steps: expected 1 to {n_train}, got {n}")
            self.timesteps, self.alpha_bars = self.trajectory(n_train - 1, n)
        else:
            timesteps = check_timesteps(np.array(timesteps), len(timesteps), n_train)
            if len(timesteps) == 0 or (np.diff(timesteps) >= 0).any():
                raise ValueError(f"timesteps: expected strictly descending levels, got {timesteps}")
            self.timesteps, self.alpha_bars = timesteps, self._alpha_bars_of(timesteps)
        self.num_inference_steps = n

    def trajectory(self, start, n):
        """``timesteps`` and ``alpha_bars`` of n steps down from level ``start``, or of as many as it has levels."""
        levels = start + 1
        n = min(n, levels)
        if self.timestep_spacing == "leading":
            timesteps = np.arange(n)[::-1] * (levels // n) + self.steps_offset
        elif self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, start, n).round()[::-1].astype(np.int64)
        else:  # [:n]: rounding can let arange yield one value too many (T = 1024, n = 49)
            timesteps = np.arange(levels, 0, -levels / n).round()[:n].astype(np.int64) - 1
        timesteps = check_timesteps(timesteps, n, self.num_train_timesteps)  # which an offset may leave
        return timesteps, self._alpha_bars_of(timesteps)

    def _alpha_bars_of(self, timesteps):
        return np.append(self.alphas_cumprod[timesteps], self.final_alpha_cumprod)

    def previous_timestep(self, t):
        """The level that a step from t arrives at: the next of ``timesteps``, or -1 (x_0) after the last.

        diffusers' DDIM steps to t - ⌊T/n⌋ instead, where the next step may not begin: of 1000 levels, linspace in 10
        steps, from 999 to 899, and on from 888. Both agree for leading spacing, and for trailing when n divides T.
        """
        return int(np.append(self.timesteps, -1)[self._step_index(t) + 1])

    def _step_index(self, t):
        """Where in ``timesteps`` the level t is."""
        if np.ndim(t):
            raise TypeError(f"expected one integer timestep for the whole batch, got {t!r}")
        t = check_timesteps(t, 1, self.num_train_timesteps)
        index = np.flatnonzero(self.timesteps == t)
        if len(index) == 0:
            raise ValueError(f"timestep {t} is not in scheduler.timesteps; choose them with set_timesteps")
        return int(index[0])

    def sigma_to_t(self, sigma):
        """The level t whose σ_t is nearest to ``sigma``, by their ratio: the inverse of ``sigmas[t]``.

        sigma: standard deviation of the noise in x_0 + σ ε, in units of x_0: a number, or (N,) of them; less than
        sigmas[0] is level 0. Returns an int, or (N,) int64. Raises ValueError for σ ≤ 0, and above sigmas[-1].
        """
        sigma = np.asarray(sigma, dtype=np.float64)
        wrong = sigma[~((sigma > 0) & (sigma <= self.sigmas[-1]))]
        if wrong.size:
            raise ValueError(f"sigma: expected the noise's standard deviation, above 0 and at most "
                             f"{self.sigmas[-1]:.4g} (this schedule's last level), got {wrong[0]:.4g}")
        borders = np.sqrt(self.sigmas[1:] * self.sigmas[:-1])  # σ_t grows with t
        t = np.searchsorted(borders, sigma)
        return int(t) if t.ndim == 0 else t

    def _alpha_bar(self, t, sample):
        """ᾱ_t: a float for one t, an array (N, 1, …) on the sample's device for t of shape (N,)."""
        t = check_timesteps(t, len(sample), self.num_train_timesteps)
        if isinstance(t, int):
            return float(self.alphas_cumprod[t])
        if device_of(t) not in self._alphas_cumprod_on:
            self._alphas_cumprod_on[device_of(t)] = to_device(self.alphas_cumprod, t)
        table = self._alphas_cumprod_on[device_of(t)]
        return to_device(table[t].reshape((-1,) + (1,) * (sample.ndim - 1)), sample)

    def add_noise(self, original_samples, noise, timesteps):
        """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4). ``timesteps``: an int or (N,) integers."""
        check_like(noise, "noise", original_samples)
        a, b = rates(noise, self._alpha_bar(timesteps, original_samples))
        return a * original_samples + b * noise

    def get_velocity(self, sample, noise, timesteps):
        """v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022): what a ``v_prediction`` model learns."""
        check_like(noise, "noise", sample)
        a, b = rates(sample, self._alpha_bar(timesteps, sample))
        return a * noise - b * sample

    def predict_original_sample(self, model_output, timestep, sample):
        """The model's estimate of x_0 at x_t = ``sample``, clipped if ``clip_sample``; timestep: an int or (N,)."""
        check_like(model_output, "model_output", sample)
        return self._estimates(model_output, sample, self._alpha_bar(timestep, sample))[0]

    def _estimates(self, output, x_t, alpha_bar):
        """The model's x_0, clipped if ``clip_sample``, and its ε, which never is (Song et al. 2021, eq. 12).

        epsilon: x_0 = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t (Ho et al. 2020, eq. 15). v_prediction: x_0 = √ᾱ_t x_t - √(1 - ᾱ_t) v
        and ε = √ᾱ_t v + √(1 - ᾱ_t) x_t (Salimans & Ho 2022). sample: x_0 itself.
        """
        a, b = rates(x_t, alpha_bar)
        if self.prediction_type == "epsilon":
            x0, epsilon = (x_t - b * output) / a, output
        elif self.prediction_type == "v_prediction":
            x0, epsilon = a * x_t - b * output, a * output + b * x_t
        else:
            x0, epsilon = output, (x_t - a * output) / b
        return x0.clip(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x0, epsilon

    def step(self, model_output, timestep, sample, *, generator=None, noise=None, **options):
        """One step x_t -> x_{t-1} from one level t for the whole batch, with t - 1 meaning ``previous_timestep``.

        The formula is ``reverse_step``'s, to which ``options`` go. ``noise``: z, or None to draw it from ``generator``
        (None: the library's); a scheduler that is not ``stochastic`` uses none, nor does a step from t = 0. Returns a
        SchedulerOutput.
        """
        check_like(model_output, "model_output", sample)
        k = self._step_index(timestep)
        if not self.stochastic or timestep == 0:
            noise = None
        elif noise is None:
            noise = standard_normal(sample.shape, sample.dtype, generator, device_of(sample))
        else:
            check_like(noise, "noise", sample)
        return self.reverse_step(model_output, sample, *self.alpha_bars[k:k + 2].tolist(), noise, **options)


@dataclass(eq=False)
class DDPMScheduler(Scheduler):
    """Ancestral sampling: every step draws x_{t-1} from the Gaussian p(x_{t-1} | x_t) (Ho et al. 2020).

    num_train_timesteps: T. beta_schedule: linear, scaled_linear or sigmoid (from beta_start to beta_end),
    or squaredcos_cap_v2. prediction_type: what the model returns, epsilon, sample (x_0) or v_prediction.
    clip_sample: clip estimates of x_0 to ±clip_sample_range. timestep_spacing (leading, trailing,
    linspace) and steps_offset: see set_timesteps. variance_type: fixed_small, the posterior's β̃_t
    (best for data that are one point), or fixed_large, β_t (best for Gaussian data; Ho et al., section 3.2).
    """

    variance_type: str = "fixed_small"

    stochastic = True

    def reverse_step(self, model_output, sample, alpha_bar, alpha_bar_prev, noise=None):
        """x_{t-1} from x_t = ``sample`` (Ho et al. 2020, eq. 7, 11):

        x_{t-1} = √ᾱ_{t-1} β_t / (1 - ᾱ_t) x_0 + √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) x_t + σ_t z
        σ_t² = β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t (fixed_small) or β_t (fixed_large)

        with the model's x_0, α_t = ᾱ_t / ᾱ_{t-1} and β_t = 1 - α_t. The ᾱ are numbers or (N, 1, …), z is ``noise``;
        None adds none. (As in diffusers, a loop that ends above t = 0 still adds fixed_large's in its last step.)
        """
        alpha = alpha_bar / alpha_bar_prev
        beta = 1 - alpha
        shrink = (1 - alpha_bar_prev) / (1 - alpha_bar)
        variance = shrink * beta if self.variance_type == "fixed_small" else beta
        of_x0, of_sample, sigma = cast(sample, alpha_bar_prev**0.5 * beta / (1 - alpha_bar), alpha**0.5 * shrink,
                                       variance**0.5)
        x0, _ = self._estimates(model_output, sample, alpha_bar)
        prev = of_x0 * x0 + of_sample * sample
        return SchedulerOutput(prev if noise is None else prev + sigma * noise, x0)


@dataclass(eq=False)
class DDIMScheduler(Scheduler):
    """Implicit sampling (Song et al. 2021): the same model, far fewer steps.

    eta: η from 0 (no noise: the same start always gives the same picture) to 1 (DDPM's posterior noise).
    set_alpha_to_one: the last step arrives at x_0 (ᾱ = 1); otherwise at level 0. The other arguments are
    DDPMScheduler's.
    """

    eta: float = 0.0
    set_alpha_to_one: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: expected 0 (deterministic) to 1 (DDPM's noise), got {self.eta}")

    @property
    def final_alpha_cumprod(self):
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    stochastic = property(lambda self: self.eta > 0)

    def step(self, model_output, timestep, sample, *, use_clipped_model_output=False, generator=None, noise=None):
        """As ``DDPMScheduler.step``; ``use_clipped_model_output``: see ``reverse_step`` (False as in diffusers)."""
        return super().step(model_output, timestep, sample, generator=generator, noise=noise,
                            use_clipped_model_output=use_clipped_model_output)

    def reverse_step(self, model_output, sample, alpha_bar, alpha_bar_prev, noise=None, use_clipped_model_output=True):
        """x_{t-1} from x_t = ``sample`` (Song et al. 2021, eq. 12, 16):

        x_{t-1} = √ᾱ_{t-1} x_0 + √(1 - ᾱ_{t-1} - σ_t²) ε + σ_t z
        σ_t = η √((1 - ᾱ_{t-1}) / (1 - ᾱ_t)) √(1 - ᾱ_t / ᾱ_{t-1})

        with the model's x_0, clipped, and ε: as predicted, or, with ``use_clipped_model_output``, what the clipped
        x_0 leaves of the sample, (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t). Without that, steps from nearly pure noise, where
        almost every x_0 is clipped, drift off, and under guidance end in scribble. The ᾱ are numbers or (N, 1, …),
        z is ``noise``; None adds none.
        """
        variance = self.eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        rest = 1 - alpha_bar_prev - variance
        direction = (rest * (rest > 0))**0.5  # rounding can leave -1e-17
        a_prev, direction, sigma = cast(sample, alpha_bar_prev**0.5, direction, variance**0.5)
        x0, epsilon = self._estimates(model_output, sample, alpha_bar)
        if use_clipped_model_output:
            a, b = rates(sample, alpha_bar)
            epsilon = (sample - a * x0) / b
        prev = a_prev * x0 + direction * epsilon
        return SchedulerOutput(prev if noise is None else prev + sigma * noise, x0)
