"""Train the denoising diffusion model on MNIST, or on your own pictures, with labels dropped for guidance.

    python examples/train_diffusion.py                       # an hour on 2 cores, into runs/diffusion
    python examples/train_diffusion.py --resume              # goes on where it was stopped, bit for bit
    python examples/train_diffusion.py --steps 300 --data synthetic --out runs/try
    python examples/train_diffusion.py --images my_pictures --size 64 --mirror --out runs/mine
    python examples/train_diffusion.py --device cuda --cuda-graph # on an NVIDIA GPU, replaying a CUDA graph
    python examples/train_diffusion.py --evaluate            # the test loss of the network that comes with the package

The loss is that of Ho et al. 2020, eq. 14: ‖ε − ε_θ(√ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, t, label)‖², t uniform, where one label
in ten is replaced by "no class" (Ho & Salimans 2022, alg. 1). The subfolders of --images are classes; without any there
are no labels. A tenth of the pictures is kept for testing. Written to --out: checkpoint.safetensors (all that --resume
needs), model.safetensors (the averaged weights, for examples/quickstart.py --model), log.csv, loss.png and
samples-STEP.png; at the end metrics.json, denoised.png (test pictures with noise and without) and nearest.png (samples
over the nearest training pictures).
"""

from functools import lru_cache

from command_line import (above_0, add_pictures, below_1, integer, load_examples, parse, parser_for,
                          settings_of, some, write_metrics)

import numpy as np
from quickstart import cell, clean, draw, how_many
from tqdm import tqdm

from npdiffusion import Tensor, functional as F, no_grad, to_device
from npdiffusion.data import save_png
from npdiffusion.diffusion import DDPMScheduler
from npdiffusion.distributed import over_ranks
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.models import UNet, pretrained
from npdiffusion.training import Training

LABEL_DROPOUT = 0.1
SEARCHED = 50000  # training pictures, at most, among which the nearest to a sample is looked for


PRESETS = {"smoke": dict(steps=9, batch_size=8, channels=[8, 16, 32]),
           "cpu": dict(steps=16000, batch_size=64, channels=[32, 64, 128]),
           "long": dict(steps=60000, batch_size=64, channels=[32, 64, 128])}


