"""Optimisers, gradient clipping, learning-rate schedules, and the moving average of weights.

Here are names, state and checks; the formulas are kernels (``kernels/plain/optim.py``). What changes from step to step
(step counts, the learning rate) are arrays () beside the parameters, so that a step recorded as a CUDA graph goes on
counting when it is replayed.
"""

import math

import numpy as np

from .device import array_module, device_of, to_device
from .kernels import kernels

__all__ = ["Adam", "AdamW", "EMA", "SGD", "clip_grad_norm_", "warmup_cosine"]


class Optimizer:
    """Base class: parameters, a learning rate ``lr`` that may be set at any time, and state for checkpoints.

    The state follows the parameters when a model is moved to another device or dtype.
    """

    buffers = ()  # names of the lists of arrays that a subclass keeps, one array for each parameter

    def __init__(self, parameters, lr):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__} got no parameters")
        if not lr >= 0:
            raise ValueError(f"{type(self).__name__} expects a learning rate >= 0, got {lr!r}")
        self.rate, self.steps = np.zeros(()), np.zeros(len(self.parameters), np.int64)
        for name in self.buffers:
            setattr(self, name, [array_module(p.data).zeros_like(p.data) for p in self.parameters])
        self._follow()
        self.lr = lr

    def _follow(self):
        """Bring the state to where the parameters are now, if they were moved or converted."""
        first, state = self.parameters[0].data, [getattr(self, name) for name in self.buffers]
        if device_of(self.rate) != device_of(first) or any(arrays[0].dtype != first.dtype for arrays in state):
            self.rate, self.steps = to_device(self.rate, first), to_device(self.steps, first)
            for name, arrays in zip(self.buffers, state):
                setattr(self, name, _brought(arrays, [p.data for p in self.parameters]))

    @property
    def lr(self):
        return self._lr

    @lr.setter
    def lr(self, lr):
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
        """{name: array or number} to go on from; the arrays are the optimiser's own."""
        self._follow()
        arrays = {f"{name}.{i}": a for name in self.buffers for i, a in enumerate(getattr(self, name))}
        return {"steps": self.steps, "lr": self.lr, **arrays}

    def load_state_dict(self, state):
        """Take over what ``state_dict`` gave; KeyError or ValueError if it is of other parameters."""
        own = self.state_dict()
        if set(own) != set(state):
            raise KeyError(f"optimiser state does not fit: missing {sorted(set(own) - set(state))}, "
                           f"unexpected {sorted(set(state) - set(own))}")
        state = {name: a if hasattr(a, "dtype") else np.asarray(a) for name, a in state.items()}
        if not state["steps"].shape:  # version 0.1 counted once for all parameters
            state["steps"] = np.broadcast_to(state["steps"], len(self.steps))
        for name, a in own.items():
            if np.shape(a) != state[name].shape:
                raise ValueError(f"optimiser state {name}: expected shape {np.shape(a)}, got {state[name].shape}")
        self.lr = float(state.pop("lr"))
        for name, saved in state.items():
            own[name][...] = to_device(saved, own[name])


class SGD(Optimizer):
    """v ← μ·v + g + λ·w (v = 0 at first), w ← w − lr·v; μ momentum, λ weight decay (Sutskever et al. 2013)."""

    buffers = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr)
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

    Returns ‖g‖: a float, on a GPU an array (), so that nothing waits for it.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    return kernels(grads[0]).clip_grad_norm(grads, max_norm) if grads else 0.0


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
        self.weights = {name: a.copy(order="K") for name, a in module.state_dict().items()}

    def _pairs(self):
        """The averages, brought to where the parameters are now, and the parameters: two lists of arrays."""
        state = self.module.state_dict()
        first = next(iter(state.values()))
        if device_of(self.updates) != device_of(first) or self.weights[next(iter(state))].dtype != first.dtype:
            self.updates = to_device(self.updates, first)
            self.weights = dict(zip(state, _brought([self.weights[name] for name in state], state.values())))
        return [self.weights[name] for name in state], list(state.values())

    def update(self):
        """Take the parameters' present values into the average."""
        averages, weights = self._pairs()
        kernels(weights[0]).ema(averages, weights, self.updates, self.decay)

    def swap(self):
        """Exchange averages and parameters; call again to change back."""
        for s, w in zip(*self._pairs()):
            s[...], w[...] = w.copy(), s.copy()

    def load(self, weights, updates=0):
        """Copy averages (a state_dict, of any device) into these, and their count; KeyError if the names differ."""
        if set(weights) != set(self.weights):
            raise KeyError(f"averages do not fit: expected {sorted(self.weights)}, got {sorted(weights)}")
        self._pairs()
        self.updates.fill(updates)
        for name, average in self.weights.items():
            average[...] = to_device(weights[name], average)


def _brought(arrays, places):
    """The arrays, each on the device and of the dtype of the one in ``places``."""
    return [to_device(a, place).astype(place.dtype, copy=False) for a, place in zip(arrays, places)]
