"""How good drawn digits are against how many passes of the network they take, for each sampler.

    python benchmarks/samplers.py                            # half an hour on 2 cores, into runs/samplers
    python benchmarks/samplers.py --passes 5 8 10 25 --samplers ddim lu

For each sampler and number of passes: digits drawn from the same noise and the same labels without guidance, and two
Fréchet distances of features between them and the test digits (less is better, and only distances of as many samples
go together). One is quality.py's, of the classifier that comes with the package: a mean over all pixels, in which a
blurred digit is as good as a sharp one. The other is of a plain classifier, trained here in a minute and without warped
digits (convolutions and max pooling, a linear layer of 64), which sees whether strokes are sharp. What has been
measured stands in the JSON file and is not done again.

  ddpm      ancestral (Ho et al. 2020), evenly spaced levels
  ddim      Song et al. 2021, evenly spaced levels
  trailing  DPM-Solver++(2M) (Lu et al. 2022), the same levels
  karras    … levels evenly spaced in σ^(1/7) (Karras et al. 2022)
  lu        … levels evenly spaced in log-SNR
  adams     Adams and Bashforth's method of second order for x_0, evenly spaced levels
"""

import argparse
import json
import time
from pathlib import Path

from quality import BATCH, Benchmark
from tqdm import tqdm

import numpy as np
from npdiffusion import Tensor, functional as F, manual_seed, nn, optim
from npdiffusion.diffusion import AdamsBashforthScheduler, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from npdiffusion.figures import save_figure
from npdiffusion.files import atomic_write
from npdiffusion.metrics import frechet_distance

SAMPLERS = {"ddpm": DDPMScheduler(timestep_spacing="trailing"),
            "ddim": DDIMScheduler(timestep_spacing="trailing"),
            "trailing": DPMSolverMultistepScheduler(timestep_spacing="trailing"),
            "karras": DPMSolverMultistepScheduler(use_karras_sigmas=True),
            "lu": DPMSolverMultistepScheduler(use_lu_lambdas=True),
            "adams": AdamsBashforthScheduler()}
TITLES = {"ddpm": "DDPM", "ddim": "DDIM", "trailing": "DPM-Solver++, evenly in t",
          "karras": "DPM-Solver++, Karras", "lu": "DPM-Solver++, evenly in log-SNR",
          "adams": "Adams–Bashforth, evenly in t"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/samplers/samplers.json"), help="the figure goes beside")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--passes", nargs="+", type=int, default=[3, 5, 8, 10, 15, 25])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--model", type=Path, help="a network of your own (default: mnist-ddpm)")
    parser.add_argument("--data", default="mnist", choices=["mnist", "synthetic"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser.parse_args()


def draw(benchmark, scheduler, labels, passes):
    """A digit of each label, rounded to 8 bits."""
    batches = tqdm(range(0, len(labels), BATCH), f"{passes} passes", leave=False)
    drawn = np.concatenate([benchmark.draw_batch(scheduler, labels, i, passes) for i in batches])
    return drawn.astype(np.float32) / 127.5 - 1


def plain_classifier(digits, epochs=2, batch=128):
    """Layers up to the features, and all layers, trained on the digits as they are."""
    rng = manual_seed(0)
    convolutions = (layer for i, o in ((1, 16), (16, 32), (32, 32))
                    for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    features = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 64))
    model = nn.Sequential(features, nn.ReLU(), nn.Linear(64, 10))
    adam = optim.Adam(model.parameters(), lr=1e-3)
    order = np.concatenate([rng.permutation(len(digits)) for _ in range(epochs)])
    for i in tqdm(range(0, len(order), batch), "a plain classifier"):
        images, labels = digits[order[i:i + batch]]
        adam.zero_grad()
        F.cross_entropy(model(Tensor(images)), labels).backward()
        adam.step()
    return features, model


def table(results, passes):
    lines = [f"| {'plain / shipped classifier':31s} | " + " | ".join(f"{n:13d}" for n in passes) + " |",
             "| --- |" + " --- |" * len(passes)]
    for name, found in results.items():
        cells = ("{plain_fid:5.1f} / {classifier_fid:.3f}".format(**found[str(n)]) if str(n) in found else "–"
                 for n in passes)
        lines.append(f"| {TITLES[name]:31s} | " + " | ".join(f"{cell:13s}" for cell in cells) + " |")
    return "\n".join(lines)


def curves(results, floor):
    """The distance against the number of passes, a line for each sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, found), marker in zip(results.items(), "xos^Dv"):
        passes = sorted(map(int, found))
        axes.plot(passes, [found[str(n)]["plain_fid"] for n in passes], marker=marker, ms=4, lw=1.2, label=TITLES[name])
    axes.axhline(floor, color="0.5", lw=1, ls=":", label="as many training digits")
    ticks = sorted({int(n) for found in results.values() for n in found})
    axes.set(xscale="log", yscale="log", xlabel="passes of the network",
             ylabel="Fréchet distance,\nplain classifier's features")
    axes.set_xticks(ticks, map(str, ticks), minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main():
    args = arguments()
    benchmark = Benchmark(args)  # quality.py's data, networks and results in the JSON file
    settings = {"data": args.data, "model": str(args.model or "mnist-ddpm"), "samples": args.samples}
    results = benchmark.results if benchmark.results.get("settings") == settings else {"settings": settings}
    plain, model = (layers.to(args.device) for layers in plain_classifier(benchmark.train))
    recognised = (benchmark.in_batches(model, benchmark.test.images).argmax(1) == benchmark.test.labels).mean()
    print(f"which recognises {recognised:.2%} of the test digits")

    def distances(images):
        return {"plain_fid": frechet_distance(benchmark.in_batches(plain, images), of_plain),
                "classifier_fid": frechet_distance(benchmark.features(images), of_shipped)}

    of_plain = benchmark.in_batches(plain, benchmark.test.images)
    of_shipped = benchmark.features(benchmark.test.images)
    some = np.random.default_rng(1).choice(len(benchmark.train), args.samples, replace=False)
    results["floor"] = distances(benchmark.train.images[some])
    labels = benchmark.labels(args.samples)
    measured = results.setdefault("samplers", {})
    for passes in args.passes:
        for name in args.samplers:
            found = measured.setdefault(name, {})
            if str(passes) in found:
                continue
            started = time.perf_counter()
            found[str(passes)] = distances(draw(benchmark, SAMPLERS[name], labels, passes))
            found[str(passes)]["minutes"] = (time.perf_counter() - started) / 60
            print(f"{TITLES[name]}, {passes} passes: {found[str(passes)]['plain_fid']:.2f}", flush=True)
            with atomic_write(args.json) as file:
                file.write(json.dumps(results, indent=1).encode() + b"\n")
    save_figure(curves(measured, results["floor"]["plain_fid"]), args.json.parent / "samplers.png")
    print(table(measured, args.passes))


if __name__ == "__main__":
    main()
