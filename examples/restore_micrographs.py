"""Fill gaps in electron micrographs, and double their resolution, with a network that was only taught to denoise.

    python examples/restore_micrographs.py                    # minutes on 2 cores, into runs/restored
    python examples/restore_micrographs.py --resume           # goes on; with --samples 16, to more samples
    python examples/restore_micrographs.py --preset smoke --data synthetic

Nothing is trained. The network of denoise_micrographs.py is differentiated at each step of sampling, which draws it
towards pictures that fit what was measured (``npdiffusion.diffusion.restore``), and what comes out fits exactly. The
test sections, their pixels taken together two by two as there, are measured in two ways: with gaps, bands of 4 to 10
rows that the scan lost and specks of dust; and coarse, each square of 2×2 pixels as its mean. The network is
convolutional, so that a whole section is restored in one piece: there are no seams.

Every sample shows details that nobody measured but that could have been there; in gaps it lacks the grain of real
sections. The samples' mean is nearer to the truth, and smoother; where they differ (their spread), do not believe them.
Beside them stand, for gaps, linear interpolation between rows and, with scikit-image, a Gaussian mean of what was
measured nearby and the biharmonic equation; for coarse sections bicubic interpolation, and Lanczos' made to fit what
was measured. All go through the segmentation network of segment_mitochondria.py.

Written to --out: metrics.json, close-ups.png (where the spread is white from a standard deviation of 64 grey levels
on), gaps.png and coarse.png (a whole section, measured, restored as the samples' mean, and original, with the
mitochondria found in each) and samples.safetensors (all that --resume needs).
"""

from command_line import at_least_0, checksum, integer, load_network, parse, parser_for, settings_of, write_metrics

from pathlib import Path

import numpy as np
from denoise_micrographs import SCHEDULER, pooled, section_figure, segmented, segmenter
from PIL import Image

from npdiffusion.checkpoint import load_file, save_file
from npdiffusion.data import load_micrographs
from npdiffusion.diffusion import AveragePool, Inpaint, restore
from npdiffusion.distributed import Generator, over_ranks
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr, segmentation_scores, ssim
from npdiffusion.models import UNet
from npdiffusion.training import check_settings

CLOSE = 96  # side in pixels of the close-ups
PRESETS = {"smoke": dict(steps=2, samples=2), "cpu": dict(steps=10, samples=8), "long": dict(steps=20, samples=32)}


def arguments():
    parser = parser_for(__doc__, "restored", data=("sstem", "synthetic"), trains=False)
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="a model.safetensors of denoise_micrographs.py; default: the one in weights/")
    parser.add_argument("--segmenter", type=Path, metavar="FILE",
                        help="a model.safetensors of segment_mitochondria.py; default: the one in weights/")
    parser.add_argument("--steps", type=integer(1, 1024), help="steps from noise to section")
    parser.add_argument("--samples", type=integer(2), help="number of samples of each section")
    parser.add_argument("--weight", type=at_least_0, default=2.0, help="factor of what draws samples to the measured")
    return parse(parser, PRESETS)


