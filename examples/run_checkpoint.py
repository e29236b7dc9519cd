"""Draws pictures, or cleans one, with a DDPM checkpoint of diffusers and DPM-Solver++, without PyTorch.

    hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32                     # pip install huggingface_hub
    python examples/run_checkpoint.py ddpm-cifar10-32 --count 16 --steps 15            # a sheet of new pictures
    python examples/run_checkpoint.py ddpm-cifar10-32 --image my_picture.png           # and a noisy one of your own

The directory is as diffusers writes it: config.json and diffusion_pytorch_model.safetensors, at its root or in unet/,
scheduler_config.json at its root or in scheduler/. Pictures go to --out.
"""

import argparse
import time
from pathlib import Path

from command_line import above_0, add_common, integer, parse

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np

from npdiffusion import Tensor, no_grad
from npdiffusion.data import load_square, noise_sigma, save_png
from npdiffusion.diffusion import DPMSolverMultistepScheduler, denoise, generate, scheduler_from_pretrained
from npdiffusion.models import UNet2DModel

PIXELS = 128 * 128  # in a batch: memory grows with them


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory that holds it")
    parser.add_argument("--count", type=integer(1), default=16, help="pictures to draw")
    parser.add_argument("--steps", type=integer(1), default=15, help="passes of the network for each")
    parser.add_argument("--image", type=Path, help="a noisy picture to clean, instead of drawing")
    parser.add_argument("--sigma", type=above_0,
                        help="its noise: standard deviation in grey levels of 0 to 255 (default: estimated)")
    add_common(parser, "checkpoint")
    return parse(parser)


def sides(model):
    """Height and width of the pictures that the network was trained on."""
    size = model.config["sample_size"]
    if size is None:
        raise ValueError("the checkpoint's config.json has no sample_size: add the side of its pictures to it")
    return size if isinstance(size, tuple) else (size, size)


def say_costs(model, shape, steps, count):
    """What one pass takes, measured, and so all."""
    start = time.perf_counter()
    with no_grad():
        model(Tensor(np.zeros(shape, np.float32), device=model.device), 0, known_labels(model, shape[0]))
    seconds = (time.perf_counter() - start) / shape[0]
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights; a pass takes {seconds:.2g} s a picture, so {steps} for each of {count} take about "
          f"{count * steps * seconds:.0f} s")


def known_labels(model, count):
    """A class for each picture, in turn, if the network has classes."""
    return np.arange(count) % model.num_classes if model.num_classes else None


def draw(model, scheduler, count):
    """New pictures (count, C, H, W), in batches of what fits."""
    height, width = sides(model)
    labels, batch = known_labels(model, count), min(count, max(1, PIXELS // (height * width)))
    say_costs(model, (batch, model.config["in_channels"], height, width), scheduler.num_inference_steps, count)
    drawn = []
    for i in range(0, count, batch):
        shape = min(batch, count - i), model.config["in_channels"], height, width
        part = None if labels is None else labels[i:i + batch]
        drawn.append(generate(model, scheduler, shape, part, progress=True))
    return npdiffusion.to_device(np.concatenate(drawn), "cpu")


def clean(model, scheduler, path, sigma, steps):
    """A picture and what the network makes of it, in a single pass and in several steps: (3, C, H, W)."""
    height, width = sides(model)
    picture = load_square(path, (height, width), model.config["in_channels"])
    if sigma is None:
        sigma = 127.5 * float(np.mean([noise_sigma(channel) for channel in picture[0]]))
        print(f"noise estimated at {sigma:.1f} grey levels at {height}×{width}; --sigma sets another")
    level = min(max(sigma / 127.5, scheduler.sigmas[0]), scheduler.sigmas[-1])
    say_costs(model, picture.shape, steps + 1, 1)
    smooth = denoise(model, scheduler, picture, sigma=level)
    sharp = denoise(model, scheduler, picture, sigma=level, method="dpm", num_inference_steps=steps, progress=True)
    return np.concatenate([picture, smooth, sharp])


def main():
    args = arguments()
    model = UNet2DModel.from_pretrained(args.checkpoint).to(args.device)
    scheduler = scheduler_from_pretrained(args.checkpoint)
    start = time.perf_counter()
    if args.image:
        path, columns = args.out / "cleaned.png", 3
        pictures = clean(model, scheduler, args.image, args.sigma, args.steps)
        print("From left to right: yours, one-shot, in steps")
    else:
        path, columns = args.out / "drawn.png", None
        solver = DPMSolverMultistepScheduler.from_config(
            scheduler.config | {"use_karras_sigmas": False, "use_lu_lambdas": True})
        solver.set_timesteps(args.steps)
        pictures = draw(model, solver, args.count)
    save_png(path, pictures, columns)
    print(f"{path}, after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
