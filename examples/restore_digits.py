"""Digits with holes, of few pixels, blurred and noisy, made whole by differentiating the denoiser.

    python examples/restore_digits.py                        # a quarter of an hour on 2 cores, into runs/restore
    python examples/restore_digits.py --resume               # goes on with what has not been measured yet
    python examples/restore_digits.py --preset smoke --data synthetic

Nothing is trained. Test digits (the first of the test set) are measured as y = A x_0 + σ n, and ``restore`` draws
digits that could have been measured so (ΠGDM, Song et al. 2023), without being told what they are. Beside it stand

    bicubic              interpolation of the few pixels
    total variation      of all pictures that fit, the one with the least variation (Rudin, Osher & Fatemi 1992)
    Wiener               the best linear estimate: right if digits were Gaussian with the training digits' covariance
    best training digit  the one of the training set that fits best, made to fit if there is no noise
    posterior mean       over the training set: the best estimate if there were no other digits. Without noise it is the
                         best training digit; instead, noise of a deviation that serves training digits best is assumed

Written to --out: metrics.json ({task: {"psnr_one", "psnr_mean", "accuracy_one", "accuracy_mean", "others"}}; one is a
single sample, mean the mean of --samples, accuracy what a classifier reads), measurements.json (all that --resume
needs) and restored.png: of each task, measured / three samples / mean / spread (white: a standard deviation of 1 on a
scale of 2) / original.
"""

from pathlib import Path

from command_line import integer, parse, parser_for, settings_of, write_metrics
from guided_denoising import Measurements, networks
from train_classifier import predictions

import numpy as np
from PIL import Image
from tqdm import tqdm

from npdiffusion.data import load_digits
from npdiffusion.diffusion import AveragePool, Blur, DDPMScheduler, Inpaint, restore
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr

BATCH = 25  # digits at a time, each drawn --samples times
SHOWN = 4   # digits of each task in the figure
ROWS = ["measured", "sample", "sample", "sample", "mean", "spread", "original"]
PRESETS = {"smoke": dict(digits=4, samples=3, steps=3, known=500),
           "cpu": dict(digits=200, samples=4, steps=50, known=60000),
           "long": dict(digits=1000, samples=4, steps=50, known=60000)}

HOLE = np.ones((32, 32), bool)
HOLE[10:22, 10:22] = False
BELL = np.exp(-np.arange(-3, 4)**2 / 4.5)  # 1.5 pixels wide
BELL /= BELL.sum()
TASKS = {"inpaint": (Inpaint(HOLE), 0.0, "a hole of 12×12"),
         "super_resolution": (AveragePool(4), 0.0, "4×4 pixels as one"),
         "inpaint_noisy": (Inpaint(HOLE), 0.2, "hole, noise σ = 0.2"),
         "super_resolution_noisy": (AveragePool(4), 0.2, "4×4 as one, noise σ = 0.2"),
         "blur_noisy": (Blur(np.outer(BELL, BELL)), 0.2, "blur, noise σ = 0.2")}


def arguments():
    parser = parser_for(__doc__, "restore", trains=False)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--model", type=Path, help="weights of a UNet for digits instead of the package's own")
    parser.add_argument("--classifier", type=Path, help="weights of a classifier instead of the package's own")
    parser.add_argument("--digits", type=integer(1), help="number of test digits")
    parser.add_argument("--samples", type=integer(3), help="drawn for each")
    parser.add_argument("--steps", type=integer(1, 1024),
                        help="passes of the network, forward and backward, for each; half as many if there is noise")
    parser.add_argument("--known", type=integer(100), help="number of training digits that the others know")
    return parse(parser, PRESETS)


def measured(images, operator, sigma):
    """y = A x_0 + σ n; the noise of a picture does not depend on how many others there are."""
    y = operator.forward(images)
    return y + np.float32(sigma) * np.random.default_rng(0).standard_normal(y.shape, dtype=np.float32)


