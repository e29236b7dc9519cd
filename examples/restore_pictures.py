"""Your own pictures with a hole, of few pixels, or without colours, restored by a network that knows such ones.

    python examples/train_diffusion.py --images my_pictures --out runs/mine
    python examples/restore_pictures.py --model runs/mine/model.safetensors --images my_pictures

The pictures that the training left for testing are measured, y = A x_0, and ``restore`` draws pictures that could have
been measured so. Printed is the PSNR of one sample, of their mean, and of two pictures without a network: A⁺ y, and of
all x with A x = y the one of least total variation. A network that has been trained for long enough is above them.
Written to --out: hole.png, few_pixels.png and colours.png, each measured / three samples / mean / spread / original.
"""

import argparse
from pathlib import Path

from command_line import add_common, at_least_0, integer, load_network, parse, some
from quickstart import cell, open_folder
from restore_digits import ROWS, rows_of, total_variation

import numpy as np

from npdiffusion.diffusion import AveragePool, DDPMScheduler, Gray, Inpaint, restore
from npdiffusion.figures import picture_rows, save_figure
from npdiffusion.metrics import psnr
from npdiffusion.models import UNet


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="weights of examples/train_diffusion.py")
    parser.add_argument("--images", type=Path, required=True, help="the folder of pictures that it was trained on")
    parser.add_argument("--count", type=integer(1), default=8, help="pictures to restore")
    parser.add_argument("--samples", type=integer(3), default=4, help="drawn for each")
    parser.add_argument("--steps", type=integer(1, 1024), default=50, help="from noise to picture")
    parser.add_argument("--weight", type=at_least_0, default=2.0, help="factor of what draws samples to the measured")
    add_common(parser, "restored-pictures")
    return parse(parser)


def problems(channels, size):
    """{name: operator} for pictures (channels, size, size)."""
    mask = np.ones((size, size), bool)
    mask[size // 3:2 * size // 3, size // 3:2 * size // 3] = False
    found = {"hole": Inpaint(mask), "few_pixels": AveragePool(4)}
    return found | {"colours": Gray()} if channels == 3 else found


def main():
    args = arguments()
    model = load_network(args.model, None, UNet, time=True).to(args.device)
    channels, size = model.config["in_channels"], model.config["sample_size"] or 32
    images = some(open_folder(args.images, channels, size), args.count)
    for name, operator in problems(channels, size).items():
        y = operator.forward(images)
        samples = restore(model, DDPMScheduler(), y, operator, num_inference_steps=args.steps, weight=args.weight,
                          num_samples=args.samples, progress=True)
        found = {"one sample": samples[0], f"mean of {args.samples}": samples.mean(0), "A⁺ y": operator.pinv(y),
                 "total variation": total_variation(y, operator, 0, 0.1)}
        print(f"{name}: " + ", ".join(f"{kind} {psnr(x.clip(-1, 1), images).mean():.1f} dB"
                                      for kind, x in found.items()))
        save_figure(picture_rows(rows_of(operator.pinv(y), samples, images), ROWS, cell=cell(images)),
                    args.out / f"{name}.png")


if __name__ == "__main__":
    main()
