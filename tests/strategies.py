"""What the op tests draw: for every op its arguments in all their structures, with values from a seeded generator.

``CASES[name](drawn)`` gives a Case: positional inputs and keyword options for ``functional.<name>``. hypothesis
chooses shapes, memory layouts, options and a seed, so that what it prints on a failure says what was special.
"""

import contextlib
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st

from npdiffusion import Tensor, get_num_threads, set_num_threads
from npdiffusion import functional as F
from npdiffusion.kernels import numpy as kernels
from npdiffusion.kernels.numpy import conv

CASES = {}


@dataclass
class Case:
    """One call of an op. ``inputs`` holds arrays, lists of arrays, numbers and None; ``options`` anything."""

    name: str
    inputs: tuple
    options: dict = field(default_factory=dict)

    def arrays(self):
        """The floating-point arrays among the inputs, lists flattened."""
        return [a for x in self.inputs for a in (x if isinstance(x, list) else [x]) if _floating(a)]

    def __call__(self, *tensors):
        """The op's result with these Tensors in the place of ``arrays()``."""
        tensors = iter(tensors)

        def filled(x):
            if isinstance(x, list):
                return [filled(part) for part in x]
            return next(tensors) if _floating(x) else Tensor(x) if isinstance(x, np.ndarray) else x

        options = dict(self.options)
        if "seed" in options:  # the same random numbers in every call
            options["generator"] = np.random.default_rng(options.pop("seed"))
        return getattr(F, self.name)(*map(filled, self.inputs), **options)


def _floating(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def case(*names):
    def register(function):
        for name in names:
            CASES[name] = function
        return function

    return register


@st.composite
def cases(draw, name, dtype=np.float64):
    drawn = Drawn(draw, name, dtype)
    inputs, options = CASES[name](drawn)
    return Case(name, inputs, options)


@contextlib.contextmanager
def small_pieces(threads, small):
    """Kernels on so many threads; if ``small``, they treat tiny arrays as they treat large ones: in many pieces."""
    outer = get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for module, name in KERNEL_SIZES:
                patch.setattr(module, name, 8 if name == "ROW" else 1)
            patch.setattr(conv, "winograd_pays", _winograd_possible)
        set_num_threads(threads)
        try:
            yield
        finally:
            set_num_threads(outer)


# every module-level number of the kernels: sizes above which they cut up their work
KERNEL_SIZES = [(module, name) for path, module in sorted(sys.modules.items())
                if path.startswith((kernels.__name__, "npdiffusion.threads"))
                for name, value in vars(module).items() if name.isupper() and isinstance(value, int) and name != "LINE"]


def _winograd_possible(images, weight_shape, size, stride, dilation, groups):
    return weight_shape[2:] == (3, 3) and tuple(stride) == tuple(dilation) == (1, 1) and groups == 1


LAYOUTS = ["contiguous", "channels last", "reversed axes", "every second", "backwards", "stretched"]


def laid_out(a, layout):
    """a in another memory layout ("stretched" repeats its first entry along the first axis, with stride 0)."""
    if not a.ndim:
        return a
    if layout == "channels last" and a.ndim > 2:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -3, -1)), -1, -3)
    if layout == "reversed axes":
        return np.asarray(a, order="F")
    if layout == "every second":
        outside = np.nan if a.dtype.kind == "f" else 0
        inner = np.full([2 * n for n in a.shape], outside, a.dtype)[(slice(None, None, 2),) * a.ndim]
        inner[...] = a
        return inner
    if layout == "backwards":
        back = (slice(None, None, -1),) * a.ndim
        return a[back].copy()[back]
    if layout == "stretched":
        return np.broadcast_to(a[:1], a.shape)
    return a


