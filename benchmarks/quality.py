"""How well the shipped diffusion model denoises and draws MNIST digits, in numbers, beside what needs no network.

    python benchmarks/quality.py                                # about half an hour, into runs/quality
    python benchmarks/quality.py --parts one-shot wiener        # these alone
    python benchmarks/quality.py --readme                       # the tables of README.md, from the JSON file

Every part is written to the JSON file as soon as it is done, and not done again while its settings stay the same; so
a benchmark that was stopped goes on, and parts can be run on different days.

Denoising: test digits at levels t of 1024 (Ho et al.'s linear schedule), every method with the same noise; PSNR and
SSIM at 32×32 in [−1, 1], and how many digits the frozen classifier still recognises.

  noisy                       x_t / √ᾱ_t
  one-shot, dpm, ddim, ancestral   the network, without labels (see ``npdiffusion.diffusion.denoise``)
  posterior                   the exact posterior mean if the 60,000 training digits were all there is
  wiener                      the best linear denoiser (the training digits' covariance)
  tv, nlm                     total variation (Chambolle 2004), non-local means (Buades et al. 2005), their strength
                              tuned on training digits at each level; they need scikit-image

Samples: drawn by label, labels as frequent as in the training set. Classifier-FID: the Fréchet distance between the
classifier's features of the samples and of the test digits. Its floor is that of as many training digits; pictures
drawn from a Gaussian with the training digits' mean and covariance show what is bad. Distances to the nearest training
digit tell whether the network copies.

Bound: see ``variational_bound``; without labels, of the whole 32×32 picture. As the padding is always the same, its
nats bound those of the 28×28 digit too.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from tqdm import tqdm

from npdiffusion import Tensor, no_grad, to_device
from npdiffusion.checkpoint import load_file, save_file
from npdiffusion.data import DataNotFoundError, load_digits
from npdiffusion.diffusion import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PCAWiener, denoise,
                                   generate, posterior_mean, variational_bound)
from npdiffusion.diffusion.sampling import METHODS
from npdiffusion.distributed import broadcast, over_ranks
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.files import atomic_write
from npdiffusion.metrics import frechet_distance, psnr, ssim
from npdiffusion.models import load_model, pretrained

LEVELS = (100, 200, 300, 400, 500, 600)
NAMES = {"noisy": "noisy", "one-shot": "one-shot", "dpm": "DPM-Solver++, 8 steps", "ddim": "DDIM, 20 steps",
         "ancestral": "ancestral",
         "posterior": "exact posterior mean of the training set", "wiener": "PCA-Wiener",
         "tv": "total variation", "nlm": "non-local means"}
PARTS = (*NAMES, "samples", "bound")
STRENGTHS = {"tv": np.geomspace(0.3, 10, 12), "nlm": np.geomspace(0.1, 2, 10)}  # over the noise's σ
TUNING_DIGITS = 50
BATCH = 100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/quality/quality.json"),
                        help="results; samples and figures go beside it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--readme", action="store_true", help="only print the tables")
    parser.add_argument("--model", type=Path, help="a network of your own (default: mnist-ddpm)")
    parser.add_argument("--data", default="mnist", choices=["mnist", "synthetic"])
    parser.add_argument("--digits", type=int, default=1000, help="test digits for denoising and the bound")
    parser.add_argument("--ancestral-digits", type=int, default=100, help="of them for the slowest method")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--sampler", default="ddim", choices=["dpm", "ddim", "ddpm"])
    parser.add_argument("--steps", type=int, default=32, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 needs one pass a step, not two")
    parser.add_argument("--real", type=int, default=10000, help="test digits that the samples are compared with")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the networks compute")
    return parser.parse_args()


class Benchmark:
    """The data and networks that all parts need, and the results so far."""

    def __init__(self, args):
        self.args = args
        self.train, self.test = load_digits(args.data, "train"), load_digits(args.data, "test")
        self.model = (load_model(args.model) if args.model else pretrained("mnist-ddpm")).to(args.device)
        self.classifier = pretrained("mnist-classifier").to(args.device)
        self.scheduler = DDPMScheduler()
        self.results = json.loads(args.json.read_text()) if args.json.exists() else {}

    def in_batches(self, layers, images):
        """What a network's layers make of images, without a graph."""
        def output(images):
            return layers(Tensor(images, device=self.args.device)).cpu().data

        batches = [images[i:i + BATCH] for i in range(0, len(images), BATCH)]
        with no_grad():
            return np.concatenate([over_ranks(output, x) for x in batches])

    def features(self, images):
        return self.in_batches(self.classifier.features, images)

    def recognised(self, features, labels):
        """Share of pictures whose label the classifier finds."""
        with no_grad():
            logits = self.classifier.linear(Tensor(features, device=self.args.device)).cpu().data
        return float((logits.argmax(1) == labels).mean())

    def settings(self, part):
        """What a part's result depends on."""
        args = self.args
        common = {"data": args.data, "model": str(args.model or "mnist-ddpm")}
        if part == "samples":
            return common | {"samples": args.samples, "sampler": args.sampler, "steps": args.steps,
                             "guidance": args.guidance, "real": args.real}
        return common | {"digits": args.ancestral_digits if part == "ancestral" else args.digits}

    def run(self, part):
        """Do one part, unless the JSON file has it, and write it there."""
        settings = self.settings(part)
        if self.results.get(part, {}).get("settings") == settings:
            return print(f"{part}: done already")
        started = time.perf_counter()
        work = {"samples": self.samples, "bound": self.bound}.get(part) or (lambda: self.denoising(part))
        self.results[part] = {**work(), "minutes": (time.perf_counter() - started) / 60, "settings": settings}
        with atomic_write(self.args.json) as file:
            file.write(json.dumps(self.results | summary(self.results), indent=1).encode() + b"\n")

    # -- denoising

    def denoising(self, name):
        images, labels = self.test[:self.settings(name)["digits"]]
        method = self.method(name)
        scores = {"psnr": {}, "ssim": {}, "accuracy": {}}
        with tqdm(total=len(LEVELS) * len(images), desc=name) as bar:
            for t in LEVELS:
                noise = np.random.default_rng(t).standard_normal(images.shape, dtype=np.float32)
                noisy = self.scheduler.add_noise(images, noise, t)
                solve = method(t)
                estimates = np.empty_like(noisy)
                for i in range(0, len(noisy), BATCH):
                    estimates[i:i + BATCH] = solve(noisy[i:i + BATCH])
                    bar.update(len(noisy[i:i + BATCH]))
                scores["psnr"][t] = float(psnr(estimates, images).mean())
                scores["ssim"][t] = float(ssim(estimates, images).mean())
                scores["accuracy"][t] = self.recognised(self.features(estimates), labels)
        return scores

    def method(self, name):
        """Of a denoiser by its name: a function of t that returns a function of x_t that returns x̂_0."""
        alpha_bars = self.scheduler.alphas_cumprod.tolist()
        if name == "noisy":
            return lambda t: lambda noisy: noisy / alpha_bars[t] ** 0.5
        if name in METHODS:
            return lambda t: lambda noisy: denoise(self.model, self.scheduler, noisy, t, name,
                                                   generator=np.random.default_rng(t))
        if name in STRENGTHS:
            return lambda t: self.tuned(name, t)
        if name == "posterior":
            return lambda t: partial(over_ranks, lambda noisy: posterior_mean(noisy, alpha_bars[t], self.train.images))
        wiener = PCAWiener(self.train.images)
        return lambda t: lambda noisy: wiener(noisy, alpha_bars[t]).clip(-1, 1)

    def tuned(self, name, t):
        """Total variation or non-local means, as strong as is best for training digits at level t."""
        alpha_bar = float(self.scheduler.alphas_cumprod[t])
        sigma = (1 / alpha_bar - 1) ** 0.5

        def solve(noisy, strength):
            return np.stack([filtered(name, x, sigma, strength) for x in noisy[:, 0] / alpha_bar**0.5])[:, None]

        images = self.train.images[:TUNING_DIGITS]
        noise = np.random.default_rng(t + 1).standard_normal(images.shape, dtype=np.float32)
        noisy = self.scheduler.add_noise(images, noise, t)
        best = max(STRENGTHS[name].tolist(), key=lambda s: psnr(over_ranks(solve, noisy, s), images).mean())
        return lambda noisy: over_ranks(solve, noisy, best)

    # -- samples

    def samples(self):
        args = self.args
        drawn, labels = self.draw()
        real = self.features(self.test.images[:args.real])
        features = self.features(drawn)
        some = np.random.default_rng(1).choice(len(self.train), len(drawn), replace=len(drawn) > len(self.train))
        nearest, distances = self.nearest(drawn)
        of_test = self.nearest(self.test.images[:args.real])[1]
        save_figure(nearest_figure(drawn, labels, self.train.images[nearest], distances),
                    args.json.parent / "nearest.png")
        return {
            "classifier_fid": frechet_distance(features, real),
            "classifier_fid_floor": frechet_distance(self.features(self.train.images[some]), real),
            "classifier_fid_gaussian": frechet_distance(self.features(self.gaussian(len(drawn))), real),
            "feature_variance": float(real.var(0).sum()),
            "label_agreement": self.recognised(features, labels) if args.guidance else None,
            "nearest_distance": {"samples": quantiles(distances), "test_digits": quantiles(of_test)},
            "nearer_than_99_percent_of_test_digits": float((distances < np.quantile(of_test, 0.01)).mean())}

    def draw(self):
        """The samples, rounded to 8 bits, and their labels; kept in a file, so that a stopped run goes on."""
        args, path = self.args, self.args.json.parent / "samples.safetensors"
        settings = self.settings("samples")
        labels = self.labels(args.samples)
        drawn = np.empty((0, *self.train.images.shape[1:]), np.uint8)
        if path.exists():
            arrays, meta = load_file(path)
            drawn = arrays["samples"] if meta == settings else drawn
        scheduler = {"dpm": DPMSolverMultistepScheduler(use_lu_lambdas=True),
                     "ddim": DDIMScheduler(timestep_spacing="trailing"),
                     "ddpm": DDPMScheduler(timestep_spacing="trailing")}[args.sampler]
        with tqdm(total=args.samples, initial=len(drawn), desc="samples") as bar:
            while len(drawn) < args.samples:
                some = self.draw_batch(scheduler, labels, len(drawn), args.steps, args.guidance)
                drawn = np.concatenate([drawn, some])
                bar.update(len(some))
                save_file(path, {"samples": drawn}, settings)
        return drawn.astype(np.float32) / 127.5 - 1, labels

    def labels(self, count):
        """Of samples: as frequent as in the training set."""
        return self.train.labels[np.random.default_rng(0).integers(len(self.train), size=count)]

    def draw_batch(self, scheduler, labels, first, steps, guidance=1.0):
        """The next samples from number ``first`` on, as uint8."""
        some = labels[first:first + BATCH]
        x = generate(self.model, scheduler, (len(some), *self.train.images.shape[1:]), some, guidance, steps,
                     generator=np.random.default_rng([2, first]))
        return np.rint((to_device(x, "cpu").clip(-1, 1) + 1) * 127.5).astype(np.uint8)

    def gaussian(self, count):
        """Pictures drawn from the Gaussian of the training digits' mean and covariance: a scale for the FID."""
        wiener = PCAWiener(self.train.images)
        z = np.random.default_rng(3).standard_normal((count, len(wiener.variances)))
        pictures = wiener.mean + z * np.sqrt(wiener.variances.clip(0)) @ wiener.components.T
        return pictures.clip(-1, 1).astype(np.float32).reshape(-1, *self.train.images.shape[1:])

    def nearest(self, images):
        """For each picture the index of the nearest training digit, and the Euclidean distance to it."""
        known = self.train.images.reshape(len(self.train), -1)
        norms = np.einsum("ij,ij->i", known, known)
        index = np.concatenate([(norms - 2 * x.reshape(len(x), -1) @ known.T).argmin(1)
                                for x in (images[i:i + BATCH] for i in range(0, len(images), BATCH))])
        return index, np.sqrt(((images - self.train.images[index]) ** 2).sum((1, 2, 3)))

    # -- likelihood

    def bound(self):
        images = self.test.images[:self.args.digits]
        with tqdm(total=len(images), desc="bound") as bar:
            bound = variational_bound(self.model, self.scheduler, images, generator=np.random.default_rng(0),
                                      batch_size=BATCH, report=bar.update)
        nats = bound.total
        bits = np.log(2) * images[0].size
        sizes = np.diff(bound.edges)
        return {"bits_per_dim": float(nats.mean() / bits),
                "standard_error": float(nats.std() / len(nats) ** 0.5 / bits),
                "nats_per_digit": float(nats.mean()),
                "nats": {"decoder": float(bound.decoder.mean()), "diffusion": float(bound.diffusion.sum(1).mean()),
                         "prior": float(bound.prior.mean())},
                "edges": bound.edges.tolist(), "nats_per_level": (bound.diffusion.mean(0) / sizes).tolist()}


