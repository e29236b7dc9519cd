"""Noise schedules, the reverse process, sampling and denoising. Plain arrays in, plain arrays out."""

from .baselines import PCAWiener, posterior_mean
from .likelihood import VariationalBound, variational_bound
from .multistep import AdamsBashforthScheduler, DPMSolverMultistepScheduler
from .pretrained import scheduler_from_pretrained
from .sampling import denoise, generate
from .schedulers import DDIMScheduler, DDPMScheduler, SchedulerOutput
