"""What the command lines of all examples have in common."""

import argparse
import json
from contextlib import contextmanager
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
from npdiffusion import Tensor
from npdiffusion.files import atomic_write


def parser_for(doc, name, data=("mnist", "synthetic"), trains=True):
    """An argparse parser with the options that the examples share; --out is runs/NAME, --data the first by default.

    What a training's preset sets (--steps, --batch-size, --channels) is there if the example ``trains``.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu", choices=["smoke", "cpu", "long"],
                        help="smoke: seconds, to see that it runs; cpu: minutes on 2 cores; long: the best results. "
                             "Options you give yourself come before the preset's")
    parser.add_argument("--data", default=data[0], choices=data)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="directory for all that is written")
    parser.add_argument("--resume", action="store_true", help="go on from what --out holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: all cores")
    add_device(parser)
    if trains:
        parser.add_argument("--steps", type=int, help="training steps in all")
        parser.add_argument("--batch-size", type=int)
        parser.add_argument("--channels", type=int, nargs="+", help="for each resolution, from the largest down")
        parser.add_argument("--save-minutes", type=float, default=5.0, help="time between checkpoints")
        parser.add_argument("--cuda-graph", action="store_true",
                            help="with --device cuda: record a training step as a CUDA graph, and replay it")
    return parser


def add_device(parser):
    """The option --device."""
    def device(name):
        try:
            return Tensor(0.0, device=name).device
        except (RuntimeError, ValueError) as error:  # no GPU, or no such name
            raise argparse.ArgumentTypeError(str(error)) from error

    parser.add_argument("--device", type=device, default="cpu",
                        help="cpu (the default), or cuda: an NVIDIA GPU, which needs pip install 'npdiffusion[cuda]'")


def parse(parser, presets):
    """The arguments, where those not given take the value that ``presets[preset]`` ({option: value}) has for them.

    Seeds the library's generator with --seed, too.
    """
    preset = parser.parse_known_args()[0].preset
    parser.set_defaults(**presets[preset])
    args = parser.parse_args()
    for name, value in vars(args).items():
        if name in ("steps", "batch_size", "threads") and value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    npdiffusion.manual_seed(args.seed)
    if args.threads:
        npdiffusion.set_num_threads(args.threads)
    return args


@contextmanager
def told_plainly(script):
    """Context in which missing data, bad files and bad values end the program with their message alone."""
    try:
        yield
    except (KeyError, OSError, ValueError) as error:
        raise SystemExit(f"{script}: {error}") from error


def settings_of(args):
    """The options that shape a training: all but where things lie, how long between saves, and what computes.

    The preset is spelled out by the options that it sets.
    """
    return {k: v for k, v in vars(args).items() if not isinstance(v, Path)
            and k not in ("preset", "resume", "threads", "device", "save_minutes", "cuda_graph")}


def write_metrics(out, metrics):
    """Write metrics.json, and print it."""
    text = json.dumps(metrics, indent=2)
    with atomic_write(Path(out) / "metrics.json") as file:
        file.write(text.encode() + b"\n")
    print(text)
