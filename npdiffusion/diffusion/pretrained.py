"""The noise schedule that a checkpoint of diffusers was trained with."""

from ..config import IGNORED, find, read_config
from .schedulers import CHOICES, DDIMScheduler, DDPMScheduler

COMMON = {  # key: (diffusers' default, what is supported), see config.py
    "num_train_timesteps": (1000, int), "beta_schedule": ("linear", CHOICES["beta_schedule"]),
    "beta_start": (0.0001, float), "beta_end": (0.02, float), "trained_betas": (None, None),
    "prediction_type": ("epsilon", CHOICES["prediction_type"]), "predict_epsilon": (True, True),
    "clip_sample": (True, bool), "clip_sample_range": (1.0, float),
    "timestep_spacing": ("leading", CHOICES["timestep_spacing"]), "steps_offset": (0, (0, int)),
    "rescale_betas_zero_snr": (False, False), "thresholding": (False, False), "dynamic_thresholding_ratio": IGNORED,
    "sample_max_value": IGNORED, "tensor_format": IGNORED}
DDPM = COMMON | {"variance_type": ("fixed_small", CHOICES["variance_type"])}
SCHEDULERS = {  # diffusers' class: ours, and what its file may hold
    "DDPMScheduler": (DDPMScheduler, DDPM),
    "GaussianDDPMScheduler": (DDPMScheduler, DDPM | {"timesteps": (1000, int)}),  # of early 2022
    "DDIMScheduler": (DDIMScheduler, COMMON | {"set_alpha_to_one": (True, bool)})}


def scheduler_from_pretrained(directory):
    """The scheduler in a directory that diffusers wrote, or in its ``scheduler``: scheduler_config.json.

    Another class of ours walks the same schedule: DDIMScheduler.from_config(scheduler.config). Raises
    FileNotFoundError if there is no such file, ValueError for what is damaged or not supported.
    """
    path = find(directory, "scheduler", "scheduler_config.json")
    name, config = read_config(path, {name: table for name, (_, table) in SCHEDULERS.items()})
    config["num_train_timesteps"] = config.pop("timesteps", config["num_train_timesteps"])
    try:
        return SCHEDULERS[name][0].from_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
