"""Every public op again, slowly: Python numbers and plain loops over the equations, nothing of the library.

``ORACLES[name]`` takes the op's own arguments, with arrays for Tensors, and returns a float64 (or integer) array.
"""

import itertools
import math

import numpy as np

ORACLES = {}


def oracle(function):
    ORACLES[function.__name__.rstrip("_")] = function
    return function


def plain(x):
    return getattr(x, "data", x) if not isinstance(x, np.ndarray) else x


def at(x, index):
    """The element of x that broadcasting puts at ``index``; a number is itself."""
    x = np.asarray(x)
    own = index[len(index) - x.ndim:]
    return x[tuple(0 if n == 1 else i for i, n in zip(own, x.shape))].item()


def joint_shape(*shapes):
    """What the shapes broadcast to."""
    width = max(map(len, shapes))
    return tuple(max(sides) for sides in zip(*((1,) * (width - len(s)) + tuple(s) for s in shapes)))


def each(function, *arrays):
    """function of the elements, one at a time, with broadcasting."""
    shape = joint_shape(*map(np.shape, arrays))
    return filled(shape, lambda index: function(*(at(a, index) for a in arrays)))


def filled(shape, element):
    """The array with element(index) at every index."""
    out = np.empty(shape)
    for index in np.ndindex(*shape):
        out[index] = element(index)
    return out


def axes(dim, ndim):
    dims = range(ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return sorted(d % ndim for d in dims)


def reduced(x, dim, keepdim, function):
    """function of the list of elements along the axes ``dim``."""
    gone = axes(dim, x.ndim)
    kept = [i for i in range(x.ndim) if i not in gone]
    groups = {}
    for index in np.ndindex(*x.shape):
        groups.setdefault(tuple(index[i] for i in kept), []).append(x[index].item())
    shape = [(1 if keepdim else None) if i in gone else x.shape[i] for i in range(x.ndim)]
    out = np.empty([x.shape[i] for i in kept])
    for index, elements in groups.items():
        out[index] = function(elements)
    return out.reshape([n for n in shape if n is not None])


def pair(n):
    return tuple(n) if isinstance(n, (tuple, list)) else (n, n)


# Element by element


def _elementwise(name, function):
    ORACLES[name] = lambda *arrays: each(function, *arrays)


def sigma(x):
    return 1 / (1 + math.exp(-x))


_elementwise("abs", abs)
_elementwise("add", lambda x, y: x + y)
_elementwise("div", lambda x, y: x / y)
_elementwise("exp", math.exp)
_elementwise("log", math.log)
_elementwise("maximum", lambda x, y: x if x > y else y)
_elementwise("minimum", lambda x, y: x if x < y else y)
_elementwise("mul", lambda x, y: x * y)
_elementwise("neg", lambda x: -x)
_elementwise("pow", math.pow)
_elementwise("relu", lambda x: x if x > 0 else 0)
_elementwise("sigmoid", sigma)
_elementwise("silu", lambda x: x * sigma(x))
_elementwise("sqrt", math.sqrt)
_elementwise("sub", lambda x, y: x - y)
_elementwise("tanh", math.tanh)
_elementwise("where", lambda c, x, y: x if c else y)


@oracle
def gelu(input, approximate="none"):
    def below(x):
        if approximate == "none":
            return math.erf(x / math.sqrt(2))
        return math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))

    return each(lambda x: 0.5 * x * (1 + below(x)), input)


@oracle
def softplus(input, beta=1.0):
    return each(lambda x: math.log(1 + math.exp(beta * x)) / beta, input)


@oracle
def clamp(input, min=None, max=None):
    def limited(x, low, high):
        x = low if x < low else x
        return high if x > high else x

    return each(limited, input, -math.inf if min is None else min, math.inf if max is None else max)


@oracle
def dropout(input, p, training, generator):
    if not training or p == 0:
        return np.asarray(input, float)
    draws = generator.random(input.shape, dtype=input.dtype)
    return each(lambda x, r: x / (1 - p) if r >= p else 0.0, input, draws)


