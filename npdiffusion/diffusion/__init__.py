"""Noise schedules, the reverse process, sampling and denoising. Plain arrays in, plain arrays out."""

from .baselines import PCAWiener, posterior_mean
from .likelihood import VariationalBound, variational_bound
from .sampling import denoise, generate
from .schedulers import DDIMScheduler, DDPMScheduler, SchedulerOutput

__all__ = ["DDIMScheduler", "DDPMScheduler", "PCAWiener", "SchedulerOutput", "VariationalBound", "denoise", "generate",
           "posterior_mean", "variational_bound"]
