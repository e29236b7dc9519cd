"""Train the denoising diffusion model on electron micrographs, denoise whole sections with it, and draw new patches.

    python examples/denoise_micrographs.py                    # an hour on one core, into runs/micrographs
    python examples/denoise_micrographs.py --resume
    python examples/denoise_micrographs.py --evaluate         # figures and numbers of the network in examples/weights
    python examples/denoise_micrographs.py --preset smoke --data synthetic

The sections are serial-section TEM of the ventral nerve cord of a Drosophila larva (Gerhard et al. 2013, figshare
856713; CC BY-NC-SA 3.0); the first 16 train, those after them test. Pixels are taken together two by two (9.2 nm), so
that a patch of 64×64 shows a few cells. Noise is given in grey levels of 0…255: its standard deviation σ. It is added
to pictures that have noise of their own (about 10 grey levels). That is part of what must be restored, but nobody can
know it, so it bounds every PSNR, most of all where little noise is added.

Gaussian filter, total variation and non-local means (scikit-image; without it they are left out) stand beside the
network, each with the parameter that is best on training sections at the same level. All denoised sections then go
through the segmentation network of segment_mitochondria.py, which has never seen any.

Written to --out: metrics.json, denoised.png, methods.png (where "diffusion model" is its one-shot estimate, the mean of
all that the noise could hide, and "sampled" one such picture, by DPM-Solver++), curves.png, section.png, drawn.png,
drawn-large.png, model.safetensors, checkpoint.safetensors, log.csv and loss.png.
"""

from command_line import above_0, integer, load_network, parse, parser_for, settings_of, write_metrics

from pathlib import Path

import numpy as np
from segment_mitochondria import FOUND, INVENTED, MISSED, coloured, probability, turned as turned_square

from npdiffusion import Tensor, functional as F, to_device
from npdiffusion.data import load_micrographs
from npdiffusion.diffusion import DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr, segmentation_scores, ssim
from npdiffusion.models import UNet, pretrained
from npdiffusion.tiling import predict_tiled
from npdiffusion.training import Training

SCHEDULER = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SOLVER = DPMSolverMultistepScheduler.from_config(SCHEDULER.config | {"use_lu_lambdas": True})
PATCH, STRIDE = 64, 8  # side of a training patch, and distance between their corners
TILE, OVERLAP = 128, 32
LARGE = 256  # side of a picture drawn in one piece: the network is convolutional and takes any size
NETWORK = "diffusion model"

PRESETS = {"smoke": dict(steps=6, batch_size=8, channels=[8, 16], sigmas=[50], draw=2, draw_steps=3),
           "cpu": dict(steps=4500, batch_size=32, channels=[32, 48, 64, 64], sigmas=[10, 25, 50, 75, 100, 150],
                       draw=24, draw_steps=20),
           "long": dict(steps=40000, batch_size=32, channels=[32, 48, 64, 64], sigmas=[10, 25, 50, 75, 100, 150],
                        draw=24, draw_steps=50)}


def arguments():
    parser = parser_for(__doc__, "micrographs", data=("sstem", "lucchi", "synthetic"))
    parser.add_argument("--evaluate", action="store_true", help="no training: judge the network in examples/weights")
    parser.add_argument("--segmenter", type=Path, metavar="FILE",
                        help="a model.safetensors of segment_mitochondria.py; default: the one in weights/")
    parser.add_argument("--sigmas", type=integer(1, int(127.5 * SCHEDULER.sigmas[-1])), nargs="+",
                        help="levels of noise to remove, in grey levels")
    parser.add_argument("--draw", type=integer(1), help="number of patches to draw")
    parser.add_argument("--draw-steps", type=integer(1, 1024), help="steps from noise to patch")
    parser.add_argument("--lr", type=above_0, default=1e-3)
    return parse(parser, PRESETS)


