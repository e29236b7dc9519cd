"""Solvers that remember: the x_0 of the step before tells where that of this step is going, and few steps are enough.

Symbols are those of ``schedulers.py``, and α = √ᾱ, σ = √(1 - ᾱ). DPM-Solver++ is as diffusers has it, but for its
clipping, which is DDPM's and DDIM's here: its "thresholding", with ``sample_max_value=1``, is the same.
"""

from dataclasses import dataclass

import numpy as np

from .checks import check_like
from .schedulers import Scheduler, SchedulerOutput, cast


class _Multistep(Scheduler):
    """A step from two estimates of x_0: this one, and the one of the step before."""

    stochastic, multistep = False, True
    _last = None  # step of the loop that ``step`` took last, and the x_0 of it

    def set_timesteps(self, num_inference_steps=None, timesteps=None):
        super().set_timesteps(num_inference_steps, timesteps)
        self._last = None

    def extrapolation(self, timesteps, alpha_bars):
        """The weight of each step (K,) of a loop, see ``reverse_step``; 0 for one of first order, as the first is."""
        raise NotImplementedError

    def step(self, model_output, timestep, sample, *, generator=None, noise=None):
        """As ``DDPMScheduler.step``, without noise; it remembers the last x_0.

        Take the steps in the order of ``timesteps``, from any of them on: ValueError for another order.
        ``set_timesteps`` begins a new loop.
        """
        check_like(model_output, "model_output", sample)
        k, x0_before = self._step_index(timestep), None
        if self._last is not None:
            k, x0_before = self._last[0] + 1, self._last[1]  # levels close to each other may be told as the same t
            if timestep != self.timesteps[k]:
                raise ValueError(f"levels out of order: after timestep {self.timesteps[k - 1]} comes "
                                 f"{self.timesteps[k]}, got {timestep}; set_timesteps begins a new loop")
            check_like(x0_before, "x_0 of the step before", sample)
        weight = float(self.extrapolation(self.timesteps, self.alpha_bars)[k])
        result = self.reverse_step(model_output, sample, *self.alpha_bars[k:k + 2].tolist(), None, x0_before, weight)
        self._last = (k, result.pred_original_sample) if k + 1 < len(self.timesteps) else None
        return result

    def reverse_step(self, model_output, sample, alpha_bar, alpha_bar_prev, noise=None, x0_before=None, weight=0.0):
        """x_s from x_t = ``sample``, s the next level: DDIM's step (Song et al. 2021, eq. 12), from another x_0.

        x_s = σ_s / σ_t x_t + (α_s - α_t σ_s / σ_t) D
        D = x_0 + weight (x_0 - x_0 before)

        D is x_0 in the middle of the step, on the line through the last two estimates: ``weight`` is h / (2 h_before),
        the step's length over twice that of the one before, see ``extrapolation``. The ᾱ and it are numbers or
        (N, 1, …); no noise is used.
        """
        shrink = ((1 - alpha_bar_prev) / (1 - alpha_bar))**0.5
        of_sample, of_x0, weight = cast(sample, shrink, alpha_bar_prev**0.5 - alpha_bar**0.5 * shrink, weight)
        x0, _ = self._estimates(model_output, sample, alpha_bar)
        extrapolated = x0 if x0_before is None else x0 + weight * (x0 - x0_before)
        return SchedulerOutput(of_sample * sample + of_x0 * extrapolated, x0)


@dataclass(eq=False)
class AdamsBashforthScheduler(_Multistep):
    """DDIM's steps from x_0 extrapolated in t, by Adams and Bashforth's method of second order: for even steps
    D = 3/2 x_0 - 1/2 x_0 before. iPNDM (Zhang & Chen 2023, arXiv:2204.13902, sec. 4) does so with ε.

    As DPM-Solver++, but the middle of a step is that of t, not of λ. There the last step, to x_0 itself, has a middle
    too, and is of second order like the others: what counts where there are few. Arguments: DDPMScheduler's.
    """

    timestep_spacing: str = "trailing"

    def extrapolation(self, timesteps, alpha_bars):
        """h / (2 h_before), with h a step's length in t, where x_0 is level -1."""
        h = -np.diff(np.append(timesteps, -1))
        return np.append(0, h[1:] / (2 * h[:-1]))


