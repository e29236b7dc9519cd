"""Softmax and attention, over our own threads where the arrays are large."""

import math

import numpy as np

from ...threads import multiplies, parallel, scratch, threads_for
from ..plain.attention import dropped, masked
from .elementwise import MOVED
from .product import product
from .windows import chunks

TILE = 1 << 18  # scores worked on at a time: two arrays of them stay in cache
SIDE = 1024  # rows of a tile, at most
MOST_KEPT = 256  # keys, for which weights are kept
SAFE = 64  # e^±64 is far from overflow and underflow, and so are its sums


def _over_batch(function, axis, out, *arrays):
    """function(axis, out, *arrays) on slices of the first axis, if that is not the one to reduce over."""
    threads = 1 if axis % out.ndim == 0 else threads_for(4 * MOVED * out.size)
    parallel(lambda start, stop: function(axis, out[start:stop], *(a[start:stop] for a in arrays)), len(out), threads)
    return out


def _largest(x, axis):
    """max x along ``axis``, by halves: NumPy's own takes 2 ns an element along a short last axis."""
    if axis % x.ndim != x.ndim - 1:
        return x.max(axis, keepdims=True)
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        x = np.maximum(x[..., :half], x[..., n - half:])
    return x


def _sum(x, axis):
    """Σ x along ``axis``; a product with ones is faster than NumPy's sum along a short last axis."""
    if axis % x.ndim != x.ndim - 1:
        return x.sum(axis, keepdims=True)
    return np.vecdot(x, np.ones(x.shape[-1], x.dtype))[..., None]


def softmax(x, axis):
    """y = e^(x − m) / Σ e^(x − m) along ``axis``; m = max x where e^x might overflow, else 0."""
    return _softmax(x, axis, -np.inf, np.empty_like(x))


def _softmax(x, axis, lowest, out):
    """The softmax with m ≥ lowest: if that is finite, nothing but −∞ gives zeros instead of NaN."""
    def forward(axis, y, x):
        if x.size and not max(-x.min(), x.max()) <= SAFE:  # or is NaN
            x = np.subtract(x, np.maximum(_largest(x, axis), lowest), out=y)
        np.exp(x, out=y)
        y /= np.maximum(_sum(y, axis), np.finfo(y.dtype).tiny)

    return _over_batch(forward, axis, out, x)


def softmax_backward(g, y, axis):
    def backward(axis, dx, g, y):
        np.multiply(g, y, out=dx)
        np.subtract(g, _sum(dx, axis), out=dx)
        dx *= y

    return _over_batch(backward, axis, np.empty_like(y), g, y)


@multiplies
def attention(query, key, value, mask, dropout, scale):
    """See ``plain.attention``. The weights are kept where they are no larger than what they came from; else, instead
    of them, ℓ = log Σ e^S (…, L, 1), from which P = e^(S − ℓ) is made again (∞ for a query that sees no key)."""
    if not _weights_are_small(query, key, value):
        return _Tiles(query, key, value, mask, dropout, scale).attention()
    scores = masked(product(np.multiply(query, scale, order="C"), key.swapaxes(-1, -2)), mask)
    weights = _softmax(scores, -1, np.finfo(scores.dtype).min, out=scores)
    return product(dropped(weights, dropout), value), weights


@multiplies
def attention_backward(g, query, key, value, y, weights, mask, dropout, scale, need_scores=False):
    """See ``plain.attention_backward``; weights: what ``attention`` kept."""
    if not _weights_are_small(query, key, value):
        return _Tiles(query, key, value, mask, dropout, scale).backward(g, y, weights, need_scores)
    dscores = softmax_backward(dropped(product(g, value.swapaxes(-1, -2)), dropout), weights, -1)
    dvalue = product(dropped(weights, dropout).swapaxes(-1, -2), g)
    dquery, dkey = product(dscores, key), product(dscores.swapaxes(-1, -2), query)
    dquery *= scale  # here, and not in the scores, of which there are more
    dkey *= scale
    return dquery, dkey, dvalue, dscores if need_scores else None


def _weights_are_small(query, key, value):
    return key.shape[-2] <= min(query.shape[-1] + value.shape[-1], MOST_KEPT)


