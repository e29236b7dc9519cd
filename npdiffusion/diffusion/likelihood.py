"""How many nats a picture costs under a diffusion model: the variational bound of Ho et al. 2020, eq. 5.

−log p(x_0) ≤ L = decoder + diffusion + prior, with levels t from 0 (nearly clean) to T − 1 (noise), x_0 the picture:

decoder    −log p(x_0 | x_t), t = 0, over the 256 grey values (eq. 13)
diffusion  Σ_t KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), t = 1 … T − 1
prior      KL(q(x_t | x_0) ‖ N(0, I)), t = T − 1: what the last level still shows of the picture
"""

import math
from typing import NamedTuple

import numpy as np

from ..device import to_device
from ..distributed import over_ranks
from ..random import default_generator, standard_normal
from .checks import check_labels, check_sample
from .sampling import predict

HALF_STEP = 1 / 255  # between two grey values in [−1, 1]


class VariationalBound(NamedTuple):
    """The bound in nats, one row a picture; column k of diffusion estimates the sum of edges[k] ≤ t < edges[k + 1].

    decoder, prior: (N,). diffusion: (N, K). edges: K + 1 integers from 1 to T.
    """

    decoder: np.ndarray
    diffusion: np.ndarray
    prior: np.ndarray
    edges: np.ndarray

    @property
    def total(self):
        """(N,) nats; over D log 2 these are bits per dimension."""
        return self.decoder + self.diffusion.sum(1) + self.prior


def variational_bound(model, scheduler, images, labels=None, groups=40, *, generator=None, batch_size=200,
                      report=None):
    """Estimate the variational bound on −log p(x_0), with labels on −log p(x_0 | label), of 8-bit pictures.

    The levels 1 … T − 1 are cut into groups, narrow at the clean end, where the terms are largest. Each picture visits
    one random level of each group, and its term counts as often as the group has levels: the estimate is unbiased, and
    independent from picture to picture, so that std(total) / √N is its standard error.

    Args:
        model, labels: as for ``generate``. The model alone computes on its device, all else in float64 on the CPU.
        scheduler: a DDPMScheduler. Its ``variance_type`` is the variance of p(x_{t-1} | x_t), its ``clip_sample`` is
            obeyed. At t = 0, where fixed_small would be 0, the variance is β̃_1, as in Ho et al.'s code.
        images: (N, C, H, W) float32, every value one of k / 127.5 − 1, k = 0 … 255, on any device.
        groups: how many, at most. batch_size: pictures that go through the model together.
        generator: np.random.Generator; None takes the library's of the CPU.
        report: called with the number of pictures after each batch.

    Returns a VariationalBound. Raises ValueError if the images are not 8-bit.
    """
    check_sample(images, "images")
    images = to_device(images, "cpu")
    grey = (images + 1) * 127.5
    if images.ndim != 4 or not (abs(grey - np.rint(grey).clip(0, 255)) <= 1e-2).all():
        raise ValueError("variational_bound expects 8-bit pictures (N, C, H, W), scaled as x / 127.5 - 1, "
                         f"got shape {images.shape} and values from {images.min()} to {images.max()}")
    labels = check_labels(labels, model, images, 1.0)
    generator = default_generator() if generator is None else generator
    edges = np.unique(np.geomspace(1, scheduler.num_train_timesteps, groups + 1).round().astype(int))
    terms = np.empty((len(images), len(edges)))  # the decoder's, then those of the groups
    with model.evaluating():
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x0, label = images[part], None if labels is None else labels[part]
            for k, (low, high) in enumerate(zip([0, *edges], edges)):
                t = generator.integers(low, high, len(x0))
                terms[part, k] = (high - low) * term(model, scheduler, x0, t, label, generator)
            if report:
                report(len(x0))
    alpha_bar = float(scheduler.alphas_cumprod[-1])
    prior = gaussian_kl(math.sqrt(alpha_bar) * images.astype(np.float64), 1 - alpha_bar, 0.0, 1.0)
    return VariationalBound(terms[:, 0], terms[:, 1:], prior.sum((1, 2, 3)), edges)


def term(model, scheduler, x0, t, labels, generator):
    """(N,) nats: the decoder's term where t is 0 (for all of them or none), else that of the step from t to t − 1."""
    x = scheduler.add_noise(x0, standard_normal(x0.shape, x0.dtype, generator), t)

    def output(x, t, labels):
        return to_device(predict(model, to_device(x, model.device), t, labels, 1.0), "cpu")

    guess = scheduler.predict_original_sample(over_ranks(output, x, t, labels), t, x).astype(np.float64)
    s = np.maximum(t, 1).reshape(-1, 1, 1, 1)  # the step from 0 borrows the variance of that from 1
    alpha_bar, alpha_bar_prev, beta = scheduler.alphas_cumprod[s], scheduler.alphas_cumprod[s - 1], scheduler.betas[s]
    posterior = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  # β̃_t
    if t[0] == 0:
        return discretised_gaussian_nll(x0.astype(np.float64), guess, np.sqrt(posterior)).sum((1, 2, 3))
    weight = np.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)  # of x_0 in the mean (eq. 7); x_t is in both means
    variance = posterior if scheduler.variance_type == "fixed_small" else beta
    return gaussian_kl(weight * x0, posterior, weight * guess, variance).sum((1, 2, 3))


def gaussian_kl(mean_a, variance_a, mean_b, variance_b):
    """KL(N(mean_a, variance_a) ‖ N(mean_b, variance_b)) in nats, elementwise."""
    ratio = variance_a / variance_b
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean_a - mean_b) ** 2 / variance_b)


def discretised_gaussian_nll(x, mean, std):
    """−log of the mass that N(mean, std²) puts on the grey value x, elementwise, float64 (Ho et al. 2020, eq. 13).

    x: values k / 127.5 − 1. Each owns the interval x ± 1/255, −1 and 1 also all beyond: the 256 masses sum to 1.
    """
    # Mirrored so that the interval is on the upper side of the mean, where erfc loses nothing to rounding
    side = np.where(x < mean, -1.0, 1.0)
    x, mean = side * x, side * mean
    low = np.where(x < -1 + HALF_STEP, -np.inf, (x - HALF_STEP - mean) / std)
    high = np.where(x > 1 - HALF_STEP, np.inf, (x + HALF_STEP - mean) / std)
    mass = 0.5 * (erfc(low / math.sqrt(2)) - erfc(high / math.sqrt(2)))
    # 38 standard deviations out even erfc is 0; there the tail above z is e^(−z²/2) / (z √2π)
    tail = 0.5 * low**2 + np.log(np.maximum(low, 1) * math.sqrt(2 * math.pi))
    return np.where(mass > 1e-300, -np.log(np.maximum(mass, 1e-300)), tail)


erfc = np.vectorize(math.erfc, otypes=[np.float64])
