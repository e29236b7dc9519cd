"""Find the mitochondria in electron micrographs: a UNet that learns it from a few labelled sections.

    python examples/segment_mitochondria.py                      # minutes on 2 cores, into runs/mitochondria
    python examples/segment_mitochondria.py --preset long        # longer; on these sections no better
    python examples/segment_mitochondria.py --preset smoke --data synthetic
    python examples/segment_mitochondria.py --predict mine.tif   # only segment a micrograph of yours
    python examples/segment_mitochondria.py --images DIR --masks DIR   # train on your own; the last fifth is the test

The sections are serial-section TEM of the ventral nerve cord of a Drosophila larva (Gerhard et al. 2013, figshare
856713; CC BY-NC-SA 3.0), 1024×1024 pixels of 4.6 nm. The first 16 train, those after them test: neighbours look alike
(the labels of the section before, copied, score an IoU of 0.69). The network sees each square of 4×4 pixels as one with
16 channels: mitochondria are then 10 to 30 wide, so that a small network sees all of one, and nothing is lost. The loss
is binary cross-entropy plus Dice.

Written to --out: metrics.json (scores of each test section and of all), segmentation.png, curve.png (test IoU against
minutes of training), model.safetensors, checkpoint.safetensors, log.csv and loss.png. --predict writes there
NAME-mask.png (0 or 255) and NAME-overlay.png.
"""

from command_line import above_0, integer, load_network, parse, parser_for, settings_of, write_metrics

import argparse
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from npdiffusion import Tensor, functional as F, no_grad
from npdiffusion.data import Micrographs, load_micrographs, load_pairs, read_micrograph
from npdiffusion.distributed import all_reduce
from npdiffusion.figures import save_figure
from npdiffusion.files import atomic_write
from npdiffusion.metrics import segmentation_scores
from npdiffusion.models import UNet
from npdiffusion.tiling import predict_tiled
from npdiffusion.training import Training

FOLD = 4  # a square of 4×4 pixels becomes 16 channels of one
PATCHES = 64  # of each section in an epoch
TILE, OVERLAP = 640, 128
FOUND, MISSED, INVENTED = (0, 158, 115), (230, 140, 0), (60, 140, 230)  # the colour-blind tell them apart, too
PRESETS = {"smoke": dict(steps=6, batch_size=2, channels=[8, 16], patch=64),
           "cpu": dict(steps=3000, batch_size=8, channels=[32, 64, 96], patch=256, save_minutes=0.5),
           "long": dict(steps=8000, batch_size=8, channels=[32, 64, 96], patch=256, save_minutes=1.0)}


def arguments():
    parser = parser_for(__doc__, "mitochondria", data=("sstem", "lucchi", "synthetic"))
    parser.add_argument("--images", type=Path, metavar="DIR", help="your own micrographs instead")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="their labels: files of the same names")
    parser.add_argument("--predict", type=Path, metavar="FILE", help="only segment this micrograph")
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help="for --predict; default: model.safetensors in --out, or else the one that comes along")
    parser.add_argument("--tta", action=argparse.BooleanOptionalAction, default=True,
                        help="average the predictions for the picture turned and mirrored in 8 ways")
    parser.add_argument("--lr", type=above_0, default=2e-3)
    parser.add_argument("--patch", type=integer(1), help="side in pixels of what the network trains on")
    args = parse(parser, PRESETS)
    halved = FOLD * 2 ** (len(args.channels) - 1)
    if args.patch < halved or args.patch % halved:
        parser.error(f"--patch must be a multiple of {halved} for {len(args.channels)} resolutions, got {args.patch}")
    if (args.images is None) != (args.masks is None):
        parser.error("--images and --masks go together")
    if args.model and not args.predict:
        parser.error("--model goes with --predict")
    return args


