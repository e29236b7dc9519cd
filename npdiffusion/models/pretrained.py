"""Networks to files and back, and those that come with the package."""

import sys
from pathlib import Path

from ..checkpoint import load_weights, save_weights
from .classifier import Classifier
from .noise_level import NoiseLevelNet
from .unet import UNet
from .unet2d import UNet2DModel
from .vae import VAE

PACKAGE = Path(__file__).parent.parent
# The package's own; those of a checkout, found next to the package or to the example that runs
WEIGHTS = PACKAGE / "weights", PACKAGE.parent / "examples" / "weights", Path(sys.argv[0]).parent / "weights"
CLASSES = {kind.__name__: kind for kind in (Classifier, NoiseLevelNet, UNet, UNet2DModel, VAE)}


def save_model(path, model, dtype=None):
    """Write a network of this package for ``load_model``: its class, ``config`` and weights.

    dtype: None, or "float16" for a file of half the size. Raises as ``checkpoint.save_weights``.
    """
    save_weights(path, model.state_dict(), {"class": type(model).__name__, **model.config}, dtype)


def load_model(path):
    """The network that ``save_model`` wrote, with its weights, in evaluation mode.

    Raises FileNotFoundError or ValueError: no such file, a damaged one, or one of another architecture.
    """
    state, config = load_weights(path)
    kind = config.pop("class", "UNet")
    if kind not in CLASSES:
        raise ValueError(f"{path} holds a {kind}, which this version does not know; it knows {', '.join(CLASSES)}")
    try:
        model = CLASSES[kind](**config)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of a {kind} as this version builds it: {error}") from error
    return model.eval()


def pretrained(name="mnist-ddpm"):
    """A network trained by this project; a card (NAME.md) lies next to its weights.

    In npdiffusion/weights: "mnist-ddpm" is the class-conditional ε-predictor for 32×32 digits, which goes with
    ``DDPMScheduler()``'s defaults; "mnist-classifier" tells the ten digits apart; "mnist-noise-level" estimates how
    noisy a digit is. In examples/weights, from a checkout only, as their licence is the data's (CC BY-NC-SA 3.0):
    "sstem-mitochondria" finds mitochondria in electron micrographs, "sstem-ddpm" predicts their noise.

    Raises ValueError, which says where a network is to be had.
    """
    for folder in WEIGHTS:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            return load_model(path)
    if name.startswith("sstem-"):
        raise ValueError(f"{name} is not part of the installed package: its licence is that of its data, CC BY-NC-SA. "
                         f"It is examples/weights/{name}.safetensors in the project's repository: run from a checkout, "
                         "or pass that file to load_model")
    names = ", ".join(sorted(p.stem for folder in WEIGHTS for p in folder.glob("*.safetensors"))) or "none"
    raise ValueError(f"no pretrained network called {name!r}; there are: {names}")
