"""Train the denoising diffusion model on MNIST: class-conditional, with labels dropped for guidance.

    python examples/train_diffusion.py                       # an hour on 2 cores, into runs/diffusion
    python examples/train_diffusion.py --resume              # goes on where it was stopped, bit for bit
    python examples/train_diffusion.py --steps 300 --data synthetic --out runs/try
    python examples/train_diffusion.py --device cuda --cuda-graph # on an NVIDIA GPU, replaying a CUDA graph
    python examples/train_diffusion.py --evaluate            # the test loss of the network that comes with the package

The loss is that of Ho et al. 2020, eq. 14: ‖ε − ε_θ(√ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, t, label)‖², t uniform, where one label
in ten is replaced by "no class" (Ho & Salimans 2022, alg. 1). Written to --out: checkpoint.safetensors (all that
--resume needs), model.safetensors (the averaged weights), metrics.json, log.csv, loss.png and samples-STEP.png.
"""

from command_line import above_0, below_1, integer, parse, parser_for, settings_of, write_metrics

import numpy as np

from npdiffusion import Tensor, functional as F, no_grad, to_device
from npdiffusion.data import load_digits, save_png
from npdiffusion.diffusion import DDPMScheduler, DPMSolverMultistepScheduler, generate
from npdiffusion.distributed import over_ranks
from npdiffusion.models import UNet, pretrained
from npdiffusion.training import Training

LABEL_DROPOUT = 0.1


PRESETS = {"smoke": dict(steps=9, batch_size=8, channels=[8, 16, 32]),
           "cpu": dict(steps=16000, batch_size=64, channels=[32, 64, 128]),
           "long": dict(steps=60000, batch_size=64, channels=[32, 64, 128])}


def arguments():
    parser = parser_for(__doc__, "diffusion")
    parser.add_argument("--evaluate", action="store_true", help="only print the shipped network's loss on the test set")
    parser.add_argument("--lr", type=above_0, default=1e-3, help="peak learning rate: warm-up, then a cosine down to 0")
    parser.add_argument("--ema", type=below_1, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--blocks", type=integer(1), default=1, help="residual blocks for each resolution")
    return parse(parser, PRESETS)


def epsilon_mse(model, scheduler, digits, batch_size=200, seed=0):
    """Mean of (ε − ε_θ)² over ``digits``, their levels t spread evenly over all time steps, labels given."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.arange(len(digits)) * scheduler.num_train_timesteps // len(digits))
    total = 0.0

    def estimate(x, t, labels):
        return model(Tensor(x), t, labels).data

    with no_grad():
        for i in range(0, len(digits), batch_size):
            x0, labels = digits[i:i + batch_size]
            t = levels[i:i + batch_size]
            noise = to_device(rng.standard_normal(x0.shape, dtype=np.float32), model.device)
            x0 = to_device(x0, model.device)
            guess = over_ranks(estimate, scheduler.add_noise(x0, noise, t), t, labels)
            total += float(((guess - noise) ** 2).mean()) * len(x0)
    return total / len(digits)


def sample_sheet(model, path):
    """Write a sheet of 40 digits, one class a column, as the model draws them now."""
    samples = generate(model, DPMSolverMultistepScheduler(use_lu_lambdas=True), (40, 1, 32, 32),
                       labels=np.arange(40) % 10, num_inference_steps=10, generator=np.random.default_rng(0))
    save_png(path, to_device(samples, "cpu"), columns=10)


def main():
    args = arguments()
    if args.evaluate:
        loss = epsilon_mse(pretrained("mnist-ddpm").to(args.device), DDPMScheduler(), load_digits(args.data, "test"))
        return print(f"test ε-MSE of mnist-ddpm, averaged over t: {loss:.5f}")
    scheduler = DDPMScheduler()
    digits, test = load_digits(args.data, "train"), load_digits(args.data, "test")
    model = UNet(channels=args.channels, blocks=args.blocks, attention=[len(args.channels) - 1], num_classes=10)
    model.to(args.device)
    run = Training(model, len(digits), settings_of(args), steps=args.steps, batch_size=args.batch_size, lr=args.lr,
                   ema=args.ema)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(digits)} digits")

    def batch(index):
        (x0, labels), n = digits[index], len(index)
        t = run.rng.integers(0, scheduler.num_train_timesteps, n)
        return x0, t, np.where(run.rng.random(n) < LABEL_DROPOUT, model.num_classes, labels)

    def loss(x0, t, labels):
        noise = run.device_rng.standard_normal(x0.shape, dtype=np.float32)
        return F.mse_loss(model(Tensor(scheduler.add_noise(x0, noise, t)), t, labels), Tensor(noise))

    run.fit(loss, args.out, batch=batch, cuda_graph=args.cuda_graph, resume=args.resume,
            save_minutes=args.save_minutes,
            report=lambda run: sample_sheet(model, args.out / f"samples-{run.step:06d}.png"),
            title="DDPM on digits")
    with run.averaged():
        error = epsilon_mse(model, scheduler, test)
    write_metrics(args.out, {"epsilon_mse": error, "minutes": run.seconds / 60})


if __name__ == "__main__":
    main()
