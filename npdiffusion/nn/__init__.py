"""Layers with PyTorch's names, parameter names, shapes and default initialisation."""

from .layers import *  # noqa: F401,F403
from .layers import __all__ as _layers
from .module import Module, ModuleList, Parameter, Sequential

__all__ = ["Module", "ModuleList", "Parameter", "Sequential", *_layers]
