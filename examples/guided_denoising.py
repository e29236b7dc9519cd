"""Does a digit stay what it was when it is denoised? Measured, with and without telling the model its class.

    python examples/guided_denoising.py                      # tens of minutes on 2 cores, into runs/guided
    python examples/guided_denoising.py --resume             # goes on with what has not been measured yet
    python examples/guided_denoising.py --preset smoke --data synthetic

Nothing is trained. Test digits (the first of the test set) get noise of level t, are denoised, and read by a classifier
that knows neither noise nor label. Identity is the share that is read as the class the digit had; the label reaches the
model by classifier-free guidance (Ho & Salimans 2022), ε = ε(x, ∅) + s·(ε(x, c) − ε(x, ∅)), with an s chosen on
training digits. Without a label the noise hides more and more of what a digit was: at t = 400 even the exact posterior
mean over all 60,000 training digits keeps only 87 % (it is measured too). With the label the class is given, and
identity says whether the picture obeys it; at t = 600 little else of the digit is left.

Written to --out: metrics.json, measurements.json (all that --resume needs) and figures: identity.png, confusion.png,
eights.png (a noisy 8, without and with its label), forced.png (one noisy digit made into each of the ten), guidance.png
and samples.png (what s does).
"""

import json
import math
from pathlib import Path

from command_line import above_0, checksum, integer, load_network, parse, parser_for, settings_of, write_metrics
from train_classifier import predictions

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from tqdm import tqdm

from npdiffusion import to_device
from npdiffusion.data import load_digits
from npdiffusion.diffusion import DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate, posterior_mean
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.files import atomic_write
from npdiffusion.metrics import psnr
from npdiffusion.models import Classifier, UNet
from npdiffusion.training import check_settings

LEVELS = (100, 200, 300, 400, 500, 600)
SAMPLERS = ("one-shot", "dpm", "ancestral")
BEST = "one-shot"  # of them, for identity without a label
SCALES = (0, 1, 1.5, 2, 3, 5)  # of guidance; 0 is no label
SWEPT = (300, 600)  # levels at which they are compared
TELLING = 400  # the level of the confusion matrices
BATCH = 100

PRESETS = {"smoke": dict(digits=20, ancestral=10, generated=20, sweep=10, known=1000, steps=1, ancestral_steps=2),
           "cpu": dict(digits=1000, ancestral=100, generated=2000, sweep=200, known=60000, steps=10,
                       ancestral_steps=50),
           "long": dict(digits=10000, ancestral=300, generated=10000, sweep=1000, known=60000, steps=10,
                        ancestral_steps=100)}


def arguments():
    parser = parser_for(__doc__, "guided", trains=False)
    parser.add_argument("--model", type=Path, help="weights of a class-conditional UNet instead of the package's own")
    parser.add_argument("--classifier", type=Path, help="weights of a classifier instead of the package's own")
    parser.add_argument("--guidance", type=above_0, default=3.0, help="scale s of the guidance by the true label")
    parser.add_argument("--digit", type=int, default=8, choices=range(10), help="the class that the pictures show")
    parser.add_argument("--digits", type=integer(1), help="number of test digits for one-shot and DPM-Solver++")
    parser.add_argument("--ancestral", type=integer(1),
                        help="number of test digits for ancestral sampling, which is slow")
    parser.add_argument("--generated", type=integer(1), help="number of digits drawn from pure noise")
    parser.add_argument("--sweep", type=integer(1), help="number of training digits for the choice of s")
    parser.add_argument("--known", type=integer(1), help="number of training digits that the exact posterior knows")
    parser.add_argument("--steps", type=integer(1, 1024), help="of DPM-Solver++")
    parser.add_argument("--ancestral-steps", type=integer(1), help="evenly spaced levels from t down")
    return parse(parser, PRESETS)


def networks(args):
    """The network that denoises digits, the classifier that reads them, and checksums of the weights of both."""
    model = load_network(args.model, "mnist-ddpm", UNet, in_channels=1, out_channels=1, time=True, num_classes=10)
    judge = load_network(args.classifier, "mnist-classifier", Classifier, in_channels=1, num_classes=10)
    weights = [checksum(model), checksum(judge)]
    return model.to(args.device), judge.to(args.device), weights


