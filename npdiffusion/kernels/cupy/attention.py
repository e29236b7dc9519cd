"""Attention: three launches forward and five backward, in which the heads are read where they lie."""

import math

from ...device import cupy
from .matmul import product
from .softmax import softmax, softmax_backward

__all__ = ["attention", "attention_backward"]


def attention(query, key, value, mask, dropout, scale):
    """y = (P∘D) V with P = softmax(S) over the keys and S = scale·Q Kᵀ + mask (Vaswani et al. 2017, eq. 1).

    query Q (…, L, E), key K (…, S, E), value V (…, S, V); leading axes broadcast by NumPy's rules.
    mask: broadcasts to (…, L, S); bool (False becomes −∞) or float (added), or None.
    dropout D: multipliers of the weights' shape (…, L, S), or None.
    Returns y (…, L, V) and the weights P (…, L, S).
    """
    scores = product(query, key.swapaxes(-1, -2), scale=scale)
    if mask is not None:
        scores = cupy().where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    weights = softmax(scores, -1)
    return product(_dropped(weights, dropout), value), weights


def attention_backward(g, query, key, value, weights, dropout, scale):
    """Gradients dquery = scale·dS K, dkey = scale·dSᵀ Q, dvalue = (P∘D)ᵀ g and dscores = dS (that of a float mask), with
    dS = P∘(dP − Σ dP∘P) and dP = (g Vᵀ)∘D.

    They have the shapes that the arrays broadcast to.
    """
    dvalue = product(_dropped(weights, dropout).swapaxes(-1, -2), g)
    dweights = _dropped(product(g, value.swapaxes(-1, -2)), dropout)
    dscores = softmax_backward(dweights, weights, -1)
    return product(dscores, key, scale=scale), product(dscores.swapaxes(-1, -2), query, scale=scale), dvalue, dscores


def _dropped(weights, dropout):
    return weights if dropout is None else weights * dropout
