"""Noisy digits cleaned, and new ones drawn from pure noise, in under a minute on two cores.

    python examples/quickstart.py
    python examples/quickstart.py --image my_digit.png      # and a picture of your own, any size, grey or colour
    python examples/quickstart.py --model runs/diffusion/model.safetensors --images my_pictures --image one.jpg

Uses the network that comes with the package (trained by examples/train_diffusion.py on MNIST), or one that the same
script has trained on your pictures; those of --images that were kept for testing are then cleaned instead of digits.
Figures go to --out.
"""

import argparse
import math
import time
from pathlib import Path

from command_line import add_common, integer, load_network, parse, some

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np

from npdiffusion.data import DataNotFoundError, PictureFolder, load_digits, load_picture, load_square, noise_sigma
from npdiffusion.diffusion import DDPMScheduler, DPMSolverMultistepScheduler, denoise, generate
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr
from npdiffusion.models import UNet, pretrained

LEVELS = (100, 200, 300, 400, 500, 600)
DRAWN = 256 * 32 * 32  # pixels that are drawn at a time: memory grows with them


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a picture to clean: a digit, or what the network was trained on")
    parser.add_argument("--level", type=integer(0, 1023), help="noise level of --image, 0 to 1023 (default: estimated)")
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion-mnist", "synthetic"],
                        help="digits to clean")
    parser.add_argument("--model", type=Path, help="weights of examples/train_diffusion.py to use instead of the "
                                                   "package's own")
    parser.add_argument("--images", type=Path, help="folder of pictures to clean, for --model's network")
    add_common(parser, "quickstart")
    return parse(parser)


def draw(model, size, rows, **options):
    """New pictures from pure noise, (rows, columns, C, size, size); the network's classes, up to ten, one a column."""
    columns, batch = min(model.num_classes or 10, 10), max(1, DRAWN // size**2)
    labels, drawn = np.tile(np.arange(columns), rows), []
    for i in range(0, len(labels), batch):
        part = labels[i:i + batch]
        drawn.append(generate(model, DPMSolverMultistepScheduler(use_lu_lambdas=True),
                              (len(part), model.config["in_channels"], size, size), part if model.num_classes else None,
                              num_inference_steps=10, **options))
    return np.concatenate([npdiffusion.to_device(x, "cpu") for x in drawn]).reshape(rows, columns, -1, size, size)


def clean(model, scheduler, originals, rng, path):
    """Noisy, denoised and original pictures at several levels; prints the PSNR over all of them."""
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
        originals = np.roll(originals, -shown, axis=0)  # others at the next level
    labels = ["noisy", "denoised, one-shot", "denoised, DPM-Solver++", "original"]
    save_figure(picture_rows(rows, labels, titles, group=shown, cell=cell(originals)), path)


def how_many(size):
    """Pictures to clean at each level: 64 of 32×32, fewer if they are larger."""
    return max(12, 64 * 32**2 // size**2)


def cell(pictures):
    """Width in inches at which pictures of that size are shown."""
    return 0.62 * math.sqrt(pictures.shape[-1] / 32)


def clean_picture(model, scheduler, picture, level, path):
    """The user's picture on the left, beside its denoised versions."""
    sigma = scheduler.sigmas[level]  # the picture is on its own scale
    smooth = denoise(model, scheduler, picture, sigma=sigma)
    sharp = denoise(model, scheduler, picture, sigma=sigma, method="dpm")
    save_figure(picture_rows([np.concatenate([picture, smooth, sharp])], [""], ["yours", "one-shot", "DPM-Solver++"],
                             cell=1.4), path)


def read_digit(path, scheduler):
    """A picture made to look like MNIST's digits, and the level of its noise as a network sees it."""
    picture, done = load_picture(path)
    print(f"{path}: " + "; ".join(done))
    return picture, int(pretrained("mnist-noise-level").timesteps(picture, scheduler).clip(20, 600)[0])


def read_square(path, scheduler, channels, size):
    """The middle of a picture, and the level of its noise by what is finest in it."""
    picture = load_square(path, size, channels)
    sigma = np.mean([noise_sigma(channel) for channel in picture[0]])
    return picture, int(scheduler.sigma_to_t(sigma.clip(*scheduler.sigmas[[0, -1]])))


def open_folder(path, channels, size):
    """The pictures that were kept for testing, of a folder that fits the network."""
    folder = PictureFolder(path, size, "test", grey=channels == 1)
    if folder.shape[0] != channels:
        raise ValueError(f"{path} holds grey pictures alone, the network takes {channels} channels")
    return folder


def main():
    args = arguments()
    start = time.perf_counter()
    rng, scheduler = npdiffusion.default_generator(), DDPMScheduler()  # --seed has seeded it
    model = load_network(args.model, "mnist-ddpm", UNet, time=True).to(args.device)
    channels, classes, size = model.config["in_channels"], model.num_classes, model.config["sample_size"]
    digits = (channels, classes, size or 32) == (1, 10, 32)
    if not size and not digits:  # who trained it may have had another scheduler
        raise ValueError(f"{args.model} holds a network for another task: its config has no sample_size, which "
                         "examples/train_diffusion.py writes")
    digits = digits and not args.images
    size, what = size or 32, "digits" if digits else "pictures"
    if args.image:
        picture, level = (read_digit(args.image, scheduler) if digits else
                          read_square(args.image, scheduler, channels, size))
        if args.level is None:
            print(f"noise estimated at σ = {scheduler.sigmas[level]:.2f} of a range of 2, which is level t = {level}; "
                  "--level sets another")
    folder = open_folder(args.images, channels, size) if args.images else None  # what is wrong shows before the work

    print(f"Drawing new {what} from pure noise: 10 steps of DPM-Solver++")
    drawn = draw(model, size, rows=6, guidance_scale=2.0, progress=True)
    names = folder.classes if folder and len(folder.classes) == classes else map(str, range(classes or 0))
    save_figure(picture_rows(drawn, [""] * len(drawn), [name[:9] for name in names][:10], cell=cell(drawn)),
                args.out / "generated.png")
    count = how_many(size)
    try:
        if not folder and not digits:
            raise DataNotFoundError("No pictures to clean: --images names a folder of them")
        originals = some(folder, count) if folder else load_digits(args.data, "test").images[:count]
        print(f"Cleaning {len(originals)} test {what} ({args.images or args.data}) at {len(LEVELS)} noise levels")
    except DataNotFoundError as error:
        originals = np.concatenate(drawn)[:count]
        print(f"{error}\nSo: cleaning {what} that the network itself has drawn, at {len(LEVELS)} noise levels")
    clean(model, scheduler, originals, rng, args.out / "denoised.png")
    figures = ["generated.png", "denoised.png"]
    if args.image:
        clean_picture(model, scheduler, picture, level if args.level is None else args.level, args.out / "yours.png")
        figures.append("yours.png")
    print(f"\nFigures, after {time.perf_counter() - start:.0f} s:")
    for name in figures:
        print(f"  {args.out / name}")


if __name__ == "__main__":
    main()
