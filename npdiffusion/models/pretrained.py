"""Networks from files, and those that come with the package."""

from pathlib import Path

from ..checkpoint import load_weights
from .unet import UNet

__all__ = ["load_model", "pretrained"]

WEIGHTS = Path(__file__).parent.parent / "weights"


def load_model(path):
    """The UNet that a file of ``checkpoint.save_weights`` describes, with its weights, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or one of another architecture.
    """
    state, config = load_weights(path)
    try:
        model = UNet(**config)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of a UNet as this version builds it: {error}") from error
    return model.eval()


def pretrained(name="mnist-ddpm"):
    """A network trained by this project: "mnist-ddpm", the class-conditional ε-predictor for 32×32 digits.

    It goes with ``DDPMScheduler()``'s defaults (1024 steps, linear schedule). See the card in npdiffusion/weights.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.safetensors"))) or "none"
        raise ValueError(f"no pretrained network called {name!r}; there are: {names}")
    return load_model(path)