@oracle
def softmax(input, dim):
    dim %= input.ndim

    def element(index):
        line = [math.exp(input[index[:dim] + (k,) + index[dim + 1:]].item()) for k in range(input.shape[dim])]
        return line[index[dim]] / sum(line)

    return filled(input.shape, element)


@oracle
def log_softmax(input, dim):
    return each(math.log, softmax(input, dim))


# Reductions


@oracle
def sum_(input, dim=None, keepdim=False):
    return reduced(input, dim, keepdim, math.fsum)


@oracle
def mean(input, dim=None, keepdim=False):
    return reduced(input, dim, keepdim, lambda xs: math.fsum(xs) / len(xs))


@oracle
def var(input, dim=None, correction=1, keepdim=False):
    def variance(xs):
        m = math.fsum(xs) / len(xs)
        return math.fsum((x - m) ** 2 for x in xs) / (len(xs) - correction)

    return reduced(input, dim, keepdim, variance)


def _extreme(name, best):
    def function(input, dim=None, keepdim=False):
        if isinstance(dim, np.ndarray):
            return each(best, input, dim)
        values = reduced(input, dim, keepdim, best)
        return values if dim is None else (values, reduced(input, dim, keepdim, lambda xs: xs.index(best(xs))))

    ORACLES[name] = function


_extreme("max", max)
_extreme("min", min)


# Shapes


def row_major(x):
    return [x[index].item() for index in np.ndindex(*x.shape)]


@oracle
def reshape(input, *shape):
    shape = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
    if -1 in shape:
        shape[shape.index(-1)] = input.size // math.prod(n for n in shape if n != -1)
    elements = iter(row_major(input))
    return filled(shape, lambda index: next(elements))


@oracle
def flatten(input, start_dim=0, end_dim=-1):
    if not input.ndim:
        return reshape(input, 1)
    first, last = start_dim % input.ndim, end_dim % input.ndim
    middle = math.prod(input.shape[first:last + 1])
    return reshape(input, input.shape[:first] + (middle,) + input.shape[last + 1:])


@oracle
def permute(input, *dims):
    dims = [d % input.ndim for d in (dims[0] if isinstance(dims[0], tuple) else dims)]
    out = np.empty([input.shape[d] for d in dims])
    for index in np.ndindex(*input.shape):
        out[tuple(index[d] for d in dims)] = input[index]
    return out


@oracle
def transpose(input, dim0, dim1):
    dims = list(range(input.ndim))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(input, *dims)


@oracle
def squeeze(input, dim=None):
    among = axes(dim, input.ndim) if input.ndim else []
    return reshape(input, tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in among))


@oracle
def unsqueeze(input, dim):
    shape = list(input.shape)
    shape.insert(dim % (input.ndim + 1), 1)
    return reshape(input, tuple(shape))


@oracle
def expand(input, *shape):
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
    own = (1,) * (len(shape) - input.ndim) + input.shape
    return filled([o if n == -1 else n for n, o in zip(shape, own)], lambda index: at(input, index))