def pooled(images):
    """uint8 (n, H, W) → float32 (n, 1, H/2, W/2) in [−1, 1], the mean of 2×2 pixels each."""
    n, h, w = images.shape
    blocks = images[:, :h // 2 * 2, :w // 2 * 2].reshape(n, 1, h // 2, 2, w // 2, 2)
    return blocks.mean((3, 5), dtype=np.float32) / 127.5 - 1


def windows(sections, stride):
    """All patches of the sections (n, 1, H, W), ``stride`` pixels apart: a view (n, 1, rows, columns, 64, 64)."""
    return np.lib.stride_tricks.sliding_window_view(sections, (PATCH, PATCH), (2, 3))[:, :, ::stride, ::stride]


def turned(patches, ways):
    """Each square patch (1, 64, 64) laid in one of 8 ways: turned by ``way`` quarters, mirrored first from 4 on."""
    return np.stack([turned_square(patch, way) for patch, way in zip(patches, ways)])


def estimator(model, sigma, method="one-shot"):
    """The function that denoises tiles (N, 1, H, W) with noise of sigma grey levels."""
    def predict(tiles):
        return denoise(model, SCHEDULER, tiles, method=method, sigma=sigma / 127.5, generator=np.random.default_rng(0))

    return predict


def restored(model, noisy, sigma, method="one-shot"):
    """The network's estimate for whole pictures (n, 1, H, W) with noise of sigma grey levels, in blended tiles."""
    predict = estimator(model, sigma, method)
    return np.stack([predict_tiled(predict, picture, tile=TILE, overlap=OVERLAP) for picture in noisy])


def noisy_version(pictures, sigma, seed=0):
    """The pictures plus noise of sigma grey levels, not clipped."""
    noise = np.random.default_rng([seed, sigma]).standard_normal(pictures.shape, dtype=np.float32)
    return pictures + noise * (sigma / 127.5)


def baselines():
    """{name: (function of one picture (H, W), its noise and a parameter; values of the parameter to try)}."""
    try:
        from skimage.filters import gaussian
        from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
    except ImportError:
        print("scikit-image is not installed (pip install scikit-image): no baselines")
        return {}

    def nl_means(x, noise, parameter):
        size, strength = parameter
        return denoise_nl_means(x, patch_size=size, patch_distance=9, h=strength * noise, sigma=noise)

    return {"Gaussian filter": (lambda x, noise, width: gaussian(x, width), [0.3 * 1.15 ** i for i in range(16)]),
            "total variation": (lambda x, noise, weight: denoise_tv_chambolle(x, weight * noise, eps=1e-6,
                                                                              max_num_iter=300),
                                [0.2 * 1.2 ** i for i in range(11)]),
            "non-local means": (nl_means, [(size, 0.3 + 0.1 * i) for size in (5, 7) for i in range(7)])}


def tuned(function, parameters, pictures, sigma):
    """The parameter that gives the highest PSNR on these pictures."""
    noisy = noisy_version(pictures, sigma, seed=1)

    def score(parameter):
        return np.mean([psnr(function(x[0], sigma / 127.5, parameter)[None], y)[0] for x, y in zip(noisy, pictures)])

    return max(parameters, key=score)


def all_methods(model, train, test, sigmas):
    """{method: {sigma: denoised test sections}}, and the parameters found for the baselines."""
    others, chosen = baselines(), {}
    results = {name: {} for name in ["noisy", *others, NETWORK]}
    for sigma in sigmas:
        noisy = noisy_version(test, sigma)
        results["noisy"][sigma] = noisy
        for name, (function, parameters) in others.items():
            best = tuned(function, parameters, train[::5, :, 64:192, 64:192], sigma)
            results[name][sigma] = np.stack([function(x[0], sigma / 127.5, best)[None] for x in noisy])
            chosen.setdefault(name, {})[sigma] = best
        results[NETWORK][sigma] = restored(model, noisy, sigma)
    return results, chosen


def segmenter(args):
    """The segmentation network, or None without a checkout, where none comes along."""
    try:
        return load_network(args.segmenter, "sstem-mitochondria", UNet, in_channels=16, out_channels=16, time=False,
                            num_classes=None).to(args.device)
    except ValueError as error:
        if args.segmenter:
            raise
        print(f"no segmentation ({error})")


def segmented(network, pictures):
    """Where the segmentation network sees mitochondria in pictures (n, 1, H, W), enlarged to its own pixels."""
    large = pictures[:, 0].repeat(2, 1).repeat(2, 2)
    return np.stack([probability(network, picture, tta=False) > 0.5 for picture in large])


def nearest(patches, sections):
    """The training patch most like each patch (n, 1, 64, 64), in any of its 8 orientations: it, and its distance.

    Searched at every fourth pixel both ways. The distance is the root of the mean squared difference.
    """
    n = len(patches)
    queries = np.concatenate([turned(patches, [way] * n) for way in range(8)]).reshape(8 * n, -1)
    best, found = np.full(8 * n, np.inf), np.empty_like(queries)
    for section in windows(sections, 4)[:, 0]:
        for row in section:
            row = row.reshape(len(row), -1)
            distance = (row * row).sum(1) - 2 * queries @ row.T
            closest = distance.argmin(1)
            better = distance.min(1) < best
            found[better], best[better] = row[closest[better]], distance.min(1)[better]
    way = best.reshape(8, n).argmin(0)
    found = found.reshape(8, n, 1, PATCH, PATCH)[way, np.arange(n)]
    # a patch turned by way lies as found: lay found back
    back = turned(found, np.where(way < 4, -way % 4, way))
    return back, np.sqrt(((back - patches) ** 2).mean((1, 2, 3)))


def denoised_figure(results, test):
    """Noisy, denoised and original patches, the same two for each level."""
    sigmas = list(results["noisy"])
    h, w = test.shape[2:]
    corners = [(0, h // 2 - 32, w // 4), (-1, h - 100, w - 90)]

    def patches(pictures):
        return [pictures[n, :, y:y + PATCH, x:x + PATCH] for n, y, x in corners]

    rows = [np.concatenate([patches(pictures) for pictures in column]) for column in
            (results["noisy"].values(), results[NETWORK].values(), [test] * len(sigmas))]
    return picture_rows(rows, ["noisy", "denoised", "original"], [f"σ = {sigma}" for sigma in sigmas], group=2,
                        cell=0.8)


def methods_figure(model, results, test):
    """A close-up by each method, a row for every other level, with PSNR."""
    from matplotlib.figure import Figure

    sigmas = list(results["noisy"])[-1::-2][::-1]
    h, w = test.shape[2:]
    box = slice(0, 1), slice(0, 1), slice(h // 2, h // 2 + 128), slice(w // 2, w // 2 + 128)
    names = [*results, "sampled", "original"]
    figure = Figure(figsize=(1.55 * len(names), 1.75 * len(sigmas) + 0.3), layout="constrained")
    for sigma, row in zip(sigmas, figure.subplots(len(sigmas), len(names), squeeze=False)):
        pictures = {name: result[sigma][box] for name, result in results.items()}
        pictures["sampled"] = restored(model, pictures["noisy"], sigma, "dpm")
        pictures["original"] = test[box]
        for (name, picture), axes in zip(pictures.items(), row):
            axes.imshow(picture[0, 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if sigma == sigmas[0]:
                axes.set_title(name, fontsize=9)
            if name != "original":
                axes.set_xlabel(f"{psnr(picture, test[box])[0]:.1f} dB", fontsize=8)
        row[0].set_ylabel(f"σ = {sigma}", fontsize=9)
    return figure


def curves_figure(scores):
    """PSNR, SSIM and IoU of the segmentation against the noise added, a line for each method."""
    from matplotlib.figure import Figure

    titles = {"psnr": "PSNR in dB", "ssim": "SSIM", "iou": "IoU of the mitochondria found"}
    shown = [name for name in titles if scores.get(name)]
    figure = Figure(figsize=(3.6 * len(shown), 3.2), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for name, values in scores[score].items():
            if isinstance(values, dict):
                main = name == NETWORK
                axes.plot(list(values), list(values.values()), "o-" if main else ".-", lw=2 if main else 1, label=name,
                          color="black" if main else "0.7" if name == "noisy" else None)
            elif name == "clean":
                axes.axhline(values, color="black", lw=1, ls=":", label="original section")
        axes.set(xlabel="noise σ in grey levels", ylabel=titles[score], xlim=(0, None))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    return figure


def section_figure(pictures, labelled):
    """A whole section and a close-up of it, three times, with what the segmentation finds in each.

    pictures: {title: (picture (H, W), mitochondria found (2H, 2W), or None)}.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    h, w = labelled.shape
    side = min(h, w) // 4
    corners = [(y, x) for y in range(0, h - side + 1, side // 4) for x in range(0, w - side + 1, side // 4)]
    y, x = max(corners, key=lambda c: labelled[c[0]:c[0] + side, c[1]:c[1] + side].sum())
    for (title, (picture, found)), (whole, close) in zip(pictures.items(), figure.subplots(2, 3).T):
        grey = np.rint((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        if found is not None:
            title += f": IoU {segmentation_scores(found, labelled)['iou']:.2f}"
            grey = coloured(grey, [(labelled & found, FOUND), (labelled & ~found, MISSED),
                                   (found & ~labelled, INVENTED)], 0.35)
        whole.imshow(grey, cmap="gray", vmin=0, vmax=255)
        whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor="yellow", lw=1.2))
        whole.set_title(title, fontsize=11)
        close.imshow(grey[y:y + side, x:x + side], cmap="gray", vmin=0, vmax=255)
        for axes in (whole, close):
            axes.set_axis_off()
    if found is not None:
        figure.legend(handles=[Patch(color=np.array(c) / 255, label=text) for c, text in
                               ((FOUND, "found"), (MISSED, "missed"), (INVENTED, "invented"))],
                      loc="outside lower center", ncols=3, frameon=False)
    return figure


def evaluate(model, network, train, test, labelled, args):
    """Everything that is measured, as a dict; writes the figures. network: segments, or None."""
    results, parameters = all_methods(model, train, test, args.sigmas)
    scores = {name: {method: {sigma: float(score(pictures.astype(np.float32), test).mean())
                              for sigma, pictures in by_sigma.items()} for method, by_sigma in results.items()}
              for name, score in (("psnr", psnr), ("ssim", ssim))}
    save_figure(denoised_figure(results, test), args.out / "denoised.png")
    save_figure(methods_figure(model, results, test), args.out / "methods.png")

    sigma = args.sigmas[len(args.sigmas) // 2]
    masks = None, None, None
    if network is not None:
        labelled = labelled[:, :2 * test.shape[2], :2 * test.shape[3]]
        found = {method: {sigma: segmented(network, pictures) for sigma, pictures in by_sigma.items()}
                 for method, by_sigma in results.items()}
        clean = segmented(network, test)
        scores["iou"] = {method: {sigma: segmentation_scores(mask, labelled)["iou"] for sigma, mask in by_sigma.items()}
                         for method, by_sigma in found.items()}
        scores["iou"]["clean"] = segmentation_scores(clean, labelled)["iou"]
        masks = found["noisy"][sigma][0], found[NETWORK][sigma][0], clean[0]
    pictures = results["noisy"][sigma][0, 0], results[NETWORK][sigma][0, 0], test[0, 0]
    titles = f"noisy, σ = {sigma} grey levels", "denoised", "original"
    save_figure(section_figure(dict(zip(titles, zip(pictures, masks))), labelled[0]), args.out / "section.png")
    save_figure(curves_figure(scores), args.out / "curves.png")

    def draw(count, side):
        pictures = generate(model, SOLVER, (count, 1, side, side), num_inference_steps=args.draw_steps,
                            generator=np.random.default_rng(args.seed), progress=True)
        return to_device(pictures, "cpu")

    drawn = draw(args.draw, PATCH)
    real = windows(test, PATCH)[:, 0].reshape(-1, 1, PATCH, PATCH)
    real = real[np.random.default_rng(0).permutation(len(real))[:args.draw]]
    closest, distance = nearest(np.concatenate([drawn, real]), train)
    shown = min(10, args.draw)
    save_figure(picture_rows([drawn[:shown], closest[:shown], real[:shown]],
                             ["drawn from noise", "nearest training patch", "real (test sections)"], cell=0.85),
                args.out / "drawn.png")
    large = np.concatenate([draw(1, LARGE), test[:1, :, -LARGE:, -LARGE:]])
    save_figure(picture_rows([large], [""], ["drawn from noise in one piece", "real (a test section)"], cell=3.4),
                args.out / "drawn-large.png")
    return {**scores, "parameters": parameters, "nearest_drawn": float(127.5 * distance[:len(drawn)].mean()),
            "nearest_real": float(127.5 * distance[len(drawn):].mean())}


def main():
    args = arguments()
    train_set, test_set = load_micrographs(args.data)
    train, test = pooled(train_set.images), pooled(test_set.images)
    network = segmenter(args)  # one that does not do shows before the work
    if args.evaluate:
        model = pretrained("sstem-ddpm").to(args.device)
        return write_metrics(args.out, evaluate(model, network, train, test, test_set.masks, args))
    patches = windows(train, STRIDE)
    grid = patches.shape[0], *patches.shape[2:4]
    model = UNet(channels=args.channels).to(args.device)
    settings = {k: v for k, v in settings_of(args).items()
                if k in ("data", "seed", "steps", "batch_size", "lr", "channels")}
    run = Training(model, int(np.prod(grid)), settings, steps=args.steps, batch_size=args.batch_size, lr=args.lr)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {np.prod(grid)} patches")

    def batch(index):
        section, row, column = np.unravel_index(index, grid)
        x0 = turned(patches[section, :, row, column], run.rng.integers(8, size=len(index)))
        return x0, run.rng.integers(0, SCHEDULER.num_train_timesteps, len(index))

    def loss(x0, t):
        noise = run.device_rng.standard_normal(x0.shape, dtype=np.float32)
        v = SCHEDULER.get_velocity(x0, noise, t)
        return F.mse_loss(model(Tensor(SCHEDULER.add_noise(x0, noise, t)), t), Tensor(v))

    centre = test[:, :, test.shape[2] // 4:test.shape[2] // 2, test.shape[3] // 4:test.shape[3] // 2]

    def report(run):
        result = restored(model, noisy_version(centre, 50), 50)
        run.history.append({"minutes": run.seconds / 60, "psnr_50": float(psnr(result, centre).mean())})

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, report=report, title="DDPM on micrographs")
    with run.averaged():
        scores = evaluate(model, network, train, test, test_set.masks, args)
    write_metrics(args.out, {**scores, "minutes": run.seconds / 60, "history": run.history})


if __name__ == "__main__":
    main()
