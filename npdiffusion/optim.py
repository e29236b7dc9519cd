"""Optimisers, gradient clipping, learning-rate schedules, and the moving average of weights.

Here are names, state and checks; the formulas are kernels (``kernels/plain/optim.py``). What changes from step to step
(step counts, the learning rate) are arrays () beside the parameters, so that a step recorded as a CUDA graph goes on
counting when it is replayed.
"""

import math

import numpy as np

from .device import array_module, copy_into, device_of, to_device
from .kernels import kernels
from .tensor import Tensor


class Optimizer:
    """Base class: parameters, a learning rate ``lr`` that may be set at any time, and state for checkpoints.

    The state follows the parameters when a model is moved to another device or dtype. Raises TypeError for anything
    but floating-point Tensors, ValueError for none, for one given twice or computed from others, and for bad numbers.
    """

    buffers = ()  # names of the lists of arrays that a subclass keeps, one array for each parameter

    def __init__(self, parameters, lr):
        self.parameters = _tensors(type(self).__name__, parameters)
        count, different = len(self.parameters), len(set(self.parameters))
        if not count == different > 0 or not all(p.is_leaf for p in self.parameters):
            raise ValueError(f"{type(self).__name__} expects parameters, each once, none a non-leaf Tensor, which was "
                             f"computed from others: got {count}, {different} different")
        self.rate, self.steps = np.zeros(()), np.zeros(len(self.parameters), np.int64)
        for name in self.buffers:
            setattr(self, name, [array_module(p.data).zeros_like(p.data) for p in self.parameters])
        self._follow()
        self.lr = lr

    def _follow(self):
        """Bring the state to where the parameters are now, if they were moved or converted."""
        self.rate, self.steps = (_brought(a, self.parameters[0].data, a.dtype) for a in (self.rate, self.steps))
        for name in self.buffers:
            setattr(self, name, [_brought(a, p.data, p.dtype) for a, p in zip(getattr(self, name), self.parameters)])

    @property
    def lr(self):
        return self._lr

    @lr.setter
    def lr(self, lr):
        _check_numbers(type(self).__name__, lr=lr)
        self._lr = lr
        self.rate.fill(lr)  # where a kernel reads it, also when it is replayed

    def zero_grad(self):
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self):
        """Move every parameter that has a gradient."""
        self._follow()
        moved = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if moved:
            weights, grads = [self.parameters[i].data for i in moved], [self.parameters[i].grad for i in moved]
            state = [[getattr(self, name)[i] for i in moved] for name in self.buffers]
            self.update(kernels(weights[0]), weights, grads, *state, [self.steps[i, ...] for i in moved])

    def state_dict(self):
        """{name: array} to go on from; the arrays are the optimiser's own."""
        self._follow()
        arrays = {f"{name}.{i}": a for name in self.buffers for i, a in enumerate(getattr(self, name))}
        return {"steps": self.steps, "lr": np.array(self.lr, float), **arrays}

    def load_state_dict(self, state):
        """Take over what ``state_dict`` gave; KeyError or ValueError if it is of other parameters."""
        if "steps" in state and not np.shape(state["steps"]):  # version 0.1 counted once for all parameters
            state = {**state, "steps": np.full(len(self.steps), state["steps"])}
        own = self.state_dict()
        copy_into(own, state, "optimiser state does not fit")
        self.lr = float(own["lr"])


class SGD(Optimizer):
    """v ← μ·v + g + λ·w (v = 0 at first), w ← w − lr·v; μ momentum, λ weight decay (Sutskever et al. 2013)."""

    buffers = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr)
        _check_numbers("SGD", momentum=momentum, weight_decay=weight_decay)
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(self, room, weights, grads, velocity, steps):
        room.sgd(weights, grads, velocity, self.rate, self.momentum, self.weight_decay)


class Adam(Optimizer):
    """m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← w − lr·m̂/(√v̂ + ε) (Kingma & Ba 2015, alg. 1).

    m̂ = m/(1 − β₁^k) and v̂ = v/(1 − β₂^k) at a parameter's step k. weight_decay λ adds λ·w to g.
    """

    buffers = ("m", "v")
    decoupled = False

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, lr)
        if not all(0 <= b < 1 for b in betas):
            raise ValueError(f"{type(self).__name__} expects betas in [0, 1), got {betas!r}")
        _check_numbers(type(self).__name__, eps=eps, weight_decay=weight_decay)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def update(self, room, weights, grads, m, v, steps):
        room.adam(weights, grads, m, v, steps, self.rate, *self.betas, self.eps, self.weight_decay, self.decoupled)


