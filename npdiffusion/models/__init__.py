"""Networks."""

from .pretrained import load_model, pretrained
from .unet import UNet, timestep_embedding

__all__ = ["UNet", "load_model", "pretrained", "timestep_embedding"]
