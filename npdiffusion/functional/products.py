"""Matrix products: matmul, linear, embedding, attention."""

import math

import numpy as np

from ..device import array_module
from ..kernels import kernels
from ..tensor import record
from ._arguments import arrays, as_tensor, check_affine, check_probability, floats
from .activation import dropout_mask


def matmul(input, other):
    """input @ other with NumPy's (and PyTorch's) rules: (…, n, k) @ (…, k, m) -> (…, n, m), vectors allowed.

    dA = g·Bᵀ, dB = Aᵀ·g, over the last two axes.
    """
    a, b = as_tensor(input), as_tensor(other)
    x, y = floats("matmul", input=a, other=b)
    if not x.ndim or not y.ndim or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(f"matmul expects (..., n, k) @ (..., k, m), got {x.shape} @ {y.shape}")
    if x.ndim == 1:
        return matmul(a.unsqueeze(0), b).squeeze(-2 if y.ndim > 1 else -1)
    if y.ndim == 1:
        return matmul(a, b.unsqueeze(1)).squeeze(-1)
    return record(kernels(x).matmul(x, y), "matmul", (a, b),
                  lambda g: (kernels(g).matmul(g, y.swapaxes(-1, -2)), kernels(g).matmul(x.swapaxes(-1, -2), g)))


def linear(input, weight, bias=None):
    """y = x·Wᵀ + b: input (…, in), weight (out, in), bias (out,) -> (…, out).

    dx = g·W, dW = gᵀ·x, db = Σ g, summed over the leading axes.
    """
    x, w, b = floats("linear", input=input, weight=weight, bias=bias)
    if weight.ndim != 2 or not input.ndim or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear expects input (..., in) and weight (out, in), got {input.shape} and {weight.shape}")
    check_affine("linear", weight.shape[:1], bias=bias)
    x, shape, need_input = x.reshape(-1, x.shape[-1]), input.shape, input.requires_grad
    y = kernels(x).linear(x, w, b)

    def backward(g):
        dx, dw, db = kernels(g).linear_backward(g.reshape(-1, g.shape[-1]), x, w, need_input)
        return dx.reshape(shape) if need_input else None, dw, db

    return record(y.reshape(*shape[:-1], len(w)), "linear", (input, weight, bias), backward)


def embedding(input, weight):
    """Rows of weight (num, dim) by the integers input (…) -> (…, dim). dW adds up the rows that were taken.

    The integers may be on the CPU while weight is not. Only there are they checked: looking at those on a GPU would
    wait for it.
    """
    [w], index = floats("embedding", weight=weight), as_tensor(input).data
    if weight.ndim != 2:
        raise ValueError(f"embedding expects a weight of shape (num, dim), got {weight.shape}")
    if index.dtype.kind not in "iu":
        raise TypeError(f"embedding expects integers, got {index.dtype}")
    if index.size and isinstance(index, np.ndarray) and not 0 <= int(index.min()) <= int(index.max()) < len(w):
        raise ValueError(f"embedding expects indices from 0 to {len(w) - 1}, "
                         f"got {int(index.min())} to {int(index.max())}")
    return weight[index]


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    """softmax(scale·Q·Kᵀ + mask)·V (Vaswani et al. 2017, eq. 1).

    Args:
        query (…, L, E), key (…, S, E), value (…, S, V).
        attn_mask: bool (True takes part) or a float added to the scores, broadcastable to (…, L, S). A query for which
            all is False or −∞ gets 0, and its gradients are 0.
        dropout_p: probability of dropping a weight. is_causal: position i sees positions ≤ i.
        scale: 1/√E by default.

    Returns (…, L, V). As in PyTorch, a value that a mask hides is still multiplied by its weight 0: ∞ or NaN shows.
    Memory grows with L + S, with L·S only for dropout and for a mask that requires a gradient.
    """
    op = "scaled_dot_product_attention"
    q, k, v = floats(op, query=query, key=key, value=value)
    if min(query.ndim, key.ndim, value.ndim) < 2 or query.shape[-1] != key.shape[-1] or (
            key.shape[-2] != value.shape[-2]):
        raise ValueError(f"attention expects query (..., L, E), key (..., S, E), value (..., S, V), got "
                         f"{query.shape}, {key.shape}, {value.shape}")
    if is_causal and attn_mask is not None:
        raise ValueError("attention takes attn_mask or is_causal=True, not both")
    mask, need_mask = None, False
    if attn_mask is not None:
        attn_mask = as_tensor(attn_mask)
        [_, mask], need_mask = arrays(op, query, attn_mask), attn_mask.requires_grad
        if mask.dtype not in (bool, q.dtype):
            raise TypeError(f"attention expects attn_mask of dtype bool or {q.dtype}, got {mask.dtype}")
    check_probability(op, dropout_p)
    xp, scale = array_module(q), 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    if is_causal:
        mask = xp.tri(q.shape[-2], k.shape[-2], dtype=bool)
    dropped = None
    if dropout_p:
        stack = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], () if mask is None else mask.shape[:-2])
        dropped = dropout_mask(xp.empty((*stack, q.shape[-2], k.shape[-2]), q.dtype), dropout_p)
    y, kept = kernels(q).attention(q, k, v, mask, dropped, scale)
    return record(y, op, (query, key, value, attn_mask),
                  lambda g: kernels(g).attention_backward(g, q, k, v, y, kept, mask, dropped, scale, need_mask))