class AdamW(Adam):
    """Adam with decoupled weight decay: w ← (1 − lr·λ)·w before the step (Loshchilov & Hutter 2019, alg. 2)."""

    decoupled = True

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)


def clip_grad_norm_(parameters, max_norm):
    """Scale all gradients, in place, by max_norm/‖g‖ if their joint norm ‖g‖ is larger (Pascanu et al. 2013).

    parameters: Tensors, of which each counts once, or one Tensor. If ‖g‖ is NaN, so become all gradients.

    Returns ‖g‖: a float, on a GPU an array (), so that nothing waits for it. Raises TypeError for what is no Tensor,
    ValueError for a negative max_norm.
    """
    _check_numbers("clip_grad_norm_", max_norm=max_norm)
    parameters = _tensors("clip_grad_norm_", [parameters] if isinstance(parameters, Tensor) else parameters)
    grads = [p.grad for p in dict.fromkeys(parameters) if p.grad is not None]
    return kernels(grads[0]).clip_grad_norm(grads, max_norm) if grads else 0.0


def _tensors(name, parameters):
    """A list of them; TypeError for what could have no gradient."""
    whole = isinstance(parameters, (Tensor, dict, set)) or hasattr(parameters, "parameters")
    parameters = [parameters] if whole else list(parameters)
    for p in parameters:
        if whole or not isinstance(p, Tensor) or p.dtype.kind != "f":
            raise TypeError(f"{name}: params should be an iterable of Tensors with a floating dtype, as is "
                            f"model.parameters() (make an optimiser for each group of parameters), got a "
                            f"{type(p).__name__} {getattr(p, 'dtype', '')}")
    return parameters


def _check_numbers(name, **numbers):
    for option, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name} expects {option} >= 0, got {value!r}")


def warmup_cosine(step, total_steps, warmup_steps=0, final=0.0):
    """Factor on the learning rate at ``step`` (0, 1, ...): rises to 1 over ``warmup_steps``, then falls to ``final``
    at ``total_steps`` along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class EMA:
    """Exponential moving average of a module's parameters: s ← d·s + (1 − d)·w after every step.

    The decay warms up, d = min(decay, (1 + k)/(10 + k)) at update k, so that the start is soon forgotten.
    ``weights`` is a state_dict of the averages, ``updates`` the array () that counts them; both follow the module to
    another device or dtype. ``swap()`` exchanges the averages with the module's parameters.
    """

    def __init__(self, module, decay=0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA expects a decay in [0, 1), got {decay!r}")
        self.module, self.decay, self.updates = module, decay, np.zeros((), np.int64)
        self.averages = {p: p.data.copy(order="K") for p in module.parameters()}

    @property
    def weights(self):
        return {name: self.averages[p] for name, p in self.module.named_parameters(remove_duplicate=False)}

    def _follow(self):
        """Bring the averages to where the parameters are now; returns both, lists of arrays."""
        self.averages = {p: _brought(a, p.data, p.dtype) for p, a in self.averages.items()}
        weights = [p.data for p in self.averages]
        self.updates = _brought(self.updates, weights[0], self.updates.dtype)
        return list(self.averages.values()), weights

    def update(self):
        """Take the parameters' present values into the average."""
        averages, weights = self._follow()
        kernels(weights[0]).ema(averages, weights, self.updates, self.decay)

    def swap(self):
        """Exchange averages and parameters; call again to change back."""
        for s, w in zip(*self._follow()):
            s[...], w[...] = w.copy(), s.copy()

    def load(self, weights, updates=0):
        """Copy averages (a state_dict, of any device) into these, and their count; errors as ``load_state_dict``'s."""
        self._follow()
        copy_into(self.weights, weights, "averages do not fit")
        self.updates.fill(updates)


def _brought(array, place, dtype):
    """The array on the device of ``place`` and of a dtype: itself if it is so already."""
    there = device_of(array) == device_of(place) and array.dtype == dtype
    return array if there else to_device(array, place).astype(dtype)