def measured_pixels(shape, rng):
    """Where a section was measured, (H, W) of bool: not in a band in every 32 rows, nor under specks of dust."""
    mask = np.ones(shape, bool)
    for top in range(0, shape[0], 32):
        start = top + rng.integers(8, 20)
        mask[start:start + rng.integers(4, 11)] = False
    y, x = np.ogrid[:shape[0], :shape[1]]
    for _ in range(mask.size // 8000):
        mask[(y - rng.uniform(0, shape[0]))**2 + (x - rng.uniform(0, shape[1]))**2 < rng.uniform(3, 10)**2] = False
    return mask


def problems(shape):
    """{name: (operator, {classical method: its function of what was measured, (h, w)})} for pictures (H, W)."""
    mask = measured_pixels(shape, np.random.default_rng(0))

    def linear(y):
        rows = np.arange(len(y))
        return np.stack([np.interp(rows, rows[known], column[known]) for column, known in zip(y.T, mask.T)], 1)

    def gaussian(y):  # of the known pixels nearby; a width of 2 is best on training sections
        sums, weights = (filters.gaussian(x, 2, truncate=8) for x in (y.astype(np.float64), mask.astype(np.float64)))
        return np.where(mask, y, sums / weights)

    def enlarged(y, method):
        return np.asarray(Image.fromarray(y).resize(shape[::-1], method))

    def lanczos(y):
        x, y = enlarged(y, Image.Resampling.LANCZOS)[None, None], y[None, None]
        return (x + pool.pinv(y - pool.forward(x)))[0, 0]

    pool, fillings = AveragePool(2), {"linear": linear}
    try:
        from skimage import filters
        from skimage.restoration import inpaint_biharmonic
        fillings |= {"Gaussian": gaussian, "biharmonic": lambda y: inpaint_biharmonic(y, ~mask)}
    except ImportError:
        print("scikit-image is not installed (pip install scikit-image): gaps are filled by linear interpolation alone")
    return {"gaps": (Inpaint(mask), fillings),
            "coarse": (pool, {"bicubic": lambda y: enlarged(y, Image.Resampling.BICUBIC), "fitted Lanczos": lanczos})}


def draw(model, operators, test, args):
    """{problem: samples (args.samples, n, 1, H, W)}; each one is kept in --out as soon as it is drawn."""
    path, samples = args.out / "samples.safetensors", {}
    settings = settings_of(args) | {"samples": None, "weights": checksum(model)}  # more can be drawn later
    if args.resume:
        samples, held = load_file(path)
        check_settings(path, held, settings)
    elif path.exists():
        raise SystemExit(f"{path} exists: go on with --resume, or choose another --out")
    model.to(args.device)
    for sample in range(args.samples):
        for k, (problem, operator) in enumerate(operators.items()):
            name = f"{problem} {sample}"
            if name not in samples:
                print(f"{problem}: sample {sample + 1} of {args.samples}")
                options = dict(num_inference_steps=args.steps, weight=args.weight, progress=True,
                               generator=Generator(np.random.default_rng([args.seed, k, sample])))
                samples[name] = over_ranks(lambda y: restore(model, SCHEDULER, y, operator, **options),
                                           operator.forward(test))
                save_file(path, samples, settings)
    return {problem: np.stack([samples[f"{problem} {sample}"] for sample in range(args.samples)])
            for problem in operators}


def scores(pictures, test, operator, found, labelled):
    """How near pictures (n, 1, H, W) are to the test sections, and what is found in them to the labels."""
    values = {"psnr": psnr(pictures, test), "ssim": ssim(pictures, test)}
    if isinstance(operator, Inpaint):
        values["psnr_missing"] = psnr(pictures[..., ~operator.mask], test[..., ~operator.mask])
    if found[0] is not None:
        values["iou"] = segmentation_scores(found, labelled)["iou"]
    return {name: float(np.mean(value)) for name, value in values.items()}


def close_ups(results, samples, test):
    """A row for each problem: measured, the last classical method, samples, mean and spread, and the original."""
    top, left = (size // 2 for size in test.shape[2:])
    rows, names = [], []
    for problem, pictures in results.items():
        *_, (name, classical), _, (mean, average) = pictures.items()
        row = [pictures["measured"], classical, *samples[problem][:2], average, 4 * samples[problem].std(0) - 1, test]
        rows.append(np.stack([x[0, :, top:top + CLOSE, left:left + CLOSE] for x in row]).clip(-1, 1))
        names.append(name)
    columns = ["measured", ", ".join(names), "one sample", "another", mean, "spread", "original"]
    return picture_rows(rows, list(results), columns, cell=1.5)


def main():
    args = arguments()
    _, test_set = load_micrographs(args.data)
    test = pooled(test_set.images)
    labelled = test_set.masks[:, :2 * test.shape[2], :2 * test.shape[3]]
    model = load_network(args.model, "sstem-ddpm", UNet, in_channels=1, out_channels=1, time=True, num_classes=None)
    network = segmenter(args)  # one that does not do shows before the work
    tasks = problems(test.shape[2:])
    samples = draw(model, {problem: operator for problem, (operator, _) in tasks.items()}, test, args)

    def segment(pictures):
        return [None] * len(pictures) if network is None else segmented(network, pictures)

    results, metrics, mean = {}, {"misfit": {}}, f"mean of {args.samples}"
    clean = segment(test)
    if network is not None:
        metrics["iou_original"] = segmentation_scores(clean, labelled)["iou"]
    for problem, (operator, classical) in tasks.items():
        y, (one, *_), average = operator.forward(test), samples[problem], samples[problem].mean(0)
        metrics["misfit"][problem] = max(float(abs(operator.forward(x) - y).max()) for x in samples[problem])
        filled = {name: np.stack([fill(picture)[None] for picture in y[:, 0]]).clip(-1, 1).astype(np.float32)
                  for name, fill in classical.items()}
        results[problem] = {"measured": operator.pinv(y), **filled, "one sample": one, mean: average}
        found = {name: segment(pictures) for name, pictures in results[problem].items()}
        metrics[problem] = {name: scores(pictures, test, operator, found[name], labelled)
                            for name, pictures in results[problem].items()}
        panels = {"measured": (results[problem]["measured"], found["measured"]), "restored": (average, found[mean]),
                  "original": (test, clean)}
        save_figure(section_figure({title: (pictures[0, 0], masks[0]) for title, (pictures, masks) in panels.items()},
                                   labelled[0]), args.out / f"{problem}.png", dpi=80)
    save_figure(close_ups(results, samples, test), args.out / "close-ups.png")
    write_metrics(args.out, metrics)
    for problem in tasks:
        print(f"\n{problem:16}", *(f"{score:>12}" for score in metrics[problem]["measured"]))
        for name, values in metrics[problem].items():
            print(f"{name:16}", *(f"{value:12.3f}" for value in values.values()))


if __name__ == "__main__":
    main()
