"""Optimisers, gradient clipping, learning-rate schedules, and the moving average of weights.

On a GPU every launch of a kernel costs time, and a network has a hundred parameters. ``Module.to`` makes them pieces of
one flat array; here so are the gradients and the optimiser's state, and one kernel updates them all.
"""

import math

import numpy as np

from .backend import array_module, beside, device_of, kernels, pack, packed

__all__ = ["Adam", "AdamW", "EMA", "SGD", "clip_grad_norm_", "warmup_cosine"]


class Optimizer:
    """Base class: parameters, a learning rate ``lr`` that may be set at any time, and state for checkpoints.

    The state follows the parameters when a model is moved to another device.
    """

    buffers = ()  # names of the lists of arrays that a subclass keeps, one array for each parameter

    def __init__(self, parameters, lr):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__} got no parameters")
        if not lr >= 0:
            raise ValueError(f"{type(self).__name__} expects a learning rate >= 0, got {lr!r}")
        self.lr, self.steps = lr, 0
        for name in self.buffers:
            setattr(self, name, [array_module(p.data).zeros_like(p.data) for p in self.parameters])
        self._places = ()
        self._follow()

    def _follow(self):
        """Bring the state to where the parameters are now, and see whether all of it is flat there (None if not)."""
        places = [p.data for p in self.parameters]
        if not _same(places, self._places):
            for name in self.buffers:
                setattr(self, name, _like(getattr(self, name), places))
            self._places, self._flat = places, _flat(places, *(getattr(self, name) for name in self.buffers))

    def zero_grad(self):
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def advance(self):
        """Count a step; returns the numbers that change from step to step, lr first."""
        self.steps += 1
        return [self.lr]

    def step(self, changing=None):
        """Move every parameter that has a gradient.

        changing: what ``advance()`` returned, as an array on the GPU, for a step that is captured in a CUDA graph:
        a replay reads it there, where a number would stay what it was. By default the step advances by itself.
        """
        changing = self.advance() if changing is None else changing
        self._follow()
        grads = [p.grad for p in self.parameters]
        if self._flat and all(g is not None for g in grads):
            w, *state = self._flat
            return self.update(changing, w, _gathered(grads), *state)
        for w, g, *state in zip(self._places, grads, *(getattr(self, name) for name in self.buffers)):
            if g is not None:
                self.update(changing, w, g, *state)

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
        for name, a in own.items():
            if np.shape(a) != np.shape(state[name]):
                raise ValueError(f"optimiser state {name}: expected shape {np.shape(a)}, got {np.shape(state[name])}")
        self.steps, self.lr = int(state["steps"]), float(state["lr"])
        for name in self.buffers:
            for i, a in enumerate(getattr(self, name)):
                saved = state[f"{name}.{i}"]
                a[...] = beside(saved if hasattr(saved, "dtype") else np.asarray(saved), a)


class SGD(Optimizer):
    """v ← μ·v + (g + λ·w) (v = g + λ·w at first), w ← w − lr·v; μ momentum, λ weight decay (Sutskever et al. 2013)."""

    buffers = ("velocity",)

    def __init__(self, parameters, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr)
        self.momentum, self.weight_decay = momentum, weight_decay

    def update(self, changing, w, g, v):
        if self.weight_decay:
            g = g + self.weight_decay * w
        if self.momentum:
            v *= self.momentum
            v += g
            g = v
        w -= changing[0] * g


class Adam(Optimizer):
    """m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², w ← w − lr·m̂/(√v̂ + ε) (Kingma & Ba 2015, alg. 1).

    m̂ = m/(1 − β₁^k) and v̂ = v/(1 − β₂^k) at step k. weight_decay λ adds λ·w to g.
    """

    buffers = ("m", "v")
    decoupled = False

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, lr)
        if not all(0 <= b < 1 for b in betas):
            raise ValueError(f"{type(self).__name__} expects betas in [0, 1), got {betas!r}")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def advance(self):
        """Count step k; returns lr, 1 − β₁^k and 1 − β₂^k."""
        return [*super().advance(), *(1 - beta ** self.steps for beta in self.betas)]

    def update(self, changing, w, g, m, v):
        beta1, beta2 = self.betas
        if device_of(w) != "cpu" and _alike_in_memory(w, g, m, v):
            return kernels(w).adam(w, g, m, v, changing, beta1, beta2, self.eps, self.weight_decay, self.decoupled)
        lr, correction1, correction2 = map(float, changing)
        if self.weight_decay and self.decoupled:
            w *= 1 - lr * self.weight_decay
        elif self.weight_decay:
            g = g + self.weight_decay * w
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        root = array_module(v).sqrt(v)
        root *= 1 / math.sqrt(correction2)
        root += self.eps
        w -= (lr / correction1) * m / root