def arguments():
    parser = parser_for(__doc__, "diffusion", ("mnist", "fashion-mnist", "synthetic"))
    add_pictures(parser)
    parser.add_argument("--mirror", action="store_true", default=None,
                        help="exchange left and right in half of the batch")
    parser.add_argument("--evaluate", action="store_true", help="only print the shipped network's loss on the test set")
    parser.add_argument("--lr", type=above_0, default=1e-3, help="peak learning rate: warm-up, then a cosine down to 0")
    parser.add_argument("--ema", type=below_1, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--blocks", type=integer(1), default=1, help="residual blocks for each resolution")
    return parse(parser, PRESETS)


def epsilon_mse(model, scheduler, pictures, size=32, seed=0):
    """Mean of (ε − ε_θ)² over ``pictures``, their levels t spread evenly over all time steps, labels given."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.arange(len(pictures)) * scheduler.num_train_timesteps // len(pictures))
    total, batch_size = 0.0, 200 * 32 * 32 // size**2

    def estimate(x, t, labels):
        return model(Tensor(x), t, labels if model.num_classes else None).data

    with no_grad():
        for i in tqdm(range(0, len(pictures), batch_size), desc="test loss", leave=False):
            x0, labels = pictures[i:i + batch_size]
            t = levels[i:i + batch_size]
            noise = to_device(rng.standard_normal(x0.shape, dtype=np.float32), model.device)
            x0 = to_device(x0, model.device)
            guess = over_ranks(estimate, scheduler.add_noise(x0, noise, t), t, labels)
            total += float(((guess - noise) ** 2).mean()) * len(x0)
    return total / len(pictures)


def nearest(samples, pictures, mirror):
    """Of ``pictures`` (of SEARCHED of them, drawn at random) the nearest to each sample, and the distance to it, (N,).

    Euclidean, over all pixels and channels. mirror: their mirror images count, too.
    """
    flat, n = samples.reshape(len(samples), -1), np.arange(len(samples))
    found, least = np.empty_like(samples), np.full(len(samples), np.inf)
    index = np.sort(np.random.default_rng(0).permutation(len(pictures))[:SEARCHED])
    for part in tqdm(np.array_split(index, -(-len(index) // 200)), desc="nearest training pictures", leave=False):
        batch = pictures[part][0]
        for seen in (batch, batch[..., ::-1])[:1 + mirror]:
            rows = seen.reshape(len(seen), -1)
            squares = np.einsum("ij,ij->i", rows, rows)[:, None] - 2 * rows @ flat.T  # but for the sample's own norm
            best = squares.argmin(0)
            nearer = squares[best, n] < least
            found[nearer], least[nearer] = seen[best[nearer]], squares[best, n][nearer]
    return found, np.sqrt(((samples - found) ** 2).sum((1, 2, 3)))


def main():
    args = arguments()
    scheduler = DDPMScheduler()
    if args.evaluate:
        loss = epsilon_mse(pretrained("mnist-ddpm").to(args.device), scheduler, load_examples(args, "test"))
        return print(f"test ε-MSE of mnist-ddpm, averaged over t: {loss:.5f}")
    pictures, test = load_examples(args), load_examples(args, "test")
    _, channels, size, _ = test[:1][0].shape
    classes = pictures.classes if args.images else list(range(10))
    model = UNet(channels, channels, args.channels, args.blocks, attention=[len(args.channels) - 1],
                 num_classes=len(classes) or None, sample_size=size)
    model.to(args.device)
    run = Training(model, len(pictures), settings_of(args) | ({"classes": classes} if args.images else {}),
                   steps=args.steps, batch_size=args.batch_size, lr=args.lr, ema=args.ema)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(pictures)} pictures")

    def batch(index):
        (x0, labels), n = pictures[index], len(index)
        if args.mirror:
            x0 = np.where(run.rng.random((n, 1, 1, 1)) < 0.5, x0[..., ::-1], x0)
        t = run.rng.integers(0, scheduler.num_train_timesteps, n)
        if model.num_classes is None:
            return x0, t
        return x0, t, np.where(run.rng.random(n) < LABEL_DROPOUT, model.num_classes, labels)

    def loss(x0, t, labels=None):
        noise = run.device_rng.standard_normal(x0.shape, dtype=np.float32)
        return F.mse_loss(model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels), Tensor(noise))

    @lru_cache(maxsize=1)
    def samples(step):  # drawn once after so many steps: the sheet at the end, and what is nearest, show the same
        return draw(model, size, rows=4, generator=np.random.default_rng(0))

    def sheet(run):
        rows = samples(run.step)
        save_png(args.out / f"samples-{run.step:06d}.png", np.concatenate(rows), columns=rows.shape[1])

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes, report=sheet, title="DDPM")
    with run.averaged():
        error = epsilon_mse(model, scheduler, test, size)
        cleaned = some(test, how_many(size))
        clean(model, scheduler, cleaned, np.random.default_rng(0), args.out / "denoised.png")
        drawn = np.concatenate(samples(run.step))
    found, distances = nearest(np.concatenate([drawn, cleaned]), pictures, bool(args.mirror))
    figure = picture_rows([drawn[:10], found[:10]], ["drawn", "nearest training picture"], cell=cell(drawn))
    save_figure(figure, args.out / "nearest.png")
    write_metrics(args.out, {"epsilon_mse": error, "minutes": run.seconds / 60,
                             "nearest_distance": {"samples": float(np.median(distances[:len(drawn)])),
                                                  "test_pictures": float(np.median(distances[len(drawn):]))}})


if __name__ == "__main__":
    main()
