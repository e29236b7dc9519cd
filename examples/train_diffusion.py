"""Train the denoising diffusion model on MNIST: class-conditional, with labels dropped for guidance.

    python examples/train_diffusion.py                       # an hour on 2 cores, into runs/diffusion
    python examples/train_diffusion.py --resume              # goes on where it was stopped, bit for bit
    python examples/train_diffusion.py --steps 300 --data synthetic --out runs/try
    python examples/train_diffusion.py --evaluate            # the test loss of the network that comes with the package

The loss is that of Ho et al. 2020, eq. 14: ‖ε − ε_θ(√ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, t, label)‖², t uniform, where one label
in ten is replaced by "no class" (Ho & Salimans 2022, alg. 1). Written to --out: checkpoint.safetensors (all that
--resume needs), model.safetensors (the averaged weights), log.csv, loss.png and samples-STEP.png.
"""

import argparse
import csv
import io
import signal
import time
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from npdiffusion import Tensor, functional as F, optim
from npdiffusion.checkpoint import load_file, save_file, save_weights
from npdiffusion.data import load_digits, save_png
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler, generate
from npdiffusion.figures import save_figure
from npdiffusion.files import atomic_write
from npdiffusion.models import UNet, pretrained

LABEL_DROPOUT = 0.1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=["mnist", "synthetic"])
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--evaluate", action="store_true", help="only print the shipped network's loss on the test set")
    parser.add_argument("--steps", type=int, default=16000, help="training steps in all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate: warm-up, then a cosine down to 0")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128], help="for each resolution")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks for each resolution")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="time between checkpoints")
    args = parser.parse_args()
    for name in ("steps", "batch_size", "blocks"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


class Training:
    """Everything that a checkpoint holds: model, optimiser, average, generator, and the place in the epoch."""

    def __init__(self, args, count):
        self.rng = npdiffusion.manual_seed(args.seed)
        self.model = UNet(channels=args.channels, blocks=args.blocks, attention=[len(args.channels) - 1],
                          num_classes=10)
        self.optimizer = optim.Adam(self.model.parameters(), lr=args.lr)
        self.ema = optim.EMA(self.model, args.ema)
        self.settings = {name: getattr(args, name) for name in
                         ("data", "steps", "batch_size", "lr", "ema", "channels", "blocks", "seed")}
        self.step, self.seconds, self.position = 0, 0.0, 0
        self.order = self.rng.permutation(count)
        self.log = []  # (step, seconds, mean loss since the row before, learning rate)
        self.losses = []  # since the last row of the log

    def next_batch(self, size):
        """Indices of the next training pictures; a new shuffle when the epoch is over."""
        if self.position + size > len(self.order):
            self.order, self.position = self.rng.permutation(len(self.order)), 0
        self.position += size
        return self.order[self.position - size:self.position]

    def save(self, path):
        arrays = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        arrays |= {f"ema.{k}": v for k, v in self.ema.weights.items()}
        arrays |= {f"optimizer.{k}": np.asarray(v) for k, v in self.optimizer.state_dict().items()}
        arrays |= {"order": self.order, "log": np.array(self.log).reshape(-1, 4), "losses": np.array(self.losses)}
        save_file(path, arrays, {"settings": self.settings, "step": self.step, "seconds": self.seconds,
                                 "position": self.position, "ema_updates": self.ema.updates,
                                 "generator": self.rng.bit_generator.state})

    def load(self, path):
        arrays, meta = load_file(path)
        if meta.get("settings") != self.settings:
            raise SystemExit(f"{path} was written with other settings.\n  there: {meta.get('settings')}\n"
                             f"  here:  {self.settings}\nGive the same options, or another --out.")

        def part(prefix):
            return {k[len(prefix):]: v for k, v in arrays.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.weights.update(part("ema."))
        self.optimizer.load_state_dict(part("optimizer."))
        self.order, self.losses = arrays["order"], arrays["losses"].tolist()
        self.log = [tuple(row) for row in arrays["log"].tolist()]
        self.step, self.seconds, self.position = meta["step"], meta["seconds"], meta["position"]
        self.ema.updates = meta["ema_updates"]
        self.rng.bit_generator.state = meta["generator"]


def train_step(run, scheduler, digits, args):
    """One step of gradient descent; returns the loss."""
    rng, n = run.rng, args.batch_size
    x0, labels = digits[run.next_batch(n)]
    t = rng.integers(0, scheduler.num_train_timesteps, n)
    labels = np.where(rng.random(n) < LABEL_DROPOUT, run.model.num_classes, labels)
    noise = rng.standard_normal(x0.shape, dtype=np.float32)
    loss = F.mse_loss(run.model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels), Tensor(noise))
    run.optimizer.zero_grad()
    loss.backward()
    optim.clip_grad_norm_(run.optimizer.parameters, 1.0)
    run.optimizer.lr = args.lr * optim.warmup_cosine(run.step, args.steps, min(500, args.steps // 10 + 1))
    run.optimizer.step()
    run.ema.update()
    run.step += 1
    return loss.item()


def epsilon_mse(model, scheduler, digits, batch_size=200, seed=0):
    """Mean of (ε − ε_θ)² over ``digits``, their levels t spread evenly over all time steps, labels given."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.arange(len(digits)) * scheduler.num_train_timesteps // len(digits))
    total = 0.0
    with npdiffusion.no_grad():
        for i in range(0, len(digits), batch_size):
            x0, labels = digits[i:i + batch_size]
            t = levels[i:i + batch_size]
            noise = rng.standard_normal(x0.shape, dtype=np.float32)
            guess = model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels).data
            total += float(((guess - noise) ** 2).mean()) * len(x0)
    return total / len(digits)


def report(run, scheduler, out):
    """Write checkpoint, averaged weights, log, loss curve and a grid of samples drawn with the averaged weights."""
    run.save(out / "checkpoint.safetensors")
    save_weights(out / "model.safetensors", run.ema.weights, run.model.config)
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["step", "seconds", "loss", "lr"])
    writer.writerows([int(step), round(seconds, 1), f"{loss:.5f}", f"{lr:.3e}"] for step, seconds, loss, lr in run.log)
    with atomic_write(out / "log.csv") as file:
        file.write(rows.getvalue().encode())
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogy([row[0] for row in run.log], [row[2] for row in run.log], lw=1)
    axes.set(xlabel="step", ylabel="ε-MSE (training)", title="DDPM on digits")
    axes.grid(alpha=0.3, which="both")
    save_figure(figure, out / "loss.png", dpi=130)
    run.ema.swap()
    try:  # its own generator: looking at samples must not change the training
        samples = generate(run.model, DDIMScheduler.from_config(scheduler.config), (40, 1, 32, 32),
                           labels=np.arange(40) % 10, num_inference_steps=25, generator=np.random.default_rng(0))
    finally:
        run.ema.swap()
    save_png(out / f"samples-{run.step:06d}.png", samples, columns=10)


def stop_requests():
    """A list that Ctrl-C (or SIGTERM) adds to, so that the step in hand is finished first; a second one raises."""
    requests = []

    def ask(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return requests


def main():
    args = arguments()
    if args.threads:
        npdiffusion.set_num_threads(args.threads)
    if args.evaluate:
        loss = epsilon_mse(pretrained("mnist-ddpm"), DDPMScheduler(), load_digits(args.data, "test"))
        return print(f"test ε-MSE of mnist-ddpm, averaged over t: {loss:.5f}")
    checkpoint = args.out / "checkpoint.safetensors"
    if checkpoint.exists() and not args.resume:
        raise SystemExit(f"{checkpoint} exists: go on with --resume, or choose another --out")
    try:
        digits, test = load_digits(args.data, "train"), load_digits(args.data, "test")
        run, scheduler = Training(args, len(digits)), DDPMScheduler()
        if args.resume:
            run.load(checkpoint)
    except (KeyError, OSError, ValueError) as error:  # no data, bad settings, or no such checkpoint
        raise SystemExit(f"train_diffusion.py: {error}")
    parameters = sum(p.numel() for p in run.model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(digits)} digits, step {run.step} of {args.steps}")

    started, saved, losses = time.monotonic() - run.seconds, time.monotonic(), run.losses
    stop = stop_requests()
    with tqdm(total=args.steps * args.batch_size, initial=run.step * args.batch_size, unit="img", unit_scale=True,
              smoothing=0.05) as bar:
        while run.step < args.steps and not stop:
            losses.append(train_step(run, scheduler, digits, args))
            bar.update(args.batch_size)
            run.seconds = time.monotonic() - started
            if run.step % 50 == 0 or run.step == args.steps:
                run.log.append((run.step, run.seconds, float(np.mean(losses)), run.optimizer.lr))
                bar.set_postfix(loss=f"{run.log[-1][2]:.4f}")
                losses.clear()
            if time.monotonic() - saved > args.save_minutes * 60:
                report(run, scheduler, args.out)
                saved = time.monotonic()
    if run.step < args.steps:
        run.save(checkpoint)
        raise SystemExit(f"stopped at step {run.step}; go on with --resume")
    report(run, scheduler, args.out)
    run.ema.swap()
    print(f"test ε-MSE, averaged over t: {epsilon_mse(run.model, scheduler, test):.5f} "
          f"after {run.seconds / 60:.0f} minutes of training")
    print(f"weights, log and figures are in {args.out}")


if __name__ == "__main__":
    main()