@dataclass(eq=False)
class DPMSolverMultistepScheduler(_Multistep):
    """DPM-Solver++(2M): steps of second order, from two estimates of x_0 each (Lu et al. 2022, arXiv:2211.01095).

    Let λ = log(α / σ), half the log-SNR, and x_0(λ) the model's estimate there. In the limit of many steps,
    DDIM's path from level t to s is (proposition 4.1, eq. 8)

        x_s = σ_s / σ_t x_t + σ_s ∫ e^λ x_0(λ) dλ, with λ from λ_t to λ_s.

    A step of DDIM keeps x_0(λ) as it is at t. This one lets it change as it did in the step before, and so needs a
    third of the steps.

    solver_order: 2, or 1, DDIM. final_sigmas_type: where the last step arrives, zero (x_0 itself) or sigma_min (level
    0). lower_order_final: if there are fewer than 15 steps, the last is of first order; to x_0 itself it always is.
    use_lu_lambdas: levels evenly spaced in λ; use_karras_sigmas: in σ^(1/7) (Karras et al. 2022, eq. 5); both from
    T - 1 to 0, and between levels too, where the model is told the nearest t, or, for squaredcos_cap_v2, the one
    below. Neither: timestep_spacing. solver_type: midpoint (the D of ``reverse_step``). The other arguments are
    DDPMScheduler's.
    """

    timestep_spacing: str = "linspace"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    use_karras_sigmas: bool = False
    use_lu_lambdas: bool = False
    final_sigmas_type: str = "zero"

    def __post_init__(self):
        super().__post_init__()
        if self.solver_order not in (1, 2):
            raise ValueError(f"solver_order: expected 1 or 2, got {self.solver_order}")
        if self.use_karras_sigmas and self.use_lu_lambdas:
            raise ValueError("expected use_karras_sigmas or use_lu_lambdas, got both")

    @property
    def final_alpha_cumprod(self):
        return 1.0 if self.final_sigmas_type == "zero" else float(self.alphas_cumprod[0])

    def set_timesteps(self, num_inference_steps=None, timesteps=None):
        """As ``DDPMScheduler.set_timesteps``, but that linspace and leading choose the first n of n + 1 levels."""
        if timesteps is not None and (self.use_karras_sigmas or self.use_lu_lambdas):
            raise ValueError("timesteps: a scheduler with use_karras_sigmas or use_lu_lambdas chooses its own")
        super().set_timesteps(num_inference_steps, timesteps)

    def trajectory(self, start, n):
        n = min(n, start + 1)
        high, low, ramp = self.sigmas[start], self.sigmas[0], np.linspace(0, 1, n)
        if self.use_karras_sigmas:
            sigmas = (high**(1 / 7) + ramp * (low**(1 / 7) - high**(1 / 7)))**7
        elif self.use_lu_lambdas:
            sigmas = high * (low / high)**ramp
        else:
            timesteps, _ = super().trajectory(start, n if self.timestep_spacing == "trailing" else n + 1)
            return timesteps[:n], self._alpha_bars_of(timesteps[:n])
        t = np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(self.num_train_timesteps))
        t = np.floor(t + 1e-9) if self.beta_schedule == "squaredcos_cap_v2" else np.round(t)  # as diffusers does
        return t.astype(np.int64), np.append(1 / (1 + sigmas**2), self.final_alpha_cumprod)

    def extrapolation(self, timesteps, alpha_bars):
        """h / (2 h_before), with h a step's length in λ."""
        with np.errstate(divide="ignore"):  # x_0 is infinitely far
            h = np.diff(np.log(alpha_bars / (1 - alpha_bars)) / 2)
        weights = np.zeros(len(h))
        if self.solver_order == 2:
            weights[1:] = h[1:] / (2 * h[:-1])
        if self.final_sigmas_type == "zero" or self.lower_order_final and len(h) < 15:
            weights[-1] = 0
        return weights
