"""Modules: parameters by name, and containers of modules."""

from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain

from ..device import copy_into, is_device, to_device
from ..tensor import Tensor


class Parameter(Tensor):
    """A Tensor that a Module lists among its parameters; it requires gradients."""

    __slots__ = ()

    def __init__(self, data, requires_grad=True, device=None):
        super().__init__(data, requires_grad, device)


_evaluated = ContextVar("evaluated", default=frozenset())  # modules in evaluation mode in this thread, see evaluating


class Module:
    """Base class: parameters and modules set as attributes are found by name; calling it runs ``forward``.

    A parameter or a module may stand under several names (tied weights): it is one all the same.
    """

    def forward(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_children(self):
        """(name, module) of the modules directly in this one, in the order they were set."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def modules(self):
        """This module and all below it, each once."""
        below = (module for _, child in self.named_children() for module in child.modules())
        return iter(dict.fromkeys([self, *below]))

    def named_parameters(self, prefix="", remove_duplicate=True):
        """(dotted name, Parameter) of everything that is trained here and below: each once, or under all its names."""
        prefix, seen = f"{prefix}." if prefix else "", set()
        own = ((prefix + name, value) for name, value in vars(self).items() if isinstance(value, Parameter))
        below = (child.named_parameters(prefix + name, remove_duplicate) for name, child in self.named_children())
        for name, parameter in chain(own, *below):
            if not (remove_duplicate and parameter in seen):
                seen.add(parameter)
                yield name, parameter

    def parameters(self):
        """The Parameters, in the order of ``named_parameters``."""
        return (parameter for _, parameter in self.named_parameters())

    def zero_grad(self):
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    @property
    def training(self):
        """Whether this module is in training mode (dropout drops)."""
        return vars(self).get("training", True) and self not in _evaluated.get()

    @training.setter
    def training(self, mode):
        vars(self)["training"] = mode

    @contextmanager
    def evaluating(self):
        """Context in which this module and all below it are in evaluation mode, for this thread alone."""
        token = _evaluated.set(_evaluated.get().union(self.modules()))
        try:
            yield self
        finally:
            _evaluated.reset(token)

    def train(self, mode=True):
        """Training mode (dropout drops) for this module and all below it; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """Evaluation mode; returns self."""
        return self.train(False)

    def requires_grad_(self, requires_grad=True):
        """Freeze (False) or train (True) all parameters; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, target):
        """Parameters moved to a device ("cpu", "cuda", "cuda:1") or converted to a floating dtype; returns self."""
        for parameter in self.parameters():
            data = parameter.data
            parameter.data = to_device(data, target) if is_device(target) else data.astype(target)
            parameter.grad = None
        return self

    def cpu(self):
        """Parameters moved to the CPU; returns self."""
        return self.to("cpu")

    def cuda(self):
        """Parameters moved to the GPU; returns self."""
        return self.to("cuda")

    @property
    def device(self):
        """Where the parameters are: "cpu", "cuda:0", ... ("cpu" if there are none)."""
        return next((parameter.device for parameter in self.parameters()), "cpu")

    def state_dict(self):
        """{dotted name: array} of all parameters, under all names, on their device. The arrays are their own: copy what
        you keep."""
        return {name: parameter.data for name, parameter in self.named_parameters(remove_duplicate=False)}

    def load_state_dict(self, state_dict, strict=True):
        """Copy arrays of any device (or what NumPy takes for one, as PyTorch's CPU tensors) into the parameters.

        Raises KeyError if names are missing or unexpected (with ``strict``), ValueError if a shape differs; then
        nothing is loaded.
        """
        copy_into(self.state_dict(), state_dict, f"state_dict does not fit {type(self).__name__}", strict)

    def __repr__(self):
        inside = "".join(f"\n  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.named_children())
        return f"{type(self).__name__}({self.extra_repr()}{inside}" + ("\n)" if inside else ")")

    def extra_repr(self):
        """What ``repr`` says of this module's own settings."""
        return ", ".join(f"{name}={value!r}" for name, value in vars(self).items()
                         if isinstance(value, (bool, int, float, str, tuple)) and name != "training")


class ModuleList(Module):
    """A list of modules, named "0", "1", ..."""

    def __init__(self, modules=()):
        for module in modules:
            self.append(module)

    def append(self, module):
        """Add a module at the end; returns self."""
        setattr(self, str(len(self)), module)
        return self

    def __len__(self):
        return sum(1 for _ in self.named_children())

    def __iter__(self):
        return (child for _, child in self.named_children())

    def __getitem__(self, index):
        return list(self)[index]


class Sequential(ModuleList):
    """Modules one after the other: Sequential(a, b)(x) = b(a(x))."""

    def __init__(self, *modules):
        super().__init__(modules)

    def forward(self, input):
        for module in self:
            input = module(input)
        return input