class Drawn:
    """Shorthand for draws, and arrays of the drawn seed."""

    def __init__(self, draw, name, dtype):
        self.draw, self.name, self.dtype = draw, name, dtype
        self.rng = np.random.default_rng(self.int(0, 2**16))

    def int(self, low, high):
        return self.draw(st.integers(low, high))

    def pick(self, *options):
        return self.draw(st.sampled_from(options))

    def ints(self, low, high):
        """An int or a pair of them."""
        return self.int(low, high) if self.pick(True, False) else (self.int(low, high), self.int(low, high))

    def shape(self, least=0, most=4):
        return tuple(self.draw(st.lists(st.integers(1, 4), min_size=least, max_size=most)))

    def array(self, *shape, scale=1.0, shift=0.0, positive=False, distinct=False):
        """Normal values (or positive ones from 0.3 up) in a drawn memory layout, ``distinct`` ones without ties."""
        a = self.rng.standard_normal(shape)
        a = np.asarray(np.abs(a) + 0.3 if positive else a * scale + shift, self.dtype)
        return laid_out(a, self.pick(*LAYOUTS[:-1] if distinct else LAYOUTS))

    def maybe(self, *shape):
        return self.array(*shape) if self.pick(True, False) else None

    def integers(self, high, *shape):
        return laid_out(np.asarray(self.rng.integers(0, high, shape)), self.pick(*LAYOUTS))

    def broadcast(self, shape):
        """A shape that broadcasts to ``shape``: axes set to 1, leading axes left out."""
        out = tuple(1 if self.pick(False, False, True) else n for n in shape)
        return out[self.int(0, len(out)):] if self.pick(True, False) else out

    def image(self, channels, least=1, most=6, **options):
        """(N, C, H, W), or without N."""
        size = self.int(least, most), self.int(least, most)
        batch = () if self.pick(False, False, True) else (self.int(1, 3),)
        return self.array(*batch, channels, *size, **options)


# Element by element


@case("abs", "exp", "neg", "gelu", "relu", "sigmoid", "silu", "softplus", "tanh")
def _(d):
    options = {"gelu": {"approximate": d.pick("none", "tanh")}, "softplus": {"beta": d.pick(1.0, 3.0)}}
    return (d.array(*d.shape(), scale=1.5),), options.get(d.name, {})


@case("log", "sqrt")
def _(d):
    return (d.array(*d.shape(), positive=True),), {}


@case("add", "sub", "mul", "div", "maximum", "minimum")
def _(d):
    shape = d.shape()
    positive = d.name == "div"
    pair = [d.array(*shape, positive=positive), d.array(*d.broadcast(shape), positive=positive)]
    if d.pick(False, False, True):
        pair[1] = d.pick(2, 0.75, -1.5)  # a number
    return tuple(pair[:: d.pick(1, -1)]), {}


@case("pow")
def _(d):
    shape = d.shape()
    if d.pick(True, False):
        return (d.array(*shape), d.pick(0, 1, 2, 3, -1, -2)), {}
    pair = [d.array(*shape, positive=True), d.array(*d.broadcast(shape), positive=True)]
    which, number = d.pick((None, 0), (0, 2), (0, 0.5), (1, 0.5), (1, -1.5))
    if which is not None:
        pair[which] = number
    return tuple(pair), {}


@case("clamp")
def _(d):
    shape = d.shape()
    low, high = [d.array(*d.broadcast(shape)) if d.pick(True, False) else limit for limit in d.pick(
        (-0.5, None), (None, 0.25), (-1, 0.5), (0.0, 0.0))]
    return (d.array(*shape), low, high), {}


@case("where")
def _(d):
    shape = d.shape()
    condition = laid_out(np.asarray(d.rng.random(d.broadcast(shape)) < 0.5), d.pick(*LAYOUTS))
    pair = [d.array(*shape), d.array(*d.broadcast(shape))]
    if d.pick(False, False, True):
        pair[1] = 0.5
    return (condition, *pair[:: d.pick(1, -1)]), {}


@case("dropout")
def _(d):
    p = d.pick(0.0, 0.25, 0.5, 1.0)
    return (d.array(*d.shape()),), {"p": p, "training": d.pick(True, True, False), "seed": d.int(0, 9)}