class _Tiles:
    """Attention by tiles of the scores S: all of them would leave the cache, and take memory with the square of the
    pixels (Rabe & Staats 2021, Dao et al. 2022)."""

    def __init__(self, query, key, value, mask, dropout, scale):
        arrays = [query, key, value, *(x for x in (mask, dropout) if x is not None)]
        stack = np.broadcast_shapes(*(x.shape[:-2] for x in arrays))
        self.query, self.key, self.value = (np.broadcast_to(x, (*stack, *x.shape[-2:])) for x in arrays[:3])
        self.stack, self.shape, self.scale = stack, (*stack, query.shape[-2], key.shape[-2]), scale
        self.mask, self.dropout = (None if x is None else np.broadcast_to(x, self.shape) for x in (mask, dropout))

    def attention(self):
        y = np.empty_like(self.query, shape=(*self.shape[:-1], self.value.shape[-1]))  # in the queries' memory order
        lse, finfo, safe = np.empty((*self.shape[:-1], 1), y.dtype), np.finfo(y.dtype), self.are_safe()

        def forward(at, q, k, v):
            for rows, across in self.tiles():
                total, sums, top = 0.0, 0.0, 0.0 if safe else finfo.min  # of e^(S − top)
                for columns in across:
                    s = self.scores(at, rows, columns, q, k)
                    if not safe:
                        higher = np.maximum(top, _largest(s, -1))
                        s -= higher
                        shrink, top = np.exp(top - higher), higher
                        total, sums = total * shrink, sums * shrink
                    np.exp(s, out=s)
                    sums = sums + _sum(s, -1)
                    total = total + np.matmul(self.dropped(at, rows, columns, s), v[..., columns, :])
                y[at][..., rows, :] = total / np.maximum(sums, finfo.tiny)
                lse[at][..., rows, :] = top + np.log(np.where(sums, sums, np.inf))

        self.over_stack(forward)
        return y, lse

    def backward(self, g, y, lse, need_scores):
        dquery, dkey, dvalue = (np.zeros_like(x) for x in (self.query, self.key, self.value))
        dscores = np.empty(self.shape, g.dtype) if need_scores else None
        inner = _sum(dropped(g, y), -1)

        def backward(at, q, k, v):
            for rows, across in self.tiles():
                upstream = np.ascontiguousarray(g[at][..., rows, :])
                for columns in across:
                    p = self.scores(at, rows, columns, q, k)
                    p -= lse[at][..., rows, :]
                    np.exp(p, out=p)
                    dvalue[at][..., columns, :] += self.dropped(at, rows, columns, p).swapaxes(-1, -2) @ upstream
                    d = scratch("dscores", p.shape, p.dtype)
                    np.matmul(upstream, v[..., columns, :].swapaxes(-1, -2), out=d)
                    d = self.dropped(at, rows, columns, d)
                    d -= inner[at][..., rows, :]
                    d *= p
                    dquery[at][..., rows, :] += d @ k[..., columns, :]
                    dkey[at][..., columns, :] += d.swapaxes(-1, -2) @ q[..., rows, :]
                    if need_scores:
                        dscores[at][..., rows, columns] = d

        self.over_stack(backward)
        dquery *= self.scale
        return dquery, dkey, dvalue, dscores

    def are_safe(self):
        """Whether e^S can neither overflow nor underflow: |q·k| ≤ ‖q‖·‖k‖."""
        largest = [np.vecdot(x, x).max(initial=0) for x in (self.query, self.key)]
        added = self.mask is not None and self.mask.dtype != bool
        return not added and self.scale ** 2 * float(largest[0]) * float(largest[1]) <= SAFE ** 2  # not if NaN

    def over_stack(self, function):
        """function(at, scale·Q, K, V) for the matrices at an index, on our threads: as many as fill a tile, or one."""
        def run(start, stop):
            for at in pieces[start:stop]:  # one head's pixels side by side in memory, for BLAS
                q = np.multiply(self.query[at], self.scale, order="C")
                function(at, q, np.ascontiguousarray(self.key[at]), np.ascontiguousarray(self.value[at]))

        each, threads = math.prod(self.shape[1:]), threads_for(4 * MOVED * math.prod(self.shape))
        if self.stack and 0 < each <= TILE:
            pieces = [slice(n0, n1) for n0, n1, _, _ in chunks(self.stack[0], 1, each, TILE, threads)]
        else:
            pieces = [*np.ndindex(self.stack)]
        parallel(run, len(pieces), threads)

    def tiles(self):
        """(rows, [columns, ...]) that cover each matrix."""
        length, width = self.shape[-2:]
        side = max(1, min(length, SIDE))
        across = [slice(i, i + TILE // side) for i in range(0, width, TILE // side)]
        return [(slice(i, i + side), across) for i in range(0, length, side)]

    def scores(self, at, rows, columns, q, k):
        """S for these rows and columns of the matrices, from scale·Q and K; in scratch memory if there is no mask."""
        q, k = q[..., rows, :], k[..., columns, :]
        scores = scratch("scores", (*q.shape[:-1], k.shape[-2]), q.dtype)
        np.matmul(q, k.swapaxes(-1, -2), out=scores)
        return scores if self.mask is None else masked(scores, self.mask[at][..., rows, columns])

    def dropped(self, at, rows, columns, x):
        return x if self.dropout is None else dropped(x, self.dropout[at][..., rows, columns])
