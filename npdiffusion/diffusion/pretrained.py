"""The noise schedule that a checkpoint of diffusers was trained with."""

import math

from ..config import IGNORED, find_file, read_config
from .multistep import DPMSolverMultistepScheduler
from .schedulers import CHOICES, DDIMScheduler, DDPMScheduler

COMMON = {  # key: (diffusers' default, what is supported), see config.py; what only other classes have is ignored
    "num_train_timesteps": (1000, int), "beta_schedule": ("linear", CHOICES["beta_schedule"]),
    "beta_start": (0.0001, float), "beta_end": (0.02, float), "trained_betas": (None, None),
    "prediction_type": ("epsilon", CHOICES["prediction_type"]), "predict_epsilon": (True, True),
    "clip_sample": (True, bool), "clip_sample_range": (1.0, float),
    "timestep_spacing": ("leading", CHOICES["timestep_spacing"]), "steps_offset": (0, (0, int)),
    "rescale_betas_zero_snr": (False, False), "thresholding": (False, False),
    **dict.fromkeys("dynamic_thresholding_ratio sample_max_value tensor_format timestep_values variance_type "
                    "set_alpha_to_one skip_prk_steps flow_shift time_shift_type".split(), IGNORED)}
DDPM = COMMON | {"variance_type": ("fixed_small", CHOICES["variance_type"])}
DPM = COMMON | {
    "algorithm_type": ("dpmsolver++", "dpmsolver++"), "solver_type": ("midpoint", CHOICES["solver_type"]),
    "solver_order": (2, (1, 2)), "lower_order_final": (True, bool),
    "use_karras_sigmas": (False, bool), "use_lu_lambdas": (False, bool),
    **dict.fromkeys("euler_at_final use_exponential_sigmas use_beta_sigmas use_flow_sigmas "
                    "use_dynamic_shifting".split(), (False, False)),
    "final_sigmas_type": ("zero", CHOICES["final_sigmas_type"]), "lambda_min_clipped": (-math.inf, -math.inf),
    "timestep_spacing": ("linspace", CHOICES["timestep_spacing"]),
    "thresholding": (False, bool), "sample_max_value": (1.0, (1, 1.0)),  # which is clipping; these two do nothing here:
    "clip_sample": IGNORED, "clip_sample_range": IGNORED,
    "variance_type": (None, (None, *CHOICES["variance_type"]))}  # learned ones are a second half of the output
SCHEDULERS = {  # diffusers' class: ours, and what its file may hold
    "DDPMScheduler": (DDPMScheduler, DDPM),
    "GaussianDDPMScheduler": (DDPMScheduler, DDPM | {"timesteps": (None, (None, int))}),  # of early 2022
    "DDIMScheduler": (DDIMScheduler, COMMON | {"set_alpha_to_one": (True, bool)}),
    "DPMSolverMultistepScheduler": (DPMSolverMultistepScheduler, DPM)}


def scheduler_from_pretrained(directory):
    """The scheduler in a directory that diffusers wrote, or in its ``scheduler``: scheduler_config.json.

    Another class of ours walks the same schedule: DDIMScheduler.from_config(scheduler.config). Raises
    FileNotFoundError if there is no such file, ValueError for what is damaged or not supported.
    """
    path = find_file(directory, "scheduler", "scheduler_config.json")
    name, config = read_config(path, {name: table for name, (_, table) in SCHEDULERS.items()})
    config["num_train_timesteps"] = config.get("timesteps") or config["num_train_timesteps"]
    config.setdefault("clip_sample", config["thresholding"])
    try:
        return SCHEDULERS[name][0].from_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