@case("softmax")
def _(d):
    shape = d.shape(least=1)
    return (d.array(*shape, scale=2.0), d.int(-len(shape), len(shape) - 1)), {}


@case("log_softmax")
def _(d):
    shape = d.shape(least=1)
    return (d.array(*shape, scale=2.0), d.int(-len(shape), len(shape) - 1)), {}


# Reductions


def _dim(d, ndim):
    """None, one axis, or several of them."""
    kind = d.pick("all", "one", "several") if ndim else "all"
    if kind == "all":
        return None
    if kind == "one":
        return d.int(-ndim, ndim - 1)
    axes = d.draw(st.permutations(range(ndim)))[: d.int(1, ndim)]
    return tuple(a - ndim if d.pick(True, False) else a for a in axes)


@case("sum", "mean")
def _(d):
    shape = d.shape()
    return (d.array(*shape),), {"dim": _dim(d, len(shape)), "keepdim": d.pick(True, False)}


@case("var")
def _(d):
    shape = tuple(n + 1 for n in d.shape(least=1, most=3))
    return (d.array(*shape, shift=d.pick(0.0, 3.0)),), {
        "dim": _dim(d, len(shape)), "correction": d.pick(0, 1), "keepdim": d.pick(True, False)}


@case("max", "min")
def _(d):
    shape = d.shape()
    x = d.array(*shape, distinct=True)
    if not shape or d.pick(False, False, True):
        return (x, d.array(*d.broadcast(shape), distinct=True)) if d.pick(True, False) else (x,), {}
    return (x, d.int(-len(shape), len(shape) - 1)), {"keepdim": d.pick(True, False)}


# Shapes


@case("reshape")
def _(d):
    shape = d.shape()
    new = list(d.draw(st.permutations(shape)))
    if len(new) > 1 and d.pick(True, False):
        new[:2] = [new[0] * new[1]]
    if new and d.pick(True, False):
        new[d.int(0, len(new) - 1)] = -1
    return (d.array(*shape), *new) if new and d.pick(True, False) else (d.array(*shape), tuple(new)), {}


@case("flatten")
def _(d):
    shape = d.shape()
    if not shape:
        return (d.array(),), {}
    first = d.int(0, len(shape) - 1)
    last = d.int(first, len(shape) - 1)
    return (d.array(*shape), first, last - d.pick(0, len(shape))), {}


@case("permute")
def _(d):
    shape = d.shape(least=1)
    axes = tuple(a - d.pick(0, len(shape)) for a in d.draw(st.permutations(range(len(shape)))))
    return (d.array(*shape), *axes) if d.pick(True, False) else (d.array(*shape), axes), {}


@case("transpose")
def _(d):
    n = len(shape := d.shape(least=1))
    return (d.array(*shape), d.int(-n, n - 1), d.int(-n, n - 1)), {}


@case("squeeze")
def _(d):
    shape = tuple(d.pick(1, 2, 3) for _ in range(d.int(0, 4)))
    return (d.array(*shape),), {"dim": _dim(d, len(shape))}


@case("unsqueeze")
def _(d):
    shape = d.shape()
    return (d.array(*shape), d.int(-len(shape) - 1, len(shape))), {}


@case("expand")
def _(d):
    shape = tuple(d.pick(1, 2, 3) for _ in range(d.int(0, 3)))
    new = tuple((n if d.pick(True, False) else -1) if n > 1 else d.int(1, 3) for n in shape)
    new = d.shape(most=2) + new
    return (d.array(*shape), *new) if new and d.pick(True, False) else (d.array(*shape), new), {}