class Measurements(dict):
    """Finished measurements by name, kept in a JSON file, so that a stopped run can go on with the others.

    Raises SystemExit if the file exists but ``resume`` was not asked for, or if it was written under other settings,
    FileNotFoundError if there is nothing to resume.
    """

    def __init__(self, path, settings, resume):
        self.path, self.settings = path, settings
        if path.exists() and not resume:
            raise SystemExit(f"{path} exists: go on with --resume, or choose another --out")
        if resume:
            if not path.exists():
                raise FileNotFoundError(f"no measurements at {path}: start without --resume")
            held = json.loads(path.read_text())
            check_settings(path, held["settings"], settings)
            self.update(held["measured"])

    def add(self, name, function, *args):
        """self[name] = function(*args), unless it is there already."""
        if name not in self:
            self[name] = function(*args)
            with atomic_write(self.path) as file:
                file.write(json.dumps({"settings": self.settings, "measured": self}).encode())


def noisy_digits(scheduler, images, t, seed):
    """x_t of each picture; the same noise for everybody who asks with the same seed."""
    noise = np.random.default_rng([seed, t]).standard_normal(images.shape, dtype=np.float32)
    return scheduler.add_noise(images, noise, t)


def cleaned(model, scheduler, noisy, t, sampler, labels, scale, args):
    """``noisy`` (N, 1, H, W) denoised from level t, guided by its labels; scale 0: without them."""
    rng, steps = np.random.default_rng(args.seed), args.ancestral_steps if sampler == "ancestral" else args.steps
    parts = [slice(i, i + BATCH) for i in range(0, len(noisy), BATCH)]
    return np.concatenate([denoise(model, scheduler, noisy[part], t, sampler, steps, labels[part] if scale else None,
                                   scale, generator=rng)
                           for part in tqdm(parts, f"{sampler}, t = {t}, s = {scale}", leave=False)])


def drawn(model, scheduler, labels, scale, args):
    """A digit of each label from pure noise, by DPM-Solver++."""
    scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config | {"use_lu_lambdas": True})
    rng = np.random.default_rng(args.seed)
    parts = [labels[i:i + BATCH] for i in range(0, len(labels), BATCH)]
    return np.concatenate([to_device(generate(model, scheduler, (len(part), 1, 32, 32), part if scale else None, scale,
                                              args.steps, generator=rng), "cpu")
                           for part in tqdm(parts, f"new digits, s = {scale}", leave=False)])