def load(args):
    """(train, test): the set chosen by --data, or the user's pairs, of which the last fifth is the test."""
    if args.images is None:
        return load_micrographs(args.data)
    data = load_pairs(args.images, args.masks)
    if data.masks.mean() > 0.95 or all(np.unique(image).size <= 2 for image in data.images):
        raise ValueError(f"the pictures in {args.images} look like masks, or those in {args.masks} like pictures: "
                         "have you exchanged --images and --masks?")
    if len(data) < 2:
        raise ValueError(f"{args.images} has one picture; at least two are needed, one to train and one to test")
    first = len(data) - max(1, len(data) // 5)
    return (Micrographs(data.images[part], data.masks[part], data.names[part])
            for part in (slice(first), slice(first, None)))


def digest(*sets):
    """What tells these pictures, masks and names from others: a SHA-256."""
    parts = [hashlib.sha256(part).hexdigest() for some in sets for part in
             (some.images.tobytes(), some.masks.tobytes(), repr((some.names, some.images.shape)).encode())]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def normalized(image):
    """A grey picture as float32 with mean 0 and standard deviation 1."""
    image = image.astype(np.float32)
    return (image - image.mean()) / max(image.std(), 1e-6)


def folded(x):
    """(N, 1, H, W) -> (N, 16, H/4, W/4): the pixels of each 4×4 square side by side in the channels."""
    n, _, h, w = x.shape
    return x.reshape(n, h // FOLD, FOLD, w // FOLD, FOLD).transpose(0, 2, 4, 1, 3).reshape(n, -1, h // FOLD, w // FOLD)


def unfolded(x):
    """(N, 16, H, W) -> (N, 1, 4·H, 4·W): what ``folded`` undoes."""
    n, _, h, w = x.shape
    return x.reshape(n, FOLD, FOLD, h, w).transpose(0, 3, 1, 4, 2).reshape(n, 1, h * FOLD, w * FOLD)


def turned(x, way):
    """(…, H, W) turned by ``way`` quarters, and mirrored first for ways 4 to 7: all the ways to lay a square."""
    return np.rot90(x[..., ::-1] if way >= 4 else x, way, (-2, -1))


def turned_back(x, way):
    x = np.rot90(x, -way, (-2, -1))
    return x[..., ::-1] if way >= 4 else x


def random_patch(image, mask, side, rng):
    """A square of a section at a random place, turned, mirrored and of changed contrast, and its labels."""
    y, x = (rng.integers(size - side + 1) for size in image.shape)
    way, square = rng.integers(8), (slice(y, y + side), slice(x, x + side))
    contrast, brightness = float(np.exp(rng.uniform(-0.2, 0.2))), float(rng.uniform(-0.2, 0.2))
    return turned(image[square], way) * contrast + brightness, turned(mask[square], way)


def dice_loss(logits, target):
    """1 − (2·Σ p·y + 1) / (Σ p + Σ y + 1), sums over the whole batch, p = σ(logits) (Milletari et al. 2016, sec. 3)."""
    p = F.sigmoid(logits)
    return 1 - (2 * all_reduce((p * target).sum()) + 1) / (all_reduce((p + target).sum()) + 1)


def estimator(model):
    """The function that says of tiles (N, 1, H, W), normalized, how likely each pixel belongs to a mitochondrion."""
    def predict(tiles):
        with no_grad():
            return unfolded(F.sigmoid(model(Tensor(folded(tiles), device=model.device))).cpu().data)

    return predict


def probability(model, image, tta=True):
    """How likely each pixel of a micrograph (H, W) belongs to a mitochondrion: (H, W) in [0, 1].

    Any size; in overlapping tiles. tta: averaged over the 8 ways to lay the picture (test-time augmentation).
    """
    predict, x, ways = estimator(model), normalized(image)[None], 8 if tta else 1
    return sum(turned_back(predict_tiled(predict, turned(x, way), tile=TILE, overlap=OVERLAP, batch_size=1), way)[0]
               for way in range(ways)) / ways


def coloured(image, masks_and_colours, strength=0.4):
    """A grey picture (H, W) uint8 with masks laid over it: (H, W, 3) uint8."""
    picture = np.repeat(image[..., None], 3, 2).astype(np.float32)
    for mask, colour in masks_and_colours:
        picture[mask] += strength * (np.array(colour, np.float32) - picture[mask])
    return picture.astype(np.uint8)


def segmentation_figure(image, labelled, predicted):
    """Original, labelled, predicted and errors: the whole section, and below the quarter with most errors."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    wrong = labelled != predicted
    side = min(image.shape) // 3
    corners = [(y, x) for y in range(0, image.shape[0] - side + 1, side // 4 or 1)
               for x in range(0, image.shape[1] - side + 1, side // 4 or 1)]
    y, x = max(corners, key=lambda c: wrong[c[0]:c[0] + side, c[1]:c[1] + side].sum())
    errors = [(labelled & predicted, FOUND), (labelled & ~predicted, MISSED), (predicted & ~labelled, INVENTED)]
    pictures = {"original": coloured(image, []), "labelled": coloured(image, [(labelled, FOUND)]),
                "predicted": coloured(image, [(predicted, FOUND)]), "errors": coloured(image, errors, 0.7)}
    height, width = image.shape
    figure = Figure(figsize=(10, 0.4 + 2.5 * height / width + 2.5), layout="constrained")
    grid = figure.subplots(2, 4, gridspec_kw={"height_ratios": [height / width, 1]})
    for (title, picture), (whole, close) in zip(pictures.items(), grid.T):
        whole.imshow(picture, interpolation="antialiased")
        whole.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor="yellow", lw=1.2))
        whole.set_title(title, fontsize=11)
        close.imshow(picture[y:y + side, x:x + side], interpolation="antialiased")
        for axes in (whole, close):
            axes.set_axis_off()
    figure.legend(handles=[Patch(color=np.array(c) / 255, label=text) for c, text in
                           ((FOUND, "found"), (MISSED, "missed"), (INVENTED, "invented"))],
                  loc="outside lower right", ncols=3, frameon=False)
    return figure


def curve_figure(history, scores):
    """Test IoU against minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    minutes = [point["minutes"] for point in history]
    axes.plot(minutes, [point["iou"] for point in history], "o-", ms=3, lw=1.2, label="one prediction")
    if scores["tta"]:
        axes.plot(minutes[-1], scores["iou"], "*", ms=11, label="mean of 8 ways to lay the picture")
    axes.set(xlabel="minutes of training", ylabel="IoU on the test sections", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def segment(args):
    """--predict: one micrograph, by a trained network."""
    image = read_micrograph(args.predict)
    trained, name = args.out / "model.safetensors", "sstem-mitochondria"
    path = args.model or (trained if trained.exists() else None)
    model = load_network(path, name, UNet, in_channels=FOLD**2, out_channels=FOLD**2, time=False, num_classes=None)
    print("network:", path or f"{name}, which comes along")
    mask = probability(model.to(args.device), image, args.tta) > 0.5
    for name, picture in (("mask", mask * np.uint8(255)), ("overlay", coloured(image, [(mask, FOUND)]))):
        written = args.out / f"{args.predict.stem}-{name}.png"
        with atomic_write(written) as file:
            Image.fromarray(picture).save(file, "PNG")
        print("wrote", written)
    print(f"{mask.mean():.1%} of {args.predict} is mitochondrion")


def main():
    args = arguments()
    if args.predict:
        return segment(args)
    train, test = load(args)
    if min(train.images.shape[1:]) < args.patch:
        raise ValueError(f"the pictures are {train.images.shape[1]}×{train.images.shape[2]} pixels large, smaller "
                         f"than --patch {args.patch}: choose a smaller one")
    # beyond the edges as predict_tiled has it, so that the network knows mirrored borders
    images = [np.pad(normalized(image), OVERLAP // 2, mode="reflect") for image in train.images]
    masks = [np.pad(mask, OVERLAP // 2, mode="reflect") for mask in train.masks]
    model = UNet(FOLD ** 2, FOLD ** 2, channels=args.channels, time=False).to(args.device)
    settings = {k: v for k, v in settings_of(args).items() if k != "tta"}
    if args.images:  # wherever they lie
        settings["pairs"] = digest(train, test)
    run = Training(model, len(train) * PATCHES, settings, steps=args.steps, batch_size=args.batch_size, lr=args.lr,
                   ema=0.99, weight_decay=0.02)

    def batch(index):
        patches = [random_patch(images[i], masks[i], args.patch, run.rng) for i in index % len(train)]
        return [folded(np.stack(part)[:, None].astype(np.float32)) for part in zip(*patches)]

    def loss(x, y):
        logits, y = model(Tensor(x)), Tensor(y)
        return F.binary_cross_entropy_with_logits(logits, y) + dice_loss(logits, y)

    def report(run):
        few = test.images[:4]  # of Lucchi's 165
        found = np.stack([probability(model, image, tta=False) > 0.5 for image in few])
        run.history.append({"minutes": run.seconds / 60, "step": run.step,
                            "iou": segmentation_scores(found, test.masks[:4])["iou"]})

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, report=report, title="mitochondria")
    with run.averaged():
        found = np.stack([probability(model, image, args.tta) > 0.5 for image in test.images])
    scores = {**segmentation_scores(found, test.masks), "minutes": run.seconds / 60, "tta": args.tta,
              "sections": {name: segmentation_scores(*pair) for name, *pair in zip(test.names, found, test.masks)},
              "curve": run.history}
    write_metrics(args.out, scores)
    save_figure(segmentation_figure(test.images[0], test.masks[0], found[0]), args.out / "segmentation.png")
    save_figure(curve_figure(run.history, scores), args.out / "curve.png")


if __name__ == "__main__":
    main()
