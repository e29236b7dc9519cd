"""Noise schedules, the reverse process, sampling, denoising and restoration. Plain arrays in, plain arrays out."""

from .baselines import PCAWiener, posterior_mean
from .likelihood import VariationalBound, variational_bound
from .multistep import AdamsBashforthScheduler, DPMSolverMultistepScheduler
from .pretrained import scheduler_from_pretrained
from .restoration import AveragePool, Blur, Gray, Inpaint, restore
from .sampling import denoise, generate
from .schedulers import DDIMScheduler, DDPMScheduler, SchedulerOutput