def confusion(judge, pictures, labels):
    """How often each class (row) was read as each class (column), as lists."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predictions(judge, pictures)), 1)
    return counts.tolist()


def spread(pictures, labels):
    """Standard deviation of a pixel within a class, averaged over pixels and classes."""
    return float(np.mean([pictures[labels == k].std(0).mean() for k in np.unique(labels)]))


def rate(counts):
    """Share on the diagonal, with its 95 % interval (Wilson 1927): z = 1.96, centre (p + z²/2n)/(1 + z²/n)."""
    n, p, z = int(np.sum(counts)), float(np.trace(counts) / np.sum(counts)), 1.96
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return {"rate": p, "interval": [max(0.0, low), min(1.0, high)], "n": n}


def measure(found, args, model, judge, scheduler, train, test):
    """Add everything that the figures and metrics.json need to ``found``."""
    def denoising(digits, sampler, t, scale):
        images, labels = digits
        noisy = noisy_digits(scheduler, images, t, args.seed)
        result = cleaned(model, scheduler, noisy, t, sampler, labels, scale, args)
        return {"confusion": confusion(judge, result, labels), "psnr": float(psnr(result, images).mean())}

    def drawing(count, scale):
        labels = np.arange(count) % 10
        result = drawn(model, scheduler, labels, scale, args)
        return {"confusion": confusion(judge, result, labels), "spread": spread(result, labels)}

    def posterior(t):
        images, labels = test[:args.digits]
        noisy = noisy_digits(scheduler, images, t, args.seed)
        return confusion(judge, posterior_mean(noisy, float(scheduler.alphas_cumprod[t]), known), labels)

    known = train.images[:args.known]
    some = train[np.random.default_rng(args.seed).choice(len(train), args.sweep, replace=False)]
    tasks = [("clean", confusion, judge, *test[:10 * args.digits]), ("real spread", spread, test.images, test.labels),
             ("new", drawing, args.generated, args.guidance)]
    tasks += [(f"posterior {t}", posterior, t) for t in LEVELS]
    for sampler in SAMPLERS:
        digits = test[:args.ancestral if sampler == "ancestral" else args.digits]
        tasks += [(f"{sampler} {kind} {t}", denoising, digits, sampler, t, s)
                  for kind, s in (("none", 0), ("true", args.guidance)) for t in LEVELS]
    tasks += [(f"sweep {t} {s}", denoising, some, "dpm", t, s) for t in SWEPT for s in SCALES]
    tasks += [(f"sweep new {s}", drawing, args.sweep, s) for s in SCALES[1:]]
    for task in tqdm(tasks, "measurements"):
        found.add(*task)


def metrics_of(found, guidance):
    """What metrics.json holds: ``identity`` and ``label_agreement`` as mere shares, all else as ``rate`` gives it."""
    by_sampler = {sampler: {kind: {t: rate(found[f"{sampler} {kind} {t}"]["confusion"]) for t in LEVELS}
                            for kind in ("none", "true")} for sampler in SAMPLERS}
    return {"identity": {kind: {t: r["rate"] for t, r in rates.items()} for kind, rates in by_sampler[BEST].items()},
            "identity_sampler": BEST, "guidance": guidance,
            "label_agreement": rate(found["new"]["confusion"])["rate"],
            "new_digits": rate(found["new"]["confusion"]), "clean_digits": rate(found["clean"]),
            "identity_exact_posterior": {t: rate(found[f"posterior {t}"]) for t in LEVELS},
            "identity_by_sampler": by_sampler}


def identity_figure(metrics):
    """Identity against t for each sampler: without label on the left, with the true one, magnified, on the right."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = ("without a label", f"with the true label, s = {metrics['guidance']:g}")
    for axes, kind, title in zip(panels, ("none", "true"), titles):
        curves = {f"{sampler} ({rates[kind][100]['n']:,} digits)": rates[kind]
                  for sampler, rates in metrics["identity_by_sampler"].items()}
        if kind == "none":
            curves["exact posterior mean of\nthe training digits"] = metrics["identity_exact_posterior"]
        for i, (name, rates) in enumerate(curves.items()):
            y = np.array([r["rate"] for r in rates.values()])
            low, high = np.array([r["interval"] for r in rates.values()]).T
            style = dict(color="0.45", ls="--") if "posterior" in name else {}
            axes.errorbar(np.array(LEVELS) + 6 * (i - 1), 100 * y, 100 * np.maximum([y - low, high - y], 0), marker="o",
                          ms=3.5, lw=1.2, capsize=2, label=name, **style)
        axes.axhline(100 * metrics["clean_digits"]["rate"], color="k", lw=0.8, ls=":", label="clean digits")
        axes.set(xlabel="noise level t", ylabel="identity kept (%)", title=title)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7.5, loc="lower left")
    return figure


def confusion_figure(kinds):
    """Confusion matrices side by side, in percent of each class; kinds: {title: counts}."""
    figure = Figure(figsize=(4.1 * len(kinds), 4.3), layout="constrained")
    for axes, (title, counts) in zip(figure.subplots(1, len(kinds)), kinds.items()):
        percent = 100 * np.array(counts) / np.maximum(np.sum(counts, 1, keepdims=True), 1)
        axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        for i, j in np.argwhere(percent > 0):
            axes.text(j, i, f"{percent[i, j]:.0f}" if percent[i, j] >= 1 else "<1", ha="center", va="center",
                      fontsize=7, color="white" if percent[i, j] > 40 else "black")
        axes.set(xticks=range(10), yticks=range(10), xlabel="read after denoising as", ylabel="was", title=title)
        axes.tick_params(length=0)
    return figure


