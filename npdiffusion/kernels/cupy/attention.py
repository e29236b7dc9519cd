"""Attention, three launches forward and five backward where its scores are few, in which the heads are read where they
lie; and softmax along any axis: a warp for each column along the last one, a thread for each along another one."""

import math

import numpy as np

from ...device import cupy
from .build import ceil_div, kernel, launch
from .elementwise import add
from .layout import contiguous
from .product import product

PIECE = 1 << 20  # scores of a picture that are made at a time


def softmax(x, axis):
    return _softmax("softmax", axis, (x,), -math.inf)


def softmax_backward(g, y, axis):
    return _softmax("softmax_backward", axis, (g, y))


def _softmax(name, axis, arrays, *numbers):
    arrays = [*map(contiguous, arrays)]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    out = cupy().empty(shape, dtype)
    length, inner = shape[axis], math.prod(shape[axis % len(shape) + 1:])
    columns, lanes = out.size // length if length else 0, 32 if inner == 1 else 1
    args = *arrays, out, columns, np.int32(length), inner, *numbers
    launch(kernel(name, "attention", dtype, LANES=lanes), (ceil_div(columns * lanes, 256),), (256,), args)
    return out


def attention(query, key, value, mask, dropout, scale):
    """See ``plain.attention``. The weights are kept if one piece is all of them; else they are made again, a piece at a
    time, so that memory grows with the pixels and not with their square (Rabe & Staats 2021)."""
    def forward(rows):
        weights = _weights(query[..., rows, :], key, _part(mask, rows), scale)
        return product(_dropped(weights, _part(dropout, rows)), value), weights if whole else None

    pieces, whole = _pieces(query, key)
    parts = [forward(rows) for rows in pieces]
    return parts[0] if whole else (cupy().concatenate([y for y, _ in parts], -2), None)


def attention_backward(g, query, key, value, y, weights, mask, dropout, scale, need_scores=False):
    pieces, whole = _pieces(query, key)
    dquery, dkey, dvalue, dscores = [], None, None, []
    for rows in pieces:
        q, upstream, factors = query[..., rows, :], g[..., rows, :], _part(dropout, rows)
        p = _weights(q, key, _part(mask, rows), scale) if weights is None else weights
        dv = product(_dropped(p, factors).swapaxes(-1, -2), upstream)
        ds = softmax_backward(_dropped(product(upstream, value.swapaxes(-1, -2)), factors), p, -1)
        dk = product(ds.swapaxes(-1, -2), q, scale=scale)
        dkey, dvalue = (dk, dv) if dkey is None else (add(dkey, dk, out=dkey), add(dvalue, dv, out=dvalue))
        dquery.append(product(ds, key, scale=scale))
        dscores.append(ds if need_scores else None)
        del p, ds  # before the next piece is made
    if whole:
        return dquery[0], dkey, dvalue, dscores[0]
    join = cupy().concatenate
    return join(dquery, -2), dkey, dvalue, join(dscores, -2) if need_scores else None


def _weights(query, key, mask, scale):
    scores = product(query, key.swapaxes(-1, -2), scale=scale)
    if mask is not None:
        scores = cupy().where(mask, scores, -math.inf) if mask.dtype == bool else scores + mask
    return _softmax("softmax", -1, (scores,), float(np.finfo(scores.dtype).min))


def _pieces(query, key):
    """Slices of the queries with at most PIECE scores for each picture, and whether one holds all."""
    rows = max(1, PIECE // max(1, math.prod(query.shape[1:-2]) * key.shape[-2]))
    length = query.shape[-2]
    return [slice(i, i + rows) for i in range(0, max(1, length), rows)], length <= rows


def _part(x, rows):
    """These rows of a mask or of dropout's factors, if they have any."""
    return x if x is None or x.ndim < 2 or x.shape[-2] == 1 else x[..., rows, :]


def _dropped(x, dropout):
    """See ``plain.attention.dropped``."""
    return x if dropout is None else cupy().where(dropout, x, 0) * dropout