def filtered(name, x, sigma, strength):
    """One picture (H, W) with noise σ by total variation or non-local means."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    if name == "tv":
        x = denoise_tv_chambolle(x, weight=strength * sigma)
    else:
        x = denoise_nl_means(x, h=strength * sigma, sigma=sigma, patch_size=5, patch_distance=10, fast_mode=True)
    return x.clip(-1, 1)


def quantiles(distances):
    return {"minimum": float(distances.min()), "1%": float(np.quantile(distances, 0.01)),
            "median": float(np.median(distances))}


def summary(results):
    """The numbers to compare over time."""
    one_shot, samples, bound = (results.get(part, {}) for part in ("one-shot", "samples", "bound"))
    return {"one_shot_psnr": one_shot.get("psnr"), "one_shot_accuracy": one_shot.get("accuracy"),
            **{key: samples.get(key) for key in ("classifier_fid", "classifier_fid_floor")},
            "bits_per_dim": bound.get("bits_per_dim")}


def tables(results):
    """Markdown of what the JSON file holds."""
    def rows(title, cell):
        yield f"| {title} | " + " | ".join(f"t = {t}" for t in LEVELS) + " |"
        yield "| --- |" + " --- |" * len(LEVELS)
        for name in NAMES:
            if name in results:
                label = f"{NAMES[name]} ({results[name]['settings']['digits']:,} digits)"
                yield f"| {label} | " + " | ".join(cell(results[name], str(t)) for t in LEVELS) + " |"

    lines = [*rows("PSNR in dB / digits recognised", lambda r, t: f"{r['psnr'][t]:.1f} / {r['accuracy'][t]:.1%}"), "",
             *rows("SSIM", lambda r, t: f"{r['ssim'][t]:.3f}"), "",
             "| drawing | |", "| --- | --- |"]
    if "samples" in results:
        s, near = results["samples"], results["samples"]["nearest_distance"]
        settings = s["settings"]
        lines += [f"| classifier-FID, {settings['samples']:,} samples | {s['classifier_fid']:.3f} |",
                  f"| … of as many training digits (floor) | {s['classifier_fid_floor']:.3f} |",
                  f"| … of a Gaussian with the training digits' covariance | {s['classifier_fid_gaussian']:.3f} |",
                  f"| samples that the classifier takes for their label | {s['label_agreement']:.2%} |",
                  "| distance to the nearest training digit, median: samples, test digits | "
                  f"{near['samples']['median']:.2f}, {near['test_digits']['median']:.2f} |"]
    if "bound" in results:
        b = results["bound"]
        lines.append(f"| variational bound | {b['bits_per_dim']:.3f} ± {b['standard_error']:.3f} bits per dimension, "
                     f"{b['nats_per_digit']:.0f} nats per digit |")
    return "\n".join(lines)


def denoising_figure(results):
    """PSNR, SSIM and accuracy against t, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for i, (name, marker) in enumerate(zip(NAMES, "xosP^Dv<>")):
        if name in results:
            for axes, score in zip(panels, ("psnr", "ssim", "accuracy")):
                values = results[name][score]
                axes.plot([int(t) for t in values], list(values.values()), color=f"C{i}", marker=marker, ms=4,
                          lw=1.2, label=NAMES[name])
    for axes, title in zip(panels, ("PSNR in dB", "SSIM", "digits recognised")):
        axes.set(xlabel="noise level t", title=title, xticks=LEVELS)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=5)  # where methods differ; the noisy digits go on falling
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def bound_figure(bound):
    """What each level costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(bound["nats_per_level"], bound["edges"], baseline=None)
    parts = " + ".join(f"{name} {nats:.3g}" for name, nats in bound["nats"].items())
    axes.set(xscale="log", yscale="log", xlabel="noise level t", ylabel="nats of one level", title=f"{parts} nats")
    axes.grid(alpha=0.3)
    return figure


def nearest_figure(drawn, labels, nearest, distances):
    """Samples over their nearest training digits: the first ten, and of each class the one nearest to its neighbour."""
    index = [*range(10), *(np.where(labels == k, distances, np.inf).argmin() for k in range(10))]
    index = np.minimum(index, len(drawn) - 1)
    return picture_rows([drawn[index], nearest[index]], ["sample", "nearest training digit"],
                        ["ten samples", f"of {len(drawn):,}, the nearest of each class"], group=10, cell=0.42,
                        fontsize=8)


def main():
    args = arguments()
    if args.readme:
        return print(tables(json.loads(args.json.read_text())))
    if args.threads:
        npdiffusion.set_num_threads(args.threads)
    try:
        benchmark = Benchmark(args)
    except (DataNotFoundError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"quality.py: {error}") from error
    for part in args.parts:
        try:
            benchmark.run(part)
        except ImportError as error:
            print(f"{part} left out: {error}")
    results = broadcast(lambda: json.loads(args.json.read_text()))
    save_figure(denoising_figure(results), args.json.parent / "denoising.png")
    if "bound" in results:
        save_figure(bound_figure(results["bound"]), args.json.parent / "bound.png")
    print(tables(results))


if __name__ == "__main__":
    main()
