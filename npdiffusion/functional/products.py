"""Matrix products: matmul, linear, embedding, attention."""

import math

import numpy as np

from ..backend import array_module, beside, kernels
from ..tensor import Tensor, record
from ._arguments import as_tensor, check_float, check_tensor
from .activation import dropout, softmax

__all__ = ["embedding", "linear", "matmul", "scaled_dot_product_attention"]


def matmul(input, other):
    """input @ other with NumPy's (and PyTorch's) rules: (…, n, k) @ (…, k, m) -> (…, n, m), vectors allowed.

    dA = g·Bᵀ, dB = Aᵀ·g, over the last two axes.
    """
    a, b = as_tensor(input), as_tensor(other)
    check_float("matmul", input=a, other=b)
    x, y = a.data, b.data
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul expects (..., n, k) @ (..., k, m), got {x.shape} @ {y.shape}")

    def backward(g):
        rows, columns = (x[None] if x.ndim == 1 else x), (y[:, None] if y.ndim == 1 else y)
        if x.ndim == 1:
            g = array_module(g).expand_dims(g, -1 if y.ndim == 1 else -2)
        if y.ndim == 1:
            g = g[..., None]
        product = kernels(g).matmul
        dx, dy = product(g, columns.swapaxes(-1, -2)), product(rows.swapaxes(-1, -2), g)
        return (dx[..., 0, :] if x.ndim == 1 else dx), (dy[..., 0] if y.ndim == 1 else dy)

    return record(array_module(x).asarray(kernels(x).matmul(x, y)), "matmul", (a, b), backward)


def linear(input, weight, bias=None):
    """y = x·Wᵀ + b: input (…, in), weight (out, in), bias (out,) -> (…, out).

    dx = g·W, dW = gᵀ·x, db = Σ g, summed over the leading axes.
    """
    check_float("linear", input=input, weight=weight, bias=bias)
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear expects input (..., in) and weight (out, in), got {input.shape} and {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear expects a bias of shape {weight.shape[:1]}, got {bias.shape}")
    x, w, shape = input.data.reshape(-1, input.shape[-1]), weight.data, input.shape
    y = kernels(x).matmul(x, w.T, None if bias is None else bias.data)

    needs_dx = input.requires_grad

    def backward(g, onto):
        g, onto = g.reshape(-1, g.shape[-1]), None if onto is None else onto.reshape(x.shape)
        dx, dw, db = kernels(g).linear_backward(g, x, w, needs_dx, onto)
        return dx.reshape(shape) if needs_dx else None, dw, db

    inputs = (input, weight) if bias is None else (input, weight, bias)
    return record(y.reshape(shape[:-1] + w.shape[:1]), "linear", inputs, backward, adds=True)


def embedding(input, weight):
    """Rows of weight (num, dim) by the integers input (…) -> (…, dim). dW adds up the rows that were taken.

    The integers may be on the CPU while weight is not. Only there are they checked: looking at those on a GPU would
    wait for it.
    """
    check_float("embedding", weight=weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding expects a weight of shape (num, dim), got {weight.shape}")
    index, w = as_tensor(input).data, weight.data
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding expects integers, got {index.dtype}")
    if index.size and array_module(index) is np and not 0 <= int(index.min()) <= int(index.max()) < len(w):
        raise ValueError(f"embedding expects indices from 0 to {len(w) - 1}, "
                         f"got {int(index.min())} to {int(index.max())}")
    index, shape = beside(index, w), w.shape
    return record(w[index], "embedding", (weight,), lambda g: (kernels(g).add_at(shape, index, g),))


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """softmax(scale·Q·Kᵀ + mask)·V (Vaswani et al. 2017, eq. 1).

    Args:
        query (…, L, E), key (…, S, E), value (…, S, V).
        attn_mask: bool (True takes part) or a float added to the scores, broadcastable to (…, L, S).
        dropout_p: probability of dropping a weight. is_causal: position i sees positions ≤ i.
        scale: 1/√E by default.

    Returns (…, L, V).
    """
    check_float("scaled_dot_product_attention", query=query, key=key, value=value)
    if min(query.ndim, key.ndim, value.ndim) < 2 or query.shape[-1] != key.shape[-1] or (
            key.shape[-2] != value.shape[-2]):
        raise ValueError(f"attention expects query (..., L, E), key (..., S, E), value (..., S, V), got "
                         f"{query.shape}, {key.shape}, {value.shape}")
    if is_causal and attn_mask is not None:
        raise ValueError("attention takes attn_mask or is_causal=True, not both")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(query, key.transpose(-1, -2))
    if is_causal:
        attn_mask = Tensor(array_module(scores.data).tri(*scores.shape[-2:], dtype=bool))
    if attn_mask is not None:
        attn_mask = as_tensor(attn_mask)
        check_tensor("scaled_dot_product_attention", query, attn_mask)
        if attn_mask.dtype not in (bool, scores.dtype):
            raise TypeError(f"attention expects attn_mask of dtype bool or {scores.dtype}, got {attn_mask.dtype}")
        if attn_mask.dtype == bool:
            xp = array_module(attn_mask.data)
            attn_mask = Tensor(xp.where(attn_mask.data, 0.0, -math.inf).astype(scores.dtype))
        scores, scale = scale * scores + attn_mask, 1.0
    return matmul(dropout(softmax(scores, -1, scale), dropout_p), value)
