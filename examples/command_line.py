"""What the command lines of all examples have in common."""

import argparse
import json
import math
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile


def told_plainly(kind, error, traceback):
    """Ctrl-C, missing data, bad files and bad values end a program with one line; all else as Python has it."""
    script = Path(sys.argv[0]).name
    if issubclass(kind, KeyboardInterrupt):
        print(f"{script}: stopped", file=sys.stderr)
        raise SystemExit(130)  # as shells have it
    if issubclass(kind, (KeyError, MemoryError, OSError, ValueError)):
        print(f"{script}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = told_plainly  # before the imports, which take a second

import npdiffusion  # noqa: E402 - first: it chooses NumPy's BLAS kernels
import numpy as np  # noqa: E402

from npdiffusion import Tensor  # noqa: E402
from npdiffusion.data import PictureFolder, load_digits  # noqa: E402
from npdiffusion.distributed import broadcast, own_gpu  # noqa: E402
from npdiffusion.files import atomic_write  # noqa: E402
from npdiffusion.models import load_model, pretrained  # noqa: E402


def option(kind, expected, fits):
    """An argparse type: numbers of that kind (int, float) that ``fits``; the message says what was ``expected``."""
    def convert(text):
        if not fits(kind(text)):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return kind(text)

    convert.__name__ = kind.__name__  # which argparse tells of what is no number
    return convert


def integer(least, most=math.inf):
    """The argparse type of integers from ``least`` to ``most``."""
    expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
    return option(int, expected, lambda n: least <= n <= most)


above_0 = option(float, "a number above 0", lambda x: 0 < x < math.inf)
at_least_0 = option(float, "a number of at least 0", lambda x: 0 <= x < math.inf)
below_1 = option(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def parser_for(doc, name, data=("mnist", "synthetic"), trains=True):
    """An argparse parser with the options that the examples share; --out is runs/NAME, --data the first by default.

    What a training's preset sets (--steps, --batch-size, --channels) is there if the example ``trains``.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu", choices=["smoke", "cpu", "long"],
                        help="smoke: seconds, to see that it runs; cpu: minutes on 2 cores; long: the best results. "
                             "Options you give yourself come before the preset's")
    parser.add_argument("--data", default=data[0], choices=data)
    parser.add_argument("--resume", action="store_true", help="go on from what --out holds")
    parser.add_argument("--threads", type=integer(1), help="default: all cores")
    add_common(parser, name)
    if trains:
        parser.add_argument("--steps", type=integer(1), help="training steps in all")
        parser.add_argument("--batch-size", type=integer(1))
        parser.add_argument("--channels", type=integer(1), nargs="+", help="for each resolution, from the largest down")
        parser.add_argument("--save-minutes", type=at_least_0, default=5.0, help="time between checkpoints")
        parser.add_argument("--cuda-graph", action="store_true",
                            help="with --device cuda: record a training step as a CUDA graph, and replay it")
    return parser


def add_pictures(parser):
    """The options of trainings on pictures of one's own: --images, --size and --grey."""
    parser.add_argument("--images", type=Path, help="train on the pictures in this folder, of any size and colour, "
                                                    "instead of --data; its subfolders are classes")
    parser.add_argument("--size", type=int, choices=[32, 64, 128], default=32, help="side to which they are brought")
    parser.add_argument("--grey", action="store_true", default=None, help="turn them grey")


def add_common(parser, name):
    """The options --out, --seed and --device."""
    def device(name):
        try:
            return Tensor(0.0, device=own_gpu() if name == "cuda" else name).device
        except (RuntimeError, ValueError) as error:  # no GPU, or no such name
            raise argparse.ArgumentTypeError(str(error)) from error

    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="directory for all that is written")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--device", type=device, default="cpu",
                        help="cpu (the default), or cuda: an NVIDIA GPU, which needs pip install 'npdiffusion[cuda]'")


def parse(parser, presets=None):
    """The arguments, where those not given take the value that ``presets[preset]`` ({option: value}) has for them.

    With --size (see ``add_pictures``) the presets are for 32×32 pixels: larger pictures get a level more for each
    doubling, so that three levels always end at 8×8, and there are fewer of them in a batch and in a test.
    Seeds the library's generator with --seed, too, and makes sure that --out can be written to.
    """
    if presets:
        given = parser.parse_known_args()[0]
        preset = dict(presets[given.preset])
        if doublings := {64: 1, 128: 2}.get(getattr(given, "size", 32)):
            preset["channels"] = preset["channels"] + preset["channels"][-1:] * doublings
            for key in preset.keys() & {"batch_size", "test", "pictures"}:
                preset[key] = min(preset[key], max(8, preset[key] // 4**doublings))
        parser.set_defaults(**preset)
    args = parser.parse_args()
    if "grey" in args and not args.images:
        if args.grey or args.size != 32:
            parser.error("arguments --size and --grey: they are for pictures of your own, so give --images, too")
        args.size = None  # no setting of a training on --data
    try:
        broadcast(lambda: check_writable(args.out))
    except OSError as error:
        parser.error(f"argument --out: nothing can be written to {args.out} ({error.strerror}); choose another")
    npdiffusion.manual_seed(args.seed)
    if getattr(args, "threads", None):
        npdiffusion.set_num_threads(args.threads)
    return args


def check_writable(out):
    """OSError unless files can be made in the directory ``out``; one that is not there yet is made and removed."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def load_network(path, name, kind, **config):
    """The network in the file ``path``, or if that is None the pretrained one of that name.

    Raises ValueError unless it is of that kind, and its ``config`` has these values; OSError if there is no such file.
    """
    model = load_model(path) if path else pretrained(name)
    if not isinstance(model, kind) or any(model.config[key] != value for key, value in config.items()):
        expected, got = (f"{cls.__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"
                         for cls, settings in ((kind, config), (type(model), model.config)))
        raise ValueError(f"{path or name} holds a network for another task: expected {expected}, got {got}")
    return model


def checksum(model):
    """Of a network's weights, which belongs to the settings of what is measured with it."""
    return zlib.crc32(b"".join(value.tobytes() for value in model.state_dict().values()))


def load_examples(args, split="train"):
    """The ``PictureFolder`` of --images, or the digits behind --data."""
    if not args.images:
        return load_digits(args.data, split)
    folder = PictureFolder(args.images, args.size, split, args.grey)
    if split == "train":
        print(*folder.said, sep="\n")
    return folder


def some(dataset, count):
    """That many pictures of a dataset, at most all, drawn always alike: (N, C, H, W)."""
    return dataset[np.random.default_rng(0).permutation(len(dataset))[:count]][0]


def settings_of(args):
    """The options that shape a training: all but where things lie, how long between saves, and what computes.

    The preset is spelled out by the options that it sets. Options without a value (paths not given) are left out.
    """
    return {k: v for k, v in vars(args).items() if v is not None and not isinstance(v, Path)
            and k not in ("preset", "resume", "threads", "device", "save_minutes", "cuda_graph")}


def write_metrics(out, metrics):
    """Write metrics.json, and print it."""
    text = json.dumps(metrics, indent=2)
    with atomic_write(Path(out) / "metrics.json") as file:
        file.write(text.encode() + b"\n")
    print(text)
