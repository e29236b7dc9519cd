"""Noisy digits cleaned, and new ones drawn from pure noise, in under a minute on two cores.

    python examples/quickstart.py
    python examples/quickstart.py --image my_digit.png      # and a picture of your own, any size, grey or colour

Uses the network that comes with the package (trained by examples/train_diffusion.py on MNIST). Figures go to --out.
"""

import argparse
import math
import time
from pathlib import Path

from command_line import add_common, integer, load_network, parse

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np

from npdiffusion.data import DataNotFoundError, load_digits, load_picture
from npdiffusion.diffusion import DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr
from npdiffusion.models import UNet, pretrained

LEVELS = (100, 200, 300, 400, 500, 600)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a picture of a digit to clean")
    parser.add_argument("--level", type=integer(0, 1023), help="noise level of --image, 0 to 1023 (default: estimated)")
    parser.add_argument("--data", default="mnist", choices=["mnist", "synthetic"], help="digits to clean")
    parser.add_argument("--model", type=Path, help="weights to use instead of the package's own")
    add_common(parser, "quickstart")
    return parse(parser)


def draw_digits(model, out):
    """New digits 0 to 9, one class a column, from pure noise and guided by their class; returns the pictures."""
    rows = 6
    digits = generate(model, DPMSolverMultistepScheduler(use_lu_lambdas=True), (10 * rows, 1, 32, 32),
                      labels=np.tile(np.arange(10), rows), guidance_scale=2.0, num_inference_steps=10, progress=True)
    digits = npdiffusion.to_device(digits, "cpu")
    figure = picture_rows(digits.reshape(rows, 10, 1, 32, 32), [""] * rows, [str(i) for i in range(10)])
    save_figure(figure, out / "generated.png")
    return digits


def clean_digits(model, scheduler, originals, rng, out):
    """Noisy, denoised and original digits at several levels; prints the PSNR over all of them."""
    shown, rows, titles = 2, [[], [], [], []], []
    print("level   PSNR of noisy   least error (one-shot)   sharpest (DPM-Solver++, 8 steps)")
    for t in LEVELS:
        noise = rng.standard_normal(originals.shape, dtype=np.float32)
        noisy = scheduler.add_noise(originals, noise, t)
        seen = noisy / math.sqrt(scheduler.alphas_cumprod[t])  # on the originals' own scale, as a camera would see it
        smooth = denoise(model, scheduler, noisy, t)
        sharp = denoise(model, scheduler, noisy, t, method="dpm")
        values = [psnr(x, originals).mean() for x in (seen, smooth, sharp)]
        print(f"t={t:4d}   {values[0]:10.1f} dB   {values[1]:19.1f} dB   {values[2]:29.1f} dB")
        titles.append(f"t = {t}, {values[1]:.1f} dB")
        for row, pictures in zip(rows, (seen.clip(-1, 1), smooth, sharp, originals)):
            row.extend(pictures[:shown])
        originals = np.roll(originals, -shown, axis=0)  # other digits at the next level
    labels = ["noisy", "denoised, one-shot", "denoised, DPM-Solver++", "original"]
    save_figure(picture_rows(rows, labels, titles, group=shown), out / "denoised.png")


def clean_picture(model, scheduler, picture, level, out):
    """The user's picture beside its denoised version."""
    if level is None:
        level = int(pretrained("mnist-noise-level").timesteps(picture, scheduler).clip(20, 600)[0])
        print(f"noise estimated at σ = {scheduler.sigmas[level]:.2f} of a range of 2, which is level t = {level}; "
              "--level sets another")
    sigma = scheduler.sigmas[level]  # the picture is on its own scale
    smooth = denoise(model, scheduler, picture, sigma=sigma)
    sharp = denoise(model, scheduler, picture, sigma=sigma, method="dpm")
    titles = ["yours", "one-shot", "DPM-Solver++"]
    save_figure(picture_rows([np.concatenate([picture, smooth, sharp])], [""], titles, cell=1.4), out / "yours.png")


def main():
    args = arguments()
    start = time.perf_counter()
    rng = npdiffusion.default_generator()  # which --seed has seeded
    model = load_network(args.model, "mnist-ddpm", UNet, in_channels=1, out_channels=1, time=True, num_classes=10)
    model.to(args.device)
    picture, done = load_picture(args.image) if args.image else (None, [])
    scheduler = DDPMScheduler()

    print("Drawing 60 new digits from pure noise: 10 steps of DPM-Solver++")
    drawn = draw_digits(model, args.out)
    figures = ["generated.png", "denoised.png"]
    try:
        originals = load_digits(args.data, "test").images[:64]
        print(f"Cleaning {len(originals)} test digits ({args.data}) at {len(LEVELS)} noise levels")
    except DataNotFoundError as error:
        originals = drawn
        print(f"{error}\nSo: cleaning digits that the network itself has drawn, at {len(LEVELS)} noise levels")
    clean_digits(model, scheduler, originals, rng, args.out)
    if args.image:
        print(f"{args.image}: " + "; ".join(done))
        clean_picture(model, scheduler, picture, args.level, args.out)
        figures.append("yours.png")
    print(f"\nFigures, after {time.perf_counter() - start:.0f} s:")
    for name in figures:
        print(f"  {args.out / name}")


if __name__ == "__main__":
    main()