def samples_of(model, y, operator, sigma, args):
    """(samples, N, 1, 32, 32). With more steps they would follow the noise."""
    steps = args.steps if sigma == 0 else -(-args.steps // 2)
    rng = np.random.default_rng(args.seed)
    parts = tqdm([y[i:i + BATCH] for i in range(0, len(y), BATCH)], "digits, 25 at a time", leave=False)
    return np.concatenate([restore(model, DDPMScheduler(), part, operator, sigma, num_inference_steps=steps,
                                   num_samples=args.samples, generator=rng) for part in parts], 1)


# -- what to compare with

def bicubic(y):
    """Few pixels (N, 1, h, w) enlarged to 32×32."""
    return np.stack([np.asarray(Image.fromarray(x[0]).resize((32, 32), Image.Resampling.BICUBIC)) for x in y])[:, None]


def total_variation(y, operator, sigma, weight, steps=400):
    """argmin_x ½‖A x − y‖² + weight Σ|∇x|, or, without noise, of all x with A x = y the one of least Σ|∇x|.

    By Chambolle & Pock 2011, algorithm 1, whose step (I + τ Aᵀ A)⁻¹ (x + τ Aᵀ y) needs of A what ``restore`` needs.
    """
    x = x_bar = 0 * operator.pinv(y)
    p, tau = np.zeros((2, *x.shape), x.dtype), 0.35  # τ² ‖∇‖² ≤ 1, ‖∇‖² ≤ 8
    for _ in range(steps):
        p[0] += tau * np.diff(x_bar, axis=2, append=x_bar[:, :, -1:])
        p[1] += tau * np.diff(x_bar, axis=3, append=x_bar[..., -1:])
        p /= np.maximum(1, np.sqrt((p * p).sum(0)) / weight)
        divergence = sum(np.diff(p[i], axis=2 + i, prepend=np.float32(0)) for i in (0, 1))
        before, x = x, x + tau * divergence
        r = y - operator.forward(x)
        x = x + operator.pinv(r - operator.solve(r, 1 / tau) / tau if sigma else r)
        x_bar = 2 * x - before
    return x


class Known:
    """The training digits, and what would have been measured of them (without noise)."""

    def __init__(self, images, operator):
        self.images, self.operator = images, operator
        self.x, self.y = (a.reshape(len(images), -1) for a in (images, operator.forward(images)))
        self.half_norms = 0.5 * np.einsum("ij,ij->i", self.y, self.y)

    def wiener(self, y, sigma):
        """m + C Aᵀ (A C Aᵀ + σ² I)⁻¹ (y − A m) with the mean m and the covariance C of the digits."""
        x, known = self.x - self.x.mean(0), self.y - self.y.mean(0)
        gram = (known.T @ known).astype(np.float64) / len(known) + (sigma**2 + 1e-6) * np.eye(known.shape[1])
        gain = np.linalg.solve(gram, (known.T @ x).astype(np.float64) / len(known))
        return (self.x.mean(0) + (y.reshape(len(y), -1) - self.y.mean(0)) @ gain).astype(y.dtype)

    def best(self, y):
        """The digit with the least ‖y − A x_i‖."""
        return self.x[(y.reshape(len(y), -1) @ self.y.T - self.half_norms).argmax(1)]

    def posterior_mean(self, y, sigma):
        """Σ_i w_i x_i,  w = softmax_i(−‖y − A x_i‖² / 2σ²)."""
        logits = (y.reshape(len(y), -1) @ self.y.T - self.half_norms) / np.float32(sigma**2)
        w = np.exp(logits - logits.max(1, keepdims=True))
        return w @ self.x / w.sum(1, keepdims=True)


def tuned(function, parameters, images, operator, sigma):
    """The parameter with which ``function(y, parameter)`` is nearest to training digits."""
    y = measured(images, operator, sigma)
    return max(parameters, key=lambda p: psnr(function(y, p).reshape(images.shape).clip(-1, 1), images).mean())


def others(y, operator, sigma, train, few):
    """{name: pictures}; what is tuned is tuned on the first ``few`` training digits, which are then not known."""
    tuning, known = train[:few], Known(train[few:], operator)

    def fit(x):
        x = x.reshape(len(y), 1, 32, 32).clip(-1, 1)
        return x if sigma else x + operator.pinv(y - operator.forward(x))

    def variation(y, weight):
        return total_variation(y, operator, sigma, weight)

    weight = tuned(variation, [sigma**2 * 1.6**i for i in range(-6, 4)], tuning, operator, sigma) if sigma else 0.1
    width = sigma or tuned(known.posterior_mean, [0.5 * 1.25**i for i in range(12)], tuning, operator, sigma)
    results = {"bicubic": bicubic(y)} if isinstance(operator, AveragePool) else {}
    results |= {"total variation": variation(y, weight), "Wiener": known.wiener(y, sigma),
                "best training digit": known.best(y), "posterior mean": known.posterior_mean(y, width)}
    return {name: fit(x) for name, x in results.items()}


# -- the measurements

def scores(judge, pictures, digits):
    images, labels = digits
    return float(psnr(pictures.clip(-1, 1), images).mean()), float((predictions(judge, pictures) == labels).mean())


def measure(task, model, judge, train, digits, args):
    """What metrics.json holds of a task."""
    operator, sigma, _ = TASKS[task]
    y = measured(digits[0], operator, sigma)
    samples = samples_of(model, y, operator, sigma, args)
    one, mean = scores(judge, samples[0], digits), scores(judge, samples.mean(0), digits)
    return {"psnr_one": one[0], "psnr_mean": mean[0], "accuracy_one": one[1], "accuracy_mean": mean[1],
            "misfit": 0.0 if sigma else float(abs(operator.forward(samples[0]) - y).max()),
            "others": {name: dict(zip(("psnr", "accuracy"), scores(judge, pictures, digits)))
                       for name, pictures in others(y, operator, sigma, train, few=len(train) // 2000 + 10).items()}}


def rows_of(y, samples, images):
    """As ROWS names them: y (N, C, H, W), three of the samples, ..., the spread white from 1 on."""
    return [y.clip(-1, 1), *samples[:3], samples.mean(0), 2 * samples.std(0).clip(0, 1) - 1, images]


def table(metrics, samples):
    """Markdown of what is measured."""
    names = ["bicubic", "total variation", "Wiener", "best training digit", "posterior mean"]

    def cell(psnr, accuracy):
        return f"{psnr:.1f} / {accuracy:.1%}"

    lines = ["| PSNR in dB / digits recognised | " + " | ".join(TASKS[task][2] for task in metrics) + " |",
             "| --- |" + " --- |" * len(metrics)]
    for name in names:
        cells = [cell(*found["others"][name].values()) if name in found["others"] else "" for found in metrics.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, key in (("restore, one sample", "one"), (f"restore, mean of {samples}", "mean")):
        cells = [cell(found[f"psnr_{key}"], found[f"accuracy_{key}"]) for found in metrics.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    args = arguments()
    model, judge, weights = networks(args)
    settings = settings_of(args) | {"weights": weights, "tasks": None}
    found = Measurements(args.out / "measurements.json", settings, args.resume)
    digits, train = load_digits(args.data, "test")[:args.digits], load_digits(args.data, "train").images[:args.known]
    shown = []
    for task in tqdm(args.tasks, "tasks"):
        found.add(task, measure, task, model, judge, train, digits, args)
        operator, sigma, _ = TASKS[task]
        images = digits[0][:SHOWN]
        y = measured(images, operator, sigma)
        shown.append(rows_of(y if y.shape == images.shape else operator.pinv(y),
                             samples_of(model, y, operator, sigma, args), images))
    titles = [TASKS[task][2] for task in args.tasks]
    figure = picture_rows([np.concatenate(row) for row in zip(*shown)], ROWS, titles, group=len(images), cell=0.5)
    save_figure(figure, args.out / "restored.png")
    metrics = {task: found[task] for task in args.tasks}
    write_metrics(args.out, metrics)
    print(table(metrics, args.samples))


if __name__ == "__main__":
    main()
