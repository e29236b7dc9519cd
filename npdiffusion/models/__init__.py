"""Networks."""

from .classifier import Classifier
from .pretrained import load_model, pretrained, save_model
from .unet import UNet, timestep_embedding

__all__ = ["Classifier", "UNet", "load_model", "pretrained", "save_model", "timestep_embedding"]