@case("getitem")
def _(d):
    shape = d.shape(least=1)
    index, array = [], d.pick(True, False)  # at most one array: several follow NumPy's rule of joint broadcasting
    for n in shape[: d.int(1, len(shape))]:
        step = d.pick(1, 1, 2, -1, -2)
        kinds = [d.int(-n, n - 1)] if not array else []
        ends = d.pick((None, None), (0, n), (1, None), (None, -1), (-2, None))
        kinds += [slice(*ends[:: 1 if step > 0 else -1], step)]
        if array:
            kinds = [d.rng.integers(-n, n, d.shape(least=1, most=2)), d.rng.random(n) < 0.6,
                     Tensor(d.rng.integers(0, n, 5)), [0, n - 1, 0], kinds[0]]
        index.append(d.draw(st.sampled_from(kinds)))
        array = array and isinstance(index[-1], slice)
    if not any(isinstance(i, (np.ndarray, Tensor, list)) for i in index):
        if d.pick(True, False):
            index.insert(d.int(0, len(index)), None)
        if d.pick(True, False):
            index.append(...)
    return (d.array(*shape), index[0] if len(index) == 1 else tuple(index)), {}


@case("cat", "stack")
def _(d):
    shape = d.shape(least=1 if d.name == "cat" else 0) if d.pick(True, False) else (2, 3, 2, 2)
    ndim = len(shape) + (d.name == "stack")
    dim = d.int(-ndim, ndim - 1)
    arrays = []
    for _ in range(d.int(1, 3)):
        own = list(shape)
        if d.name == "cat":
            own[dim] = d.int(1, 4)
        arrays.append(d.array(*own))
    return (arrays, dim), {}


