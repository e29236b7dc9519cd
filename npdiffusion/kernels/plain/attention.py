"""Softmax and attention."""

import numpy as np


def softmax(x, axis):
    """y_i = e^{x_i} / Σ_j e^{x_j} along ``axis`` (Bridle 1990). Subtracting max x changes nothing but avoids overflow.

    −∞ gives 0; nothing but −∞ along the axis gives NaN.
    """
    y = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    return y / y.sum(axis, keepdims=True)


def softmax_backward(g, y, axis):
    """dx of y = softmax(x) = e^x/s, from y alone. As s = Σ_j e^{x_j}, δs = s Σ_j y_j δx_j:

        δy_i = e^{x_i} δx_i / s − e^{x_i} δs / s² = y_i (δx_i − Σ_j y_j δx_j)
        <g, δy> = Σ_i g_i y_i δx_i − (Σ_i g_i y_i) Σ_j y_j δx_j = Σ_j y_j (g_j − Σ_i g_i y_i) δx_j
    """
    return y * (g - (g * y).sum(axis, keepdims=True))


def attention(query, key, value, mask, dropout, scale):
    """y = (P∘D) V with P = softmax(S) over the keys and S = scale·Q Kᵀ + mask (Vaswani et al. 2017, eq. 1).

    query Q (…, L, E), key K (…, S, E), value V (…, S, V); leading axes broadcast by NumPy's rules.
    mask: broadcasts to (…, L, S); bool (False becomes −∞) or float (added), or None.
    dropout D: factors of P's shape (Srivastava et al. 2014: 0 or 1/(1 − p)), or None for 1. ∘ goes element by element;
    0·∞ = 0 here: what is dropped is gone.
    Returns y (…, L, V) and, for the backward, the weights P (…, L, S); faster kernels may keep less. A query that sees
    no key, its scores all −∞, has weights 0.
    """
    scores = masked(scale * query @ key.swapaxes(-1, -2), mask)  # [..., L, E] @ [..., E, S] -> [..., L, S]
    seeing = (scores != -np.inf).any(-1, keepdims=True)  # [..., L, 1]
    weights = np.where(seeing, softmax(np.where(seeing, scores, 0), -1), 0)
    return dropped(weights, dropout) @ value, weights


def attention_backward(g, query, key, value, y, weights, mask, dropout, scale, need_scores=False):
    """dquery, dkey, dvalue, and dscores, the gradient of S and so of a float mask (or None). From the end to the start:

        <g, (P∘D) δV> = <(P∘D)ᵀ g, δV>                             dV = (P∘D)ᵀ g
        <g, (δP∘D) V> = <g Vᵀ, δP∘D> = <(g Vᵀ)∘D, δP>              dP = (g Vᵀ)∘D,  dS = softmax_backward(dP, P)
        <dS, scale δQ Kᵀ> = <scale dS K, δQ>                       dQ = scale dS K
        <dS, scale Q δKᵀ> = <dSᵀ, scale δK Qᵀ> = <scale dSᵀ Q, δK>  dK = scale dSᵀ Q

    All have the leading axes that the arrays were broadcast to: the adjoint of broadcasting sums over them (elsewhere).
    A query without a key has P = 0, and so dS = 0: its result is constant. y and mask are for kernels that did not keep
    P: they make it again, and the softmax's sum is one over a row of y, Σ_j dP_ij P_ij = Σ_v g_iv y_iv.
    """
    dvalue = dropped(weights, dropout).swapaxes(-1, -2) @ g  # [..., S, L] @ [..., L, V] -> [..., S, V]
    dweights = dropped(g @ value.swapaxes(-1, -2), dropout)  # [..., L, V] @ [..., V, S] -> [..., L, S]
    dscores = softmax_backward(dweights, weights, -1)
    dquery, dkey = scale * dscores @ key, scale * dscores.swapaxes(-1, -2) @ query
    return dquery, dkey, dvalue, dscores if need_scores else None


def masked(scores, mask):
    """The scores where a bool mask is True, else −∞; or plus a float mask; or themselves without a mask."""
    if mask is None:
        return scores
    return np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask


def dropped(x, dropout):
    """x∘D, where ∞ and NaN are dropped, too; x without a dropout."""
    return x if dropout is None else np.where(dropout, x, 0) * dropout
