"""Layers with PyTorch's names, parameter names, shapes and default initialisation."""

from .layers import (
    GELU, AvgPool2d, Conv2d, ConvTranspose2d, Dropout, Embedding, Flatten, GroupNorm, Identity, LayerNorm, Linear,
    MaxPool2d, ReLU, Sigmoid, SiLU, Softplus, Tanh, Upsample,
)
from .module import Module, ModuleList, Parameter, Sequential
