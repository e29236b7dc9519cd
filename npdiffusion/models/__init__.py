"""Networks."""

from .classifier import Classifier
from .noise_level import NoiseLevelNet, laplace_nll
from .pretrained import load_model, pretrained, save_model
from .unet import UNet, timestep_embedding
from .unet2d import UNet2DModel
from .vae import VAE, bernoulli_nll, gaussian_kl, vae_loss
