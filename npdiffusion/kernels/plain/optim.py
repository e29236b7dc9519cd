"""Steps of optimisers, on lists with one array for each parameter. lr, steps and updates are arrays ().

Parameters and state (velocities, ms, vs, steps, averages, updates, clipped gradients) are changed in place.
"""

import math

import numpy as np


def sgd(params, grads, velocities, lr, momentum, weight_decay):
    """v ← μ·v + (g + λ·w), w ← w − lr·v, with momentum μ and weight decay λ (Sutskever et al. 2013; PyTorch's form)."""
    lr = float(lr)
    for w, g, v in zip(params, grads, velocities):
        if weight_decay:
            g = g + weight_decay * w
        v *= momentum
        v += g
        w -= lr * v


def adam(params, grads, ms, vs, steps, lr, beta1, beta2, eps, weight_decay, decoupled):
    """Adam (Kingma & Ba 2015, alg. 1), each parameter with its own count k of steps:

        k ← k + 1,  m ← β₁·m + (1 − β₁)·g,  v ← β₂·v + (1 − β₂)·g²
        w ← w − lr·m̂/(√v̂ + eps),  m̂ = m/(1 − β₁^k),  v̂ = v/(1 − β₂^k)

    m and v start at 0, a bias that the divisions undo. Weight decay λ adds λ·w to g, or if ``decoupled`` (AdamW,
    Loshchilov & Hutter 2019, alg. 2) w ← (1 − lr·λ)·w goes first.
    """
    lr = float(lr)
    for w, g, m, v, k in zip(params, grads, ms, vs, steps):
        k += 1
        correction1, correction2 = 1 - beta1 ** int(k), 1 - beta2 ** int(k)
        if weight_decay and decoupled:
            w *= 1 - lr * weight_decay
        elif weight_decay:
            g = g + weight_decay * w
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        w -= (lr / correction1) * m / (np.sqrt(v) / math.sqrt(correction2) + eps)


def ema(averages, params, updates, decay):
    """Moving averages s ← d·s + (1 − d)·w; at update k = 1, 2, … d = min(decay, (1 + k)/(10 + k)).

    d is small at first, so that the parameters of the start are soon forgotten.
    """
    updates += 1
    k = int(updates)
    d = min(decay, (1 + k) / (10 + k))
    for s, w in zip(averages, params):
        s += (1 - d) * (w - s)


def clip_grad_norm(grads, max_norm):
    """Returns ‖g‖ = √Σ g² over all gradients, and scales them to max_norm if it is larger (Pascanu et al. 2013).

    A norm that is NaN makes the factor NaN.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    if not norm <= max_norm:
        for g in grads:
            g *= max_norm / (norm + 1e-6)
    return norm
