"""Noise schedules, the reverse process, sampling and denoising. Plain arrays in, plain arrays out."""

from .sampling import denoise, generate
from .schedulers import DDIMScheduler, DDPMScheduler, SchedulerOutput

__all__ = ["DDIMScheduler", "DDPMScheduler", "SchedulerOutput", "denoise", "generate"]
