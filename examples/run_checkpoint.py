"""Draws pictures, or cleans one, with a DDPM checkpoint of diffusers and DPM-Solver++, without PyTorch.

    hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32                     # pip install huggingface_hub
    python examples/run_checkpoint.py ddpm-cifar10-32 --count 16 --steps 15            # a sheet of new pictures
    python examples/run_checkpoint.py ddpm-cifar10-32 --image my_picture.png           # and a noisy one of your own

Networks with classes draw all of them in turn, or what --label says.
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
    parser.add_argument("--label", type=integer(0), help="class of what is drawn or cleaned, for networks with classes "
                                                         "(default for drawing: all in turn)")
    parser.add_argument("--image", type=Path, help="a noisy picture to clean, instead of drawing")
    parser.add_argument("--sigma", type=above_0,
                        help="its noise: standard deviation in grey levels of 0 to 255 (default: estimated)")
    add_common(parser, "checkpoint")
    return parse(parser)


def check_network(model, args):
    """ValueError, before anything is computed, for a network that makes no pictures or must be told more."""
    config = model.config
    if config["in_channels"] not in (1, 3) or config["in_channels"] != config["out_channels"]:
        raise ValueError("the checkpoint's config.json has in_channels {in_channels} and out_channels {out_channels}: "
                         "expected 1 or 3, and as many of both".format(**config))
    if config["class_embed_type"]:
        raise ValueError(f"the checkpoint's config.json has class_embed_type {config['class_embed_type']}: "
                         "expected none, as this program has no embedding to give")
    if args.image and model.num_classes and args.label is None:
        raise ValueError(f"this network has {model.num_classes} classes: say with --label which one the picture is of")


def sides(model):
    """Height and width of the pictures that the network was trained on."""
    size, by = model.config["sample_size"], 2**(len(model.down_blocks) - 1)
    pair = size if isinstance(size, tuple) else (size, size)
    if size is None or len(pair) != 2 or any(side % by for side in pair):
        raise ValueError(f"the checkpoint's config.json has sample_size {size}: expected the side of its pictures, or "
                         f"[height, width], that divide by {by}")
    return pair


def classes(model, count, label):
    """For each picture the class ``label``, or if that is None all classes in turn; None for networks without."""
    if label is None:
        return np.arange(count) % model.num_classes if model.num_classes else None
    return np.full(count, label)


def say_costs(model, shape, steps, count, labels):
    """What one pass takes, measured, and so all."""
    start = time.perf_counter()
    with no_grad():
        model(Tensor(np.zeros(shape, np.float32), device=model.device), 0,
              None if labels is None else labels[:shape[0]])
    seconds = (time.perf_counter() - start) / shape[0]
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights; a pass takes {seconds:.2g} s a picture, so {steps} for each of {count} take about "
          f"{count * steps * seconds:.0f} s")


def draw(model, scheduler, count, labels):
    """New pictures (count, C, H, W), in batches of what fits."""
    height, width = sides(model)
    batch = min(count, max(1, PIXELS // (height * width)))
    say_costs(model, (batch, model.config["in_channels"], height, width), scheduler.num_inference_steps, count, labels)
    drawn = []
    for i in range(0, count, batch):
        shape = min(batch, count - i), model.config["in_channels"], height, width
        part = None if labels is None else labels[i:i + batch]
        drawn.append(generate(model, scheduler, shape, part, progress=True))
    return npdiffusion.to_device(np.concatenate(drawn), "cpu")


def clean(model, scheduler, path, sigma, steps, labels):
    """A picture and what the network makes of it, in a single pass and in several steps: (3, C, H, W)."""
    height, width = sides(model)
    picture = load_square(path, (height, width), model.config["in_channels"])
    if sigma is None:
        sigma = 127.5 * float(np.mean([noise_sigma(channel) for channel in picture[0]]))
        print(f"noise estimated at {sigma:.1f} grey levels at {height}×{width}; --sigma sets another")
    level = min(max(sigma / 127.5, scheduler.sigmas[0]), scheduler.sigmas[-1])
    say_costs(model, picture.shape, steps + 1, 1, labels)
    smooth = denoise(model, scheduler, picture, sigma=level, labels=labels)
    sharp = denoise(model, scheduler, picture, sigma=level, method="dpm", num_inference_steps=steps, labels=labels,
                    progress=True)
    return np.concatenate([picture, smooth, sharp])


def main():
    args = arguments()
    model = UNet2DModel.from_pretrained(args.checkpoint).to(args.device)
    scheduler = scheduler_from_pretrained(args.checkpoint)
    check_network(model, args)
    labels = classes(model, 1 if args.image else args.count, args.label)
    start = time.perf_counter()
    if args.image:
        path, columns = args.out / "cleaned.png", 3
        pictures = clean(model, scheduler, args.image, args.sigma, args.steps, labels)
        print("From left to right: yours, one-shot, in steps")
    else:
        path, columns = args.out / "drawn.png", None
        solver = DPMSolverMultistepScheduler.from_config(
            scheduler.config | {"use_karras_sigmas": False, "use_lu_lambdas": True})
        solver.set_timesteps(args.steps)
        pictures = draw(model, solver, args.count, labels)
    save_png(path, pictures, columns)
    print(f"{path}, after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