@oracle
def getitem(input, index):
    """Each part of the index becomes a list of (places in the result, position in the input) along its axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    used = len([p for p in parts if p is not None and p is not ...])
    dots = [i for i, p in enumerate(parts) if p is ...]
    where = dots[0] if dots else len(parts)
    parts[where:where + 1] = [slice(None)] * (input.ndim - used)
    shape, choices, axis = [], [], 0
    for part in parts:
        part = plain(part)
        if part is None:
            shape.append(1)
            choices.append([((0,), None)])
            continue
        n = input.shape[axis]
        axis += 1
        if isinstance(part, int):
            choices.append([((), part % n)])
            continue
        if isinstance(part, slice):
            part = np.array(range(*part.indices(n)), dtype=int)
        part = np.asarray(part)
        if part.dtype == bool:
            part = np.array([i for i in range(n) if part[i]], dtype=int)
        shape.extend(part.shape)
        choices.append([(place, part[place].item() % n) for place in np.ndindex(*part.shape)])
    out = np.empty(shape)
    for chosen in itertools.product(*choices):
        place = tuple(i for places, _ in chosen for i in places)
        out[place] = input[tuple(position for _, position in chosen if position is not None)]
    return out


@oracle
def cat(tensors, dim=0):
    dim %= tensors[0].ndim
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    out, start = np.empty(shape), 0
    for x in tensors:
        for index in np.ndindex(*x.shape):
            out[index[:dim] + (index[dim] + start,) + index[dim + 1:]] = x[index]
        start += x.shape[dim]
    return out


@oracle
def stack(tensors, dim=0):
    return cat([unsqueeze(x, dim) for x in tensors], dim)


@oracle
def pad(input, pad, mode="constant", value=0.0):
    before, behind = [0] * input.ndim, [0] * input.ndim
    for k in range(len(pad) // 2):
        before[-1 - k], behind[-1 - k] = pad[2 * k], pad[2 * k + 1]

    def element(index):
        source = [i - b for i, b in zip(index, before)]
        inside = all(0 <= i < n for i, n in zip(source, input.shape))
        return input[tuple(source)] if inside else value

    return filled([n + a + b for n, a, b in zip(input.shape, before, behind)], element)


# Products


@oracle
def matmul(input, other):
    a = input[None] if input.ndim == 1 else input
    b = other[:, None] if other.ndim == 1 else other
    shape = joint_shape(a.shape[:-2], b.shape[:-2])
    out = filled(shape + (a.shape[-2], b.shape[-1]), lambda index: math.fsum(
        at(a, index[:-1] + (k,)) * at(b, index[:-2] + (k, index[-1])) for k in range(a.shape[-1])))
    out = out[..., 0, :] if input.ndim == 1 else out
    return out[..., 0] if other.ndim == 1 else out


@oracle
def linear(input, weight, bias=None):
    def element(index):
        *place, o = index
        products = [input[(*place, k)].item() * weight[o, k].item() for k in range(weight.shape[1])]
        return sum(products) + (0 if bias is None else bias[o].item())

    return filled((*input.shape[:-1], len(weight)), element)


@oracle
def embedding(input, weight):
    return filled((*input.shape, weight.shape[1]), lambda index: weight[input[index[:-1]], index[-1]])


@oracle
def scaled_dot_product_attention(query, key, value, attn_mask=None, is_causal=False, scale=None):
    e, source = query.shape[-1], key.shape[-2]
    scale = 1 / math.sqrt(e) if scale is None else scale

    def element(index):
        *batch, i, v = index
        weights = []
        for j in range(source):
            score = scale * sum(query[(*batch, i, k)].item() * key[(*batch, j, k)].item() for k in range(e))
            seen = j <= i or not is_causal
            if attn_mask is not None:
                mask = at(attn_mask, (*batch, i, j))
                seen, score = (mask, score) if isinstance(mask, bool) else (True, score + mask)
            weights.append(math.exp(score) if seen else 0.0)
        return sum(w * value[(*batch, j, v)].item() for j, w in enumerate(weights)) / (sum(weights) or 1)

    return filled((*query.shape[:-1], value.shape[-1]), element)


# Images


def batched(function):
    """The oracle of (C, H, W) from the one of (N, C, H, W)."""
    def both(input, *args, **options):
        y = function(input if input.ndim == 4 else input[None], *args, **options)
        return y if input.ndim == 4 else tuple(z[0] for z in y) if isinstance(y, tuple) else y[0]

    ORACLES[function.__name__] = both
    return both


def pixel(x, n, c, row, column, outside=0.0):
    inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
    return x[n, c, row, column].item() if inside else outside


@batched
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (sh, sw), (dh, dw), (o, c, kh, kw) = pair(stride), pair(dilation), weight.shape
    spans = dh * (kh - 1), dw * (kw - 1)
    if padding == "same":
        before, total = [s // 2 for s in spans], spans
    else:
        before = (0, 0) if padding == "valid" else pair(padding)
        total = [2 * p for p in before]
    size = [(n + t - span - 1) // s + 1 for n, t, span, s in zip(input.shape[2:], total, spans, (sh, sw))]

    def element(index):
        n, out, p, q = index
        first = out // (o // groups) * c  # the first input channel of this output channel's group
        y = 0.0 if bias is None else bias[out].item()
        for i, k, j in itertools.product(range(c), range(kh), range(kw)):
            y += weight[out, i, k, j].item() * pixel(
                input, n, first + i, p * sh + k * dh - before[0], q * sw + j * dw - before[1])
        return y

    return filled((len(input), o, *size), element)


@batched
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    (sh, sw), (ph, pw), (eh, ew), (dh, dw) = map(pair, (stride, padding, output_padding, dilation))
    (n, channels, h, w), (_, o, kh, kw) = input.shape, weight.shape
    size = (h - 1) * sh - 2 * ph + dh * (kh - 1) + eh + 1, (w - 1) * sw - 2 * pw + dw * (kw - 1) + ew + 1
    y = filled((n, o * groups, *size), lambda index: 0.0 if bias is None else bias[index[1]])
    for m, c, p, q, out, i, j in itertools.product(*map(range, (n, channels, h, w, o, kh, kw))):
        row, column = p * sh + i * dh - ph, q * sw + j * dw - pw
        if 0 <= row < size[0] and 0 <= column < size[1]:
            group = c // (channels // groups)
            y[m, group * o + out, row, column] += input[m, c, p, q].item() * weight[c, out, i, j].item()
    return y


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """For one axis: the positions of each window's elements."""
    span, found, start = dilation * (kernel - 1) + 1, [], -padding
    while start + span <= size + padding or (
            ceil_mode and start < size and start + span - stride < size + padding):
        found.append([start + k * dilation for k in range(kernel)])
        start += stride
    return found


