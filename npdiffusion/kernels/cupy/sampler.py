"""A step of the reverse process in one launch."""

import math

import numpy as np

from ...backend import cupy
from .build import launch_each
from .layout import channels_last, to_nchw

__all__ = ["coefficients", "sampler_step"]


def coefficients(prediction_type, alpha_bar, prev_x0, prev_x, prev_epsilon, sigma, limit=math.inf,
                 clipped_epsilon=False, guidance=1.0):
    """The 8 numbers (float64, on the host) of the step x_{t-1} = prev_x0·x_0 + prev_x·x_t + prev_epsilon·ε + σ·z.

    x_0 is the model's, clipped to ±limit; ε as predicted, or, clipped_epsilon, what the clipped x_0 leaves of x_t.
    DDPM has prev_epsilon = 0 (Ho et al. 2020, eq. 7), DDIM prev_x = 0 (Song et al. 2021, eq. 12).
    """
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    # x_0 and ε as sums of x_t and the model's output (see _Scheduler.predict_original_sample)
    x0_x, x0_o, e_x, e_o = {"epsilon": (1 / a, -b / a, 0, 1), "sample": (0, 1, 1 / b, -a / b),
                            "v_prediction": (a, -b, b, a)}[prediction_type]
    if clipped_epsilon:  # ε = (x_t − a·x_0)/b
        prev_x0, e_x, e_o = prev_x0 - prev_epsilon * a / b, 1 / b, 0
    return np.array([x0_x, x0_o, limit, prev_x0, prev_x + prev_epsilon * e_x, prev_epsilon * e_o, sigma, guidance])


def sampler_step(x, output, noise, coefficients):
    """x_{t-1} and x_0 (N, C, H, W) from x_t, the model's output, noise (or None) and ``coefficients`` on the device.

    An output of 2·N pictures is guided: the first half with labels, the second without.
    """
    x, output, noise = map(channels_last, (x, output, noise))
    prev, x0 = cupy().empty(x.shape, x.dtype), cupy().empty(x.shape, x.dtype)
    args = x, output, noise, coefficients, prev, x0, x.size, np.int32(len(output) == 2 * len(x))
    launch_each("sampler_step", "sampler", x, args)
    return to_nchw(prev), to_nchw(x0)