class AdamW(Adam):
    """Adam with decoupled weight decay: w ← (1 − lr·λ)·w before the step (Loshchilov & Hutter 2019, alg. 2)."""

    decoupled = True

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)


def clip_grad_norm_(parameters, max_norm):
    """Scale all gradients by max_norm/‖g‖ if their joint norm ‖g‖ is larger (Pascanu et al. 2013); returns ‖g‖.

    On a GPU that is an array (), so that nothing waits for it, and the gradients become pieces of one flat array.
    """
    owners = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in owners]
    if not grads:
        return 0.0
    if device_of(grads[0]) != "cpu":
        pieces = pack(grads)
        for p, piece in zip(owners, pieces):
            p.grad = piece
        return kernels(pieces[0]).clip_norm(packed(pieces), max_norm)[0]
    squares = sum((array_module(g).vdot(g, g) for g in grads), 0.0)
    norm = math.sqrt(float(squares))
    if norm > max_norm:
        for g in grads:
            g *= max_norm / (norm + 1e-6)
    return norm


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
    ``weights`` is a state_dict of the averages; ``swap()`` exchanges them with the module's parameters.
    """

    def __init__(self, module, decay=0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA expects a decay in [0, 1), got {decay!r}")
        self.module, self.decay, self.updates = module, decay, 0
        self.weights = {name: a.copy(order="K") for name, a in module.state_dict().items()}
        self._places = ()

    def _follow(self):
        """Bring the averages to where the parameters are now; returns the parameters' arrays by name."""
        state = self.module.state_dict()
        places = list(state.values())
        if not _same(places, self._places):
            averages = _like(list(self.weights.values()), places)
            self.weights = dict(zip(self.weights, averages))
            self._places, self._flat = places, _flat(places, averages)
        return state

    def advance(self):
        """Count update k; returns its decay d."""
        self.updates += 1
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def update(self, decay=None):
        """Take the parameters' present values into the average. decay: see ``Optimizer.step``, an array ()."""
        decay = self.advance() if decay is None else decay
        state = self._follow()
        if self._flat:
            w, average = self._flat
            return kernels(w).ema(average, w, decay)
        for name, w in state.items():
            s = self.weights[name]
            s += (1 - float(decay)) * (w - s)

    def swap(self):
        """Exchange averages and parameters; call again to change back."""
        state = self._follow()
        for w, s in [self._flat] if self._flat else zip(state.values(), self.weights.values()):
            s[...], w[...] = w.copy(), s.copy()

    def load(self, weights):
        """Copy averages (a state_dict, of any device) into these; KeyError if the names differ."""
        self._follow()
        if set(weights) != set(self.weights):
            raise KeyError(f"averages do not fit: expected {sorted(self.weights)}, got {sorted(weights)}")
        for name, average in self.weights.items():
            average[...] = beside(weights[name], average)


def _same(arrays, others):
    return len(arrays) == len(others) and all(a is b for a, b in zip(arrays, others))


def _like(arrays, places):
    """The arrays on the devices and of the dtypes of ``places``; on a GPU pieces of one flat array if those are."""
    arrays = [beside(a, place).astype(place.dtype, copy=False) for a, place in zip(arrays, places)]
    flat = device_of(places[0]) != "cpu" and packed(places) is not None and packed(arrays) is None
    return pack(arrays) if flat else arrays


def _flat(*lists):
    """The flat arrays of lists of arrays on a GPU, or None."""
    if device_of(lists[0][0]) == "cpu":
        return None
    flats = [packed(arrays) for arrays in lists]
    return None if any(flat is None for flat in flats) else flats


def _alike_in_memory(*arrays):
    """Whether a kernel may run through all of the arrays' memory element by element."""
    return all((a.transpose(0, 2, 3, 1) if a.ndim == 4 else a).flags.c_contiguous for a in arrays)


def _gathered(grads):
    """The gradients in one flat array."""
    flat = packed(grads)
    return packed(pack(grads)) if flat is None else flat