@batched
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = kernel if stride is None else pair(stride)
    rows, columns = (windows(*arguments, ceil_mode) for arguments in zip(
        input.shape[2:], kernel, stride, padding, dilation))

    def largest(index):
        return max((pixel(input, *index[:2], i, j, -math.inf), i * input.shape[3] + j)
                   for i in rows[index[2]] for j in columns[index[3]])

    shape = (*input.shape[:2], len(rows), len(columns))
    values, places = (filled(shape, lambda index: largest(index)[k]) for k in (0, 1))
    return (values, places) if return_indices else values


@batched
def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
               divisor_override=None):
    kernel, padding = pair(kernel_size), pair(padding)
    stride = kernel if stride is None else pair(stride)
    rows, columns = (windows(*arguments, 1, ceil_mode) for arguments in zip(
        input.shape[2:], kernel, stride, padding))

    def element(index):
        total, count = 0.0, 0
        for i, j in itertools.product(rows[index[2]], columns[index[3]]):
            total += pixel(input, *index[:2], i, j)
            reach = padding if count_include_pad else (0, 0)  # where elements count
            count += all(-r <= k < n + r for k, n, r in zip((i, j), input.shape[2:], reach))
        return total / (divisor_override or count)

    return filled((*input.shape[:2], len(rows), len(columns)), element)


