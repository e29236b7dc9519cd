"""Train the digit classifier that judges the generative models.

    python examples/train_classifier.py                     # minutes on 2 cores, into runs/classifier
    python examples/train_classifier.py --resume
    python examples/train_classifier.py --preset smoke --data synthetic
    python examples/train_classifier.py --data fashion-mnist --out runs/clothes

It learns from digits turned, scaled, sheared and moved a little (cross-entropy with smoothed labels; Szegedy et al.
2016, sec. 7), and is tested on the test set as it is. Written to --out: metrics.json, mistakes.png (digits it takes for
others), model.safetensors, checkpoint.safetensors, log.csv and loss.png.
"""

from command_line import above_0, integer, parse, parser_for, settings_of, write_metrics

import numpy as np
from matplotlib.figure import Figure

from npdiffusion import Tensor, functional as F, no_grad
from npdiffusion.data import load_digits
from npdiffusion.distributed import over_ranks
from npdiffusion.figures import save_figure
from npdiffusion.models import Classifier
from npdiffusion.training import Training

PRESETS = {"smoke": dict(steps=20, batch_size=32, channels=[8, 16], test=200),
           "cpu": dict(steps=4000, batch_size=128, channels=[32, 64, 128], test=10000),
           "long": dict(steps=12000, batch_size=128, channels=[32, 64, 128], test=10000)}


def arguments():
    parser = parser_for(__doc__, "classifier", ("mnist", "fashion-mnist", "synthetic"))
    parser.add_argument("--lr", type=above_0, default=2e-3)
    parser.add_argument("--test", type=integer(1), help="number of test digits")
    return parse(parser, PRESETS)


def warped(images, rng):
    """Every picture turned, scaled, sheared and moved by its own small amounts (bilinear; −1 beyond the edge)."""
    n, _, h, w = images.shape
    turn, shear = rng.uniform(-0.26, 0.26, (2, n))  # radians: 15°
    scale_y, scale_x = rng.uniform(0.87, 1.15, (2, n))
    move = rng.uniform(-2.5, 2.5, (2, n, 1, 1))
    y, x = np.mgrid[:h, :w].astype(np.float32)
    y, x = (y - (h - 1) / 2)[None], (x - (w - 1) / 2)[None]
    cos, sin, shear = (a.reshape(n, 1, 1).astype(np.float32) for a in (np.cos(turn), np.sin(turn), shear))
    source_y = (cos * y - sin * x) * scale_y.reshape(n, 1, 1) + move[0] + (h - 1) / 2
    source_x = (sin * y + (cos + shear) * x) * scale_x.reshape(n, 1, 1) + move[1] + (w - 1) / 2
    padded = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    y, x = np.clip(source_y, -1, h - 1e-3) + 1, np.clip(source_x, -1, w - 1e-3) + 1
    top, left = y.astype(int), x.astype(int)
    fy, fx, i = y - top, x - left, np.arange(n)[:, None, None]
    upper = padded[i, top, left] * (1 - fx) + padded[i, top, left + 1] * fx
    lower = padded[i, top + 1, left] * (1 - fx) + padded[i, top + 1, left + 1] * fx
    return (upper * (1 - fy) + lower * fy).astype(np.float32)[:, None]


def in_batches(function, images, batch_size=250):
    """``function`` of all images, a batch at a time."""
    with no_grad():
        return np.concatenate([over_ranks(function, images[i:i + batch_size])
                               for i in range(0, len(images), batch_size)])


def predictions(model, images):
    """The class that the model finds most likely for each picture."""
    device = getattr(model, "device", None)
    return in_batches(lambda x: model(Tensor(x, device=device)).cpu().data.argmax(1), images)


def mistakes(images, labels, found, columns=10, rows=4):
    """A figure of the first digits taken for others: "label → found" above each."""
    figure = Figure(figsize=(0.75 * columns, 0.95 * rows), layout="constrained")
    axes = figure.subplots(rows, columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i in zip(axes.flat, np.flatnonzero(found != labels)):
        ax.imshow(images[i, 0], cmap="gray", vmin=-1, vmax=1)
        ax.set_title(f"{labels[i]} → {found[i]}", fontsize=8, pad=2)
    return figure


def main():
    args = arguments()
    digits, test = load_digits(args.data, "train"), load_digits(args.data, "test")
    images, labels = test[:args.test]
    model = Classifier(channels=args.channels, dropout=0.2).to(args.device)
    run = Training(model, len(digits), settings_of(args), steps=args.steps, batch_size=args.batch_size, lr=args.lr,
                   weight_decay=0.02)

    def batch(index):
        x, label = digits[index]
        return warped(x, run.rng), label

    def loss(x, label):
        return F.cross_entropy(model(Tensor(x)), label, label_smoothing=0.05)

    def report(run):
        run.history.append({"step": run.step, "accuracy": float((predictions(model, images) == labels).mean())})

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, report=report, title="classifier")
    with run.averaged():
        found = predictions(model, images)
    write_metrics(args.out, {"accuracy": float((found == labels).mean()), "test_digits": len(labels),
                             "minutes": run.seconds / 60, "history": run.history})
    save_figure(mistakes(images, labels, found), args.out / "mistakes.png")


if __name__ == "__main__":
    main()