def guidance_figure(found, args):
    """What the scale s does to identity, to the squared error, and to digits drawn from pure noise."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    identity, error, new = figure.subplots(1, 3)
    for t, color in zip(SWEPT, ("C0", "C1")):
        rates = [rate(found[f"sweep {t} {s}"]["confusion"]) for s in SCALES]
        low, high = 100 * np.array([r["interval"] for r in rates]).T
        identity.plot(SCALES, [100 * r["rate"] for r in rates], "o-", ms=4, color=color, label=f"t = {t}")
        identity.fill_between(SCALES, low, high, color=color, alpha=0.15, lw=0)
        error.plot(SCALES, [found[f"sweep {t} {s}"]["psnr"] for s in SCALES], "o-", ms=4, color=color, label=f"t = {t}")
    agreement = [100 * rate(found[f"sweep new {s}"]["confusion"])["rate"] for s in SCALES[1:]]
    variety = [100 * found[f"sweep new {s}"]["spread"] / found["real spread"] for s in SCALES[1:]]
    new.plot(SCALES[1:], agreement, "o-", ms=4, color="C2", label="read as their label")
    new.plot(SCALES[1:], variety, "s--", ms=4, color="C3", label="variety within a class\n(real digits: 100 %)")
    identity.set(title=f"{args.sweep} training digits, DPM-Solver++", ylabel="identity kept (%)")
    error.set(title="the same digits", ylabel="PSNR (dB)")
    new.set(title=f"{args.sweep} new digits", ylabel="%")
    for axes in (identity, error, new):
        axes.set(xlabel="guidance s" if axes is new else "guidance s (0: no label)", xticks=range(axes is new, 6))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def with_readings(figure, judge, rows, digit, first):
    """``picture_rows``' figure of rows, with what the judge reads in the corner of pictures that are no ``digit``."""
    for i, pictures in enumerate(rows[first:], first):
        for j, found in enumerate(predictions(judge, pictures)):
            if found != digit:
                figure.axes[i * len(pictures) + j].text(30.5, 30.5, str(found), ha="right", va="bottom", fontsize=10,
                                                        weight="bold", color="tab:orange")
    return figure


def eights_figure(model, judge, scheduler, test, args, t=500, sampler="dpm"):
    """Four draws of noise on each of three test digits of one class, denoised without and with the label."""
    originals = test.images[test.labels == args.digit][:3].repeat(4, axis=0)
    labels = np.full(len(originals), args.digit)
    noisy = noisy_digits(scheduler, originals, t, args.seed)
    rows = [originals, noisy.clip(-1, 1)] + [cleaned(model, scheduler, noisy, t, sampler, labels, s, args)
                                             for s in (0, args.guidance)]
    names = ["original", f"noisy, t = {t}", "without label", f"with label {args.digit}"]
    return with_readings(picture_rows(rows, names, group=4), judge, rows, args.digit, first=2)


def forced_figure(model, scheduler, test, args, levels=(200, 300, 400, 500, 600, 700), sampler="dpm"):
    """One test digit at several levels of noise, denoised as each of the ten digits."""
    original, rows = test.images[test.labels == args.digit][:1], []
    for t in levels:
        noisy = noisy_digits(scheduler, original, t, args.seed)
        forced = cleaned(model, scheduler, noisy.repeat(10, axis=0), t, sampler, np.arange(10), args.guidance, args)
        rows.append(np.concatenate([original, noisy.clip(-1, 1), forced]))
    titles = ["original", "noisy", *(f"as {k}" for k in range(10))]
    return picture_rows(rows, [f"t = {t}" for t in levels], titles, group=1)


def samples_figure(model, scheduler, args):
    """Two new digits of each class, from the same noise at every scale."""
    labels = np.repeat(np.arange(10), 2)
    rows = [drawn(model, scheduler, labels, s, args) for s in SCALES]
    return picture_rows(rows, [f"s = {s:g}" if s else "no label" for s in SCALES], [str(k) for k in range(10)], group=2)


def main():
    args = arguments()
    model, judge, weights = networks(args)
    settings = settings_of(args) | {"weights": weights, "digit": None}  # only the pictures depend on --digit
    found = Measurements(args.out / "measurements.json", settings, args.resume)
    train, test = load_digits(args.data, "train"), load_digits(args.data, "test")
    if args.sweep > len(train):
        raise ValueError(f"--sweep {args.sweep}: there are {len(train)} training digits")
    scheduler = DDPMScheduler()
    measure(found, args, model, judge, scheduler, train, test)
    metrics = metrics_of(found, args.guidance)
    write_metrics(args.out, metrics)
    kinds = {f"{name}, t = {TELLING}: {100 * metrics['identity'][kind][TELLING]:.1f} %":
             found[f"{BEST} {kind} {TELLING}"]["confusion"]
             for kind, name in (("none", "without a label"), ("true", "with the true label"))}
    for name, figure in {"identity": identity_figure(metrics),
                         "confusion": confusion_figure(kinds),
                         "guidance": guidance_figure(found, args),
                         "eights": eights_figure(model, judge, scheduler, test, args),
                         "forced": forced_figure(model, scheduler, test, args),
                         "samples": samples_figure(model, scheduler, args)}.items():
        save_figure(figure, args.out / f"{name}.png")


if __name__ == "__main__":
    main()