@case("pad")
def _(d):
    shape = d.shape(least=1)
    numbers = []
    for n in shape[::-1][: d.int(1, len(shape))]:
        before = d.int(-(n // 2), 2)
        numbers += [before, d.int(-(n // 2), 2)]
    return (d.array(*shape), tuple(numbers)), {"value": d.pick(0.0, 1.5)}


# Products


@case("matmul")
def _(d):
    n, k, m = d.int(1, 4), d.int(1, 4), d.int(1, 4)
    batch = d.shape(most=2)
    left = d.pick((k,), (n, k), batch + (n, k))
    right = d.pick((k,), (k, m), d.broadcast(batch) + (k, m))
    return (d.array(*left), d.array(*right)), {}


@case("linear")
def _(d):
    batch, k, m = d.shape(most=3), d.int(1, 4), d.int(1, 4)
    return (d.array(*batch, k), d.array(m, k), d.maybe(m)), {}


@case("embedding")
def _(d):
    return (d.integers(3, *d.shape(most=3)), d.array(d.int(3, 5), d.int(1, 4))), {}


@case("scaled_dot_product_attention")
def _(d):
    batch, length, source, e, v = d.shape(most=2), d.int(1, 4), d.int(1, 4), d.int(1, 3), d.int(1, 3)
    mask, options = d.pick("none", "bool", "float", "causal"), {}
    inputs = [d.array(*batch, n, c) for n, c in ((length, e), (source, e), (source, v))]
    if mask in ("bool", "float"):
        shape = d.broadcast(batch) + (d.pick(1, length), source)
        if mask == "bool":
            inputs.append(d.rng.random(shape) < 0.6)
        else:
            inputs.append(d.array(*shape))
    if mask == "causal":
        options["is_causal"] = True
    if d.pick(True, False):
        options["scale"] = 0.3
    return tuple(inputs), options


# Images


@case("conv2d")
def _(d):
    padding = d.pick("some", "some", "some", "same", "valid")
    if d.pick(True, False):  # what the fast kernels are for
        kernel, stride, dilation, groups, c, o = (3, 3), 1, 1, 1, d.pick(1, 2, 9), d.pick(1, 2)
    else:
        kernel, groups = d.pick((3, 3), (1, 1), (d.int(1, 4), d.int(1, 4))), d.int(1, 3)
        stride, dilation = d.ints(1, 3) if padding != "same" else 1, d.pick(1, (1, 2), d.ints(1, 2))
        c, o = d.int(1, 3) * groups, d.int(1, 3) * groups
    least = 1 + 2 * (max(kernel) - 1)
    x, weight = d.image(c, least if padding != "same" else 1, least + 3), d.array(o, c // groups, *kernel)
    args = stride, d.ints(0, 2) if padding == "some" else padding, dilation, groups
    return (x, weight, d.maybe(o), *args), {}


@case("conv_transpose2d")
def _(d):
    groups, kernel = d.pick(1, 1, 2, 3), d.pick((3, 3), (2, 2), (d.int(1, 4), d.int(1, 4)))
    stride = d.pick(1, kernel, d.ints(1, 3))
    dilation = d.pick(1, 1, d.ints(1, 2))
    extra = d.pick(0, 1) if stride != 1 and min(np.maximum(stride, dilation).flat) > 1 else 0
    c, o = d.int(1, 3) * groups, d.int(1, 3)
    padding = d.ints(0, 1) if min(kernel) > 1 else 0
    x = d.image(c, 2 if padding else 1, 4)
    return (x, d.array(c, o, *kernel), d.maybe(o * groups)), {
        "stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}


@case("max_pool2d")
def _(d):
    kernel, dilation = d.ints(1, 3), d.pick(1, 1, d.ints(1, 2))
    padding = tuple(k // 2 if d.pick(True, False) else 0 for k in np.broadcast_to(kernel, 2).tolist())
    return (d.image(d.int(1, 3), 5, 7, distinct=True), kernel), {
        "stride": d.pick(None, d.ints(1, 4)), "padding": padding, "dilation": dilation,
        "ceil_mode": d.pick(True, False), "return_indices": d.pick(True, False)}


@case("avg_pool2d")
def _(d):
    kernel = d.ints(1, 3)
    padding = tuple(k // 2 if d.pick(True, False) else 0 for k in np.broadcast_to(kernel, 2).tolist())
    return (d.image(d.int(1, 3), 3, 6), kernel), {
        "stride": d.pick(None, d.ints(1, 4)), "padding": padding, "ceil_mode": d.pick(True, False),
        "count_include_pad": d.pick(True, False), "divisor_override": d.pick(None, None, 3)}


@case("interpolate")
def _(d):
    x = d.array(d.int(1, 3), d.int(1, 3), d.int(1, 6), d.int(1, 6))
    if d.pick(True, False):
        return (x,), {"size": d.ints(1, 9)}
    return (x,), {"scale_factor": d.pick(1, 2, 3, 1.5, (2, 1.25), (1, 3))}


@case("group_norm", "group_norm_silu")
def _(d):
    groups, n = d.int(1, 3), d.int(1, 3)
    c = groups * d.int(1, 3)
    x = d.array(n, c, *[2 * k for k in d.shape(most=3)], 2, shift=d.pick(0.0, 2.0, 50.0))
    conditions = (d.maybe(n, 2 * c),) if d.name == "group_norm_silu" else ()
    return (x, groups, d.maybe(c), d.maybe(c), *conditions), {"eps": d.pick(1e-5, 1e-2)}


@case("layer_norm")
def _(d):
    shape = d.shape(most=2) + (d.int(3, 5),)
    last = shape[-d.int(1, len(shape)):]
    own = last[0] if len(last) == 1 and d.pick(True, False) else last
    return (d.array(*d.shape(most=2), *shape), own, d.maybe(*last), d.maybe(*last)), {"eps": d.pick(1e-5, 1e-2)}


# Losses


@case("mse_loss", "l1_loss")
def _(d):
    shape = d.shape()
    return (d.array(*shape), d.array(*shape)), {"reduction": d.pick("mean", "sum", "none")}


@case("binary_cross_entropy_with_logits")
def _(d):
    shape = d.shape()
    options = {"reduction": d.pick("mean", "sum", "none")}
    target = np.asarray(d.rng.random(shape), d.dtype)
    for name in ("weight", "pos_weight"):
        if d.pick(True, False):
            options[name] = Tensor(d.array(*d.broadcast(shape), positive=True))
    return (d.array(*shape, scale=2.0), target), options


@case("cross_entropy")
def _(d):
    classes, batch, rest = d.int(2, 4), d.shape(least=1, most=1) if d.pick(True, True, False) else (), d.shape(most=2)
    shape = batch + (classes,) + (rest if batch else ())
    axis = len(batch)
    options = {"reduction": d.pick("mean", "sum", "none"), "label_smoothing": d.pick(0.0, 0.2)}
    if d.pick(True, False):
        options["weight"] = Tensor(d.array(classes, positive=True))
    if d.pick(False, False, True):
        target = (d.rng.random(shape) + 0.1).astype(d.dtype)
        target /= target.sum(axis, keepdims=True)
    else:
        target = np.asarray(d.rng.integers(0, classes, shape[:axis] + shape[axis + 1:]))
        if target.size > 1 and d.pick(True, False):
            options["ignore_index"] = d.pick(-100, 0, 255)
            target.flat[:2] = options["ignore_index"], (options["ignore_index"] + 1) % classes
    return (d.array(*shape, scale=2.0), target), options


# Kernels and what they are given, for the tests in which one element is infinite or NaN: in each of the arrays but
# the last ``sound`` ones (a broken weight is left out: padding is not multiplied everywhere).

SPOILT = {}  # name -> call(kernels, *arrays), the arrays' shapes, sound


def _spoilt(name, *shapes, sound=0):
    return lambda call: SPOILT.update({name: (call, shapes, sound)})


_spoilt("linear", (3, 4), (2, 4), (2,))(lambda k, *a: k.linear(*a))
_spoilt("linear_backward", (3, 2), (3, 4), (2, 4))(lambda k, *a: k.linear_backward(*a))
_spoilt("matmul", (2, 3, 4), (2, 4, 5))(lambda k, a, b: k.matmul(a, b))
_spoilt("softmax", (3, 5))(lambda k, x: k.softmax(x, -1))
_spoilt("softmax_backward", (3, 5), (3, 5))(lambda k, g, y: k.softmax_backward(g, y, -1))
_spoilt("silu_backward", (2, 3, 4, 5), (2, 3, 4, 5))(lambda k, g, x: k.silu_backward(g, x))
_spoilt("squared_error_backward", (), (3, 4), (3, 4))(lambda k, *a: k.squared_error_backward(*a, 0.5))
_spoilt("add_at", (3, 2))(lambda k, g: k.add_at((6, 2), np.array([4, 0, 4]), g))

for _mask in (None, np.tri(4, 5, -1, dtype=bool)):  # whose first query sees nothing
    for _dropout in (None, np.arange(20.0).reshape(4, 5) % 3):
        def _forward(k, q, key, value, m=_mask, d=_dropout):
            return k.attention(q, key, value, m, None if d is None else d.astype(q.dtype), 0.5)[0]

        def _backward(k, g, q, key, value, m=_mask, d=_dropout):
            d = None if d is None else d.astype(q.dtype)
            y, kept = k.attention(q, key, value, m, d, 0.5)
            return k.attention_backward(g, q, key, value, y, kept, m, d, 0.5, True)

        _name = "attention" + " masked" * (_mask is not None) + " dropped" * (_dropout is not None)
        _spoilt(_name, (2, 4, 3), (2, 5, 3), (2, 5, 2))(_forward)
        _spoilt(f"{_name} backward", (2, 4, 2), (2, 4, 3), (2, 5, 3), (2, 5, 2))(_backward)

for _name, _x, _y, _weight, *_geometry in [
        ("conv", (2, 16, 20, 17), (2, 16, 20, 17), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1),
        ("conv in groups", (2, 4, 9, 8), (2, 4, 9, 8), (4, 2, 3, 3), (1, 1), (1, 1), (1, 1), 2),
        ("conv with strides", (2, 3, 9, 8), (2, 4, 4, 4), (4, 3, 3, 2), (2, 2), (1, 0), (1, 1), 1),
        ("conv to one channel", (2, 8, 9, 8), (2, 1, 9, 8), (1, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1)]:
    _spoilt(_name, _x, _weight, sound=1)(lambda k, x, w, s=_y[2:], g=_geometry: k.conv2d(x, w, None, s, *g))
    _spoilt(f"{_name} transposed", _y, _weight, sound=1)(
        lambda k, x, w, s=_x[2:], g=_geometry: k.conv_transpose2d(x, w, None, s, *g))
    _spoilt(f"{_name} backward", _y, _x, _weight, sound=1)(lambda k, *a, g=_geometry: k.conv2d_backward(*a, *g))
    _spoilt(f"{_name} backward to x", _y, _x, _weight, sound=1)(
        lambda k, *a, g=_geometry: k.conv2d_backward(*a, *g, (True, False, False)))
    _spoilt(f"{_name} backward to weight", _y, _x, _weight, sound=1)(
        lambda k, *a, g=_geometry: k.conv2d_backward(*a, *g, (False, True, False)))
    _spoilt(f"{_name} transposed backward", _x, _y, _weight, sound=1)(
        lambda k, *a, g=_geometry: k.conv_transpose2d_backward(*a, *g))

for _name, _y, *_geometry in [("pool", (2, 3, 4, 3), (2, 2), (2, 2), (0, 0)),
                              ("pool with overlap", (2, 3, 5, 7), (3, 2), (2, 1), (1, 0))]:
    _x = (2, 3, 9, 8)
    _spoilt(f"max_{_name}", _x)(lambda k, x, s=_y[2:], g=_geometry: k.max_pool2d(x, s, *g, (1, 1)))
    _spoilt(f"max_{_name} backward", _y, _x)(lambda k, g, x, s=_y[2:], geometry=_geometry: k.max_pool2d_backward(
        g, x, k.max_pool2d(x, s, *geometry, (1, 1)), *geometry, (1, 1)))
    _spoilt(f"avg_{_name}", _x)(lambda k, x, s=_y[2:], g=_geometry: k.avg_pool2d(x, s, *g, np.full(s, 4, x.dtype)))
    _spoilt(f"avg_{_name} backward", _y)(lambda k, g, s=_y[2:], geometry=_geometry: k.avg_pool2d_backward(
        g, (9, 8), *geometry, np.full(s, 4, g.dtype)))

for _silu in (False, True):
    _arrays = (3, 4, 5, 6), (4,), (4,), (3, 8)
    _name = "group_norm" + "_silu" * _silu
    _spoilt(_name, *_arrays)(lambda k, x, w, b, s, silu=_silu: k.group_norm(x, 2, w, b, 1e-5, silu, s))
    _spoilt(f"{_name} backward", _arrays[0], *_arrays)(lambda k, g, x, w, b, s, silu=_silu: k.group_norm_backward(
        g, x, *k.group_norm(x, 2, w, b, 1e-5, silu, s)[1:], 2, w, b, silu, s))


def spoilt(name, rng, dtype):
    """The kernel ``name`` of SPOILT, and its arrays: one after the other with an element infinite, and NaN."""
    call, shapes, sound = SPOILT[name]
    for which in range(len(shapes) - sound):
        for value in (np.inf, -np.inf, np.nan):
            arrays = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
            arrays[which][tuple(rng.integers(n) for n in shapes[which])] = value
            yield call, arrays


def assert_as_far_spoilt(actual, expected, tolerance):
    """Both (arrays or tuples of them) are finite at the same places, and there the same."""
    for a, e in zip(*(x if isinstance(x, tuple) else (x,) for x in (actual, expected)), strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            finite = np.isfinite(e)
            np.testing.assert_array_equal(np.isfinite(a), finite)
            limit = tolerance * max(1, np.abs(e[finite]).max(initial=0))
            np.testing.assert_allclose(a[finite], e[finite], rtol=0, atol=limit)
