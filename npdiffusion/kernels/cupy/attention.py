"""Attention: three launches forward and five backward, in which the heads are read where they lie."""

import math

from ...device import cupy
from .matmul import product
from .softmax import softmax, softmax_backward

__all__ = ["attention", "attention_backward"]


def attention(query, key, value, mask, dropout, scale):
    """y = (P∘D) V (…, L, V) and the weights P = softmax(scale·Q Kᵀ + mask) (…, L, S) (Vaswani et al. 2017, eq. 1).

    query Q (…, L, E), key K (…, S, E), value V (…, S, V); leading axes broadcast. mask: float, bool (False becomes −∞)
    or None; dropout D: multipliers of the weights or None.
    """
    scores = product(query, key.swapaxes(-1, -2), scale=scale)
    if mask is not None:
        scores = cupy().where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    weights = softmax(scores, -1)
    return product(_dropped(weights, dropout), value), weights


def attention_backward(g, query, key, value, weights, dropout, scale):
    """dquery = scale·dS K, dkey = scale·dSᵀ Q, dvalue = (P∘D)ᵀ g and dscores = dS, which is a float mask's gradient.

    dS = P∘(dP − Σ dP∘P) with dP = (g Vᵀ)∘D. All have the shapes that the arrays broadcast to.
    """
    dvalue = product(_dropped(weights, dropout).swapaxes(-1, -2), g)
    dweights = _dropped(product(g, value.swapaxes(-1, -2)), dropout)
    dscores = softmax_backward(dweights, weights, -1)
    return product(dscores, key, scale=scale), product(dscores.swapaxes(-1, -2), query, scale=scale), dvalue, dscores


def _dropped(weights, dropout):
    return weights if dropout is None else weights * dropout