@oracle
def interpolate(input, size=None, scale_factor=None):
    inside = input.shape[2:]
    if size is None:
        factors = pair(scale_factor)
        size, back = [math.floor(n * f) for n, f in zip(inside, factors)], [lambda p, f=f: p / f for f in factors]
    else:
        size = pair(size)
        back = [lambda p, n=n, o=o: p * n // o for n, o in zip(inside, size)]
    return filled((*input.shape[:2], *size), lambda index: input[
        (*index[:2], *(min(int(b(p)), n - 1) for b, p, n in zip(back, index[2:], inside)))])


# Normalisation


def standardised(x, index_groups, eps):
    """(x − μ)/√(σ² + eps) over each list of indices."""
    out = np.empty(x.shape)
    for indices in index_groups:
        values = [x[i].item() for i in indices]
        mu = math.fsum(values) / len(values)
        sigma2 = math.fsum((v - mu) ** 2 for v in values) / len(values)
        for i, v in zip(indices, values):
            out[i] = (v - mu) / math.sqrt(sigma2 + eps)
    return out


@oracle
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    width = input.shape[1] // num_groups
    grouped = {}
    for index in np.ndindex(*input.shape):
        grouped.setdefault((index[0], index[1] // width), []).append(index)
    xhat = standardised(input, grouped.values(), eps)

    def factor(p, default, index):
        return default if p is None else p[index[1]].item()

    return filled(input.shape, lambda index: xhat[index] * factor(weight, 1.0, index) + factor(bias, 0.0, index))


@oracle
def group_norm_silu(input, num_groups, weight=None, bias=None, scale_shift=None, eps=1e-5):
    y, c = group_norm(input, num_groups, weight, bias, eps), input.shape[1]
    if scale_shift is not None:
        y = filled(y.shape, lambda index: y[index] * (1 + scale_shift[index[0], index[1]]) + scale_shift[
            index[0], c + index[1]])
    return each(lambda x: x * sigma(x), y)


@oracle
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    front = input.ndim - (1 if isinstance(normalized_shape, int) else len(normalized_shape))
    grouped = {}
    for index in np.ndindex(*input.shape):
        grouped.setdefault(index[:front], []).append(index)
    xhat = standardised(input, grouped.values(), eps)
    return filled(input.shape, lambda index: xhat[index] * (1.0 if weight is None else weight[index[front:]].item())
                  + (0.0 if bias is None else bias[index[front:]].item()))


# Losses


def reduce_loss(losses, reduction):
    total = math.fsum(losses.ravel())
    return {"none": losses, "sum": np.asarray(total), "mean": np.asarray(total / losses.size)}[reduction]


@oracle
def mse_loss(input, target, reduction="mean"):
    return reduce_loss(each(lambda x, y: (x - y) ** 2, input, target), reduction)


@oracle
def l1_loss(input, target, reduction="mean"):
    return reduce_loss(each(lambda x, y: abs(x - y), input, target), reduction)


@oracle
def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    def loss(x, y, w, p):
        return -w * (p * y * math.log(sigma(x)) + (1 - y) * math.log(1 - sigma(x)))

    weight, pos_weight = (1.0 if p is None else plain(p) for p in (weight, pos_weight))
    return reduce_loss(each(loss, input, target, weight, pos_weight), reduction)


@oracle
def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    axis = 0 if input.ndim == 1 else 1
    logs, classes, counted = log_softmax(input, axis), input.shape[axis], []
    weight = np.ones(classes) if weight is None else plain(weight)

    def loss(index):
        def along(x, c):
            return x[index[:axis] + (c,) + index[axis:]].item()

        if target.dtype.kind == "f":
            q = [along(target, c) for c in range(classes)]
        elif target[index] == ignore_index:
            return 0.0
        else:
            q = [1.0 if c == target[index] else 0.0 for c in range(classes)]
        counted.append(1.0 if target.dtype.kind == "f" else weight[target[index]].item())
        q = [weight[c].item() * ((1 - label_smoothing) * q[c] + label_smoothing / classes) for c in range(classes)]
        return -sum(q[c] * along(logs, c) for c in range(classes))

    losses = filled(input.shape[:axis] + input.shape[axis + 1:], loss)
    if reduction == "mean":
        return np.asarray(math.fsum(losses.ravel()) / math.fsum(counted))
    return reduce_loss(losses, reduction)
