"""Networks."""

from .unet import UNet, timestep_embedding

__all__ = ["UNet", "timestep_embedding"]
