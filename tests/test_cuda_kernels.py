"""The CUDA kernels, run on the CPU (see cuda_on_cpu), against the plain kernels.

Their Python side runs too, with NumPy arrays in the place of CuPy's; where it asks for addresses, with the stand-in's
(standin_cupy). ``empty`` gives NaN, so that an element that a kernel leaves out shows.
"""

import contextlib
import gc
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuda_on_cpu
import standin_cupy
from npdiffusion import device
from npdiffusion.kernels import cupy as cuda
from npdiffusion.kernels import plain as reference
from npdiffusion.kernels.cupy import build
from npdiffusion.kernels.cupy.elementwise import channel_sums, sum_parts
from npdiffusion.kernels.cupy.product import product
from strategies import LAYOUTS, SPOILT, assert_as_far_spoilt, laid_out, spoilt

SOME = settings(max_examples=20, deadline=None)
TOLERANCE = {"f4": 2e-5, "f8": 1e-12}  # of the largest element


class RawModule:
    """cupy.RawModule, on the CPU."""

    def __init__(self, code, options):
        self.kernels = cuda_on_cpu.compile(code, options)

    def get_function(self, name):
        return lambda grid, block, args, shared_mem=0: self.kernels.launch(name, grid, block, args, shared_mem)


def empty(shape, dtype):
    return np.full(shape, np.nan, dtype)


def concatenate(arrays, axis):
    return np.ascontiguousarray(np.concatenate(arrays, axis))


FAKE_CUPY = types.SimpleNamespace(
    RawModule=RawModule, empty=empty, empty_like=lambda a: np.full_like(a, np.nan), add=np.add,
    ascontiguousarray=np.ascontiguousarray, concatenate=concatenate, broadcast_to=np.broadcast_to, where=np.where)


@contextlib.contextmanager
def in_the_place_of_cupy(module):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_cupy", module)
        for cache in (build.build, build.kernel):
            cache.cache_clear()
        yield
    for cache in (build.build, build.kernel):
        cache.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu():
    with in_the_place_of_cupy(FAKE_CUPY):
        yield


class Draw:
    """Arrays with normal values in drawn layouts, and numbers."""

    def __init__(self, data):
        self.data = data
        self.dtype = self.pick("f4", "f8")
        self.rng = np.random.default_rng(self.int(0, 2**16))

    def pick(self, *options):
        return self.data.draw(st.sampled_from(options))

    def int(self, low, high):
        return self.data.draw(st.integers(low, high))

    def pair(self, low, high):
        return self.int(low, high), self.int(low, high)

    def array(self, *shape, scale=1.0, shift=0.0, ties=False):
        a = self.rng.standard_normal(shape) * scale + shift
        a = np.round(a) if ties else a
        return laid_out(np.asarray(a, self.dtype), self.pick("channels last", *LAYOUTS[:-1]))


def assert_close(actual, expected, images=(), tolerance=TOLERANCE):
    """Both tuples (or single arrays) are close; results number ``images`` are channels-last in memory."""
    if not isinstance(actual, tuple):
        actual, expected = (actual,), (expected,)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (e is None)
        if e is None:
            continue
        assert a.shape == e.shape and a.dtype == e.dtype
        if i in images:
            assert a.transpose(0, 2, 3, 1).flags.c_contiguous
        finite = np.abs(e)[np.isfinite(e)]
        scale = max(1, finite.max()) if finite.size else 1
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance.get(e.dtype.str[1:], 0) * scale)


# ---- the harness itself ---------------------------------------------------------------------------------

PITFALLS = """
extern "C" __global__ void fill(int *x, int n, int value) { if (threadIdx.x < n) x[threadIdx.x] = value; }
struct Place { int *x; };
extern "C" __global__ void fill_at(Place at, int n, int value) { if (threadIdx.x < n) at.x[threadIdx.x] = value; }
extern "C" __global__ void no_barrier(const int *x, int *y, int from) {
    __shared__ int s[64];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[(threadIdx.x + from) % 64];
}
extern "C" __global__ void barrier(const int *x, int *y, int from) {
    __shared__ int s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[(threadIdx.x + from) % 64];
}
extern "C" __global__ void stuck(int *x) { if (threadIdx.x < 3) __syncthreads(); x[0] = 1; }
"""


def test_the_harness_catches_what_goes_wrong_silently_on_a_gpu():
    kernels, x = cuda_on_cpu.compile(PITFALLS), np.arange(64, dtype="i4")
    n, value = np.int32(8), np.int32(5)
    with pytest.raises(TypeError, match="argument 1"):
        kernels.launch("fill", (1,), (8,), (x, 8, value))
    with pytest.raises(TypeError, match="argument 0"):
        kernels.launch("fill", (1,), (8,), (x.astype("i8"), n, value))
    with pytest.raises(TypeError, match="3 arguments"):
        kernels.launch("fill", (1,), (8,), (x, n))
    with pytest.raises(ValueError, match="gaps"):
        kernels.launch("fill", (1,), (8,), (x[::2], n, value))
    with pytest.raises(ValueError, match="threads"):
        kernels.launch("fill", (1,), (2048,), (x, n, value))
    with pytest.raises(ValueError, match="blocks"):
        kernels.launch("fill", (1, 70000), (8,), (x, n, value))
    with pytest.raises(RuntimeError, match="outside"):
        kernels.launch("fill", (1,), (8,), (x[:7], n, value))
    place = np.array((x.ctypes.data,), [("x", "u8")])[()]
    with pytest.raises(RuntimeError, match="outside"):
        kernels.launch("fill_at", (1,), (8,), (place, n, value), memory_at=lambda address: x[:7])
    kernels.launch("fill_at", (1,), (8,), (place, n, value), memory_at=lambda address: x)
    assert (x[:8] == 5).all() and x[8] == 8
    with pytest.raises(RuntimeError, match="barrier"):
        kernels.launch("stuck", (1,), (8,), (x,))
    for shift in (1, 63):  # what the next thread wrote, and what the previous one did
        y = np.zeros_like(x)
        kernels.launch("barrier", (1,), (64,), (x, y, np.int32(shift)))
        np.testing.assert_array_equal(y, np.roll(x, -shift))
    kernels.launch("no_barrier", (1,), (64,), (x, y, np.int32(1)))
    assert (y != np.roll(x, -1)).any()


# ---- elementwise, norm, softmax -------------------------------------------------------------------------


@SOME
@given(st.data())
def test_sums_and_cat(data):
    d = Draw(data)
    n, c, h, w = d.int(1, 3), d.pick(1, 3, 8, 33, 300), d.int(1, 9), d.int(1, 9)
    x = d.array(n, c, h, w)
    assert_close(channel_sums(x), x.sum((0, 2, 3)))
    other = d.array(n, d.int(1, 4), h, w)
    assert_close(cuda.cat([x, other], 1), reference.cat([x, other], 1), images=[0])
    assert_close(cuda.add(x, x), x + x)
    parts = d.array(d.int(1, 20), *d.pair(1, 9))
    assert_close(sum_parts(np.ascontiguousarray(parts)), parts.sum(0))


def test_channel_sums_over_many_blocks():
    x = np.random.default_rng(0).standard_normal((5, 7, 40, 41)).astype("f4")
    assert_close(channel_sums(x), x.sum((0, 2, 3)))


@SOME
@given(st.data())
def test_activations(data):
    d = Draw(data)
    shape = d.pick((), (d.int(0, 600),), (3, 4, 5), (2, d.int(1, 5), 3, 4))
    x, g = d.array(*shape), d.array(*shape)
    images = [0] if len(shape) == 4 else []
    assert_close(cuda.erf(x), np.asarray(reference.erf(x)), images)
    assert_close(cuda.silu(x), np.asarray(reference.silu(x)), images)
    assert_close(cuda.silu_backward(g, x), np.asarray(reference.silu_backward(g, x)), images)


def test_activations_of_infinities_and_nan():
    x = np.array([np.inf, np.nan, -30.0, 30.0])
    np.testing.assert_allclose(cuda.silu(x), [np.inf, np.nan, -30 * np.exp(-30.0), 30])


@SOME
@given(st.data())
def test_squared_error(data):
    d = Draw(data)
    shape = d.pick((), (1,), (5000,), (2, 3, 4, 5), (3, 70, 60))
    x, y, g, scale = *(d.array(*s) for s in (shape, shape, ())), d.pick(1.0, 0.01)
    assert_close(cuda.squared_error(x, y, scale), reference.squared_error(x, y, scale))
    expected = np.asarray(reference.squared_error_backward(g, x, y, scale))
    assert_close(cuda.squared_error_backward(g, x, y, scale), expected, images=[0] if len(shape) == 4 else [])


@SOME
@given(st.data())
def test_timestep_embedding(data):
    d = Draw(data)
    n, dim = d.int(1, 5), 2 * d.int(1, 40)
    t = d.rng.integers(0, 1024, n)
    t = d.pick(t, t.astype("i4"), np.repeat(t, 2)[::2], np.broadcast_to(t[0], n), t + 0.25, t.astype("f4") / 3)
    assert_close(cuda.timestep_embedding(t, dim, 1e4, d.dtype), reference.timestep_embedding(t, dim, 1e4, d.dtype))


@SOME
@given(st.data())
def test_group_norm(data):
    d = Draw(data)
    groups, width = d.pick((1, 1), (2, 3), (8, 4), (2, 40), (1, 260))
    c, n, silu = groups * width, d.int(1, 3), d.pick(True, False)
    x = d.array(n, c, d.int(1, 9), d.int(2, 9), shift=d.pick(0.0, 2.0, 50.0))
    weight, bias, scale_shift = d.array(c), d.array(c), d.pick(None, d.array(n, 2 * c))
    expected = reference.group_norm(x, groups, weight, bias, 1e-3, silu, scale_shift)
    far = 100 if d.dtype == "f4" and np.abs(x).max() > 40 else 1  # float32 loses digits in both
    actual = cuda.group_norm(x, groups, weight, bias, 1e-3, silu, scale_shift)
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a, e, rtol=0, atol=far * TOLERANCE[d.dtype] * max(1, np.abs(e).max()))
    g = d.array(*x.shape)
    args = g, x, *expected[1:], groups, weight, bias, silu, scale_shift
    expected = reference.group_norm_backward(*args)
    actual = cuda.group_norm_backward(*args)
    assert (actual[3] is None) == (expected[3] is None) == (scale_shift is None)
    for a, e in zip(actual[:3 + (scale_shift is not None)], expected):
        np.testing.assert_allclose(a, e, rtol=0, atol=far * TOLERANCE[d.dtype] * max(1, np.abs(e).max()) * 5)


@SOME
@given(st.data())
def test_softmax(data):
    d = Draw(data)
    shape = d.pick((5,), (3, 70), (4, 1), (2, 3, 33), (300, 2), (2, 5, 3, 4))
    axis = d.int(-len(shape), len(shape) - 1)
    x = d.array(*shape, scale=3.0)
    y = reference.softmax(x, axis)
    assert_close(cuda.softmax(x, axis), y)
    g = d.array(*shape)
    assert_close(cuda.softmax_backward(g, y, axis), reference.softmax_backward(g, y, axis))


def test_softmax_of_infinities_and_nan():
    x = np.array([[0, -np.inf, 1], [-np.inf] * 3, [0, np.nan, 1], [0, np.inf, 1]])
    with np.errstate(invalid="ignore"):
        for axis in (0, 1):
            np.testing.assert_allclose(cuda.softmax(x, axis), reference.softmax(x, axis), atol=1e-12)


# ---- pooling --------------------------------------------------------------------------------------------


@SOME
@given(st.data())
def test_pooling(data):
    d = Draw(data)
    kernel, stride, dilation = d.pair(1, 3), d.pair(1, 4), d.pair(1, 2)
    padding = tuple(d.int(0, k // 2) for k in kernel)
    ties = d.pick(True, False)
    x = d.array(d.int(1, 3), d.pick(1, 2, 3, 4, 7, 8), d.int(5, 8), d.int(5, 8), ties=ties)
    if d.pick(True, False):
        x = x.copy()
        x.flat[:: d.int(2, 30)] = np.nan
        x.flat[1:: d.int(2, 30)] = -np.inf

    def size(dilation):  # with ceil_mode or without
        room = [n + 2 * p - e * (k - 1) - 1 for n, p, e, k in zip(x.shape[2:], padding, dilation, kernel)]
        return tuple((-(-r // s) if ceil and -(-r // s) * s < n + p else r // s) + 1
                     for r, s, n, p in zip(room, stride, x.shape[2:], padding))

    ceil = d.pick(True, False)
    out = size(dilation)
    args = kernel, stride, padding, dilation
    y = reference.max_pool2d(x, out, *args)
    assert_close(cuda.max_pool2d(x, out, *args), y, images=[0])
    g = d.array(*y.shape)
    assert_close(cuda.max_pool2d_backward(g, x, y, *args), reference.max_pool2d_backward(g, x, y, *args), images=[0])

    out, x = size((1, 1)), d.array(*x.shape)
    counts = np.abs(d.array(*out)) + 1
    args = kernel, stride, padding, counts
    y = reference.avg_pool2d(x, out, *args)
    assert_close(cuda.avg_pool2d(x, out, *args), y, images=[0])
    g = d.array(*y.shape)
    expected = reference.avg_pool2d_backward(g, x.shape[2:], *args)
    assert_close(cuda.avg_pool2d_backward(g, x.shape[2:], *args), expected, images=[0])


# ---- convolution ----------------------------------------------------------------------------------------


class ConvDraw(Draw):
    """Convolutions of all structures; some fill several tiles of the kernels, and several slices of the sum."""

    def conv(self):
        """x, weight, bias, the result's size, and (stride, padding, dilation, groups)."""
        if self.pick(True, False, False):  # large
            kernel, stride, dilation, groups = self.pick((3, 3), (1, 1)), self.pair(1, 2), (1, 1), self.pick(1, 2)
            c, o, n, least = self.pick(4, 17, 40), self.pick(8, 33, 70), self.pick(1, 3), self.pick(9, 13)
        else:
            kernel, stride, dilation, groups = self.pair(1, 4), self.pair(1, 3), self.pair(1, 2), self.int(1, 3)
            c, o, n, least = self.int(1, 5), self.int(1, 5), self.int(1, 3), 1
        size = [max(least, (k - 1) * d + 1) + self.int(0, 3) for k, d in zip(kernel, dilation)]
        padding, behind = (tuple(self.int(0, k) for k in kernel) for _ in range(2))
        x, weight = self.array(n, c * groups, *size), self.array(o * groups, c, *kernel)
        bias = self.pick(None, np.ascontiguousarray(self.array(o * groups)))
        size = tuple((n + before + after - e * (k - 1) - 1) // s + 1
                     for n, before, after, e, k, s in zip(size, padding, behind, dilation, kernel, stride))
        return x, weight, bias, size, (stride, padding, dilation, groups)

    def needs(self):
        return tuple(self.pick(True, False) for _ in range(3))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_conv2d(data):
    d = ConvDraw(data)
    x, weight, bias, size, settings = d.conv()
    y = reference.conv2d(x, weight, bias, size, *settings)
    assert_close(cuda.conv2d(x, weight, bias, size, *settings), y, images=[0])
    g, needs = d.array(*y.shape), d.needs()
    expected = reference.conv2d_backward(g, x, weight, *settings, needs)
    assert_close(cuda.conv2d_backward(g, x, weight, *settings, needs), expected, images=[0, 1])


@SOME
@given(st.data())
def test_conv_transpose2d(data):
    d = ConvDraw(data)
    _, weight, _, _, (stride, _, dilation, groups) = d.conv()
    x = d.array(d.int(1, 2), len(weight), *d.pair(1, 5))
    spans = [e * (k - 1) for e, k in zip(dilation, weight.shape[2:])]
    padding, behind = (tuple(d.int(0, min(2, span // 2)) for span in spans) for _ in range(2))
    size = tuple((n - 1) * s + span + 1 - before - after + d.int(0, max(s, e) - 1) for n, s, span, before, after, e in
                 zip(x.shape[2:], stride, spans, padding, behind, dilation))
    settings = stride, padding, dilation, groups
    bias = d.pick(None, d.array(weight.shape[1] * groups))
    y = reference.conv_transpose2d(x, weight, bias, size, *settings)
    assert_close(cuda.conv_transpose2d(x, weight, bias, size, *settings), y, images=[0])
    g, needs = d.array(*y.shape), d.needs()
    expected = reference.conv_transpose2d_backward(g, x, weight, *settings, needs)
    assert_close(cuda.conv_transpose2d_backward(g, x, weight, *settings, needs), expected, images=[0, 1])


def test_convolution_of_arrays_that_begin_anywhere():
    """Fours are read at once only where they are aligned: elsewhere a GPU refuses, and so does the CPU."""
    rng = np.random.default_rng(0)
    x, weight, g = (rng.standard_normal(1 + n * k * k * 8)[1:].reshape(n, k, k, 8).transpose(0, 3, 1, 2)
                    for n, k in ((2, 5), (8, 3), (2, 5)))
    y = reference.conv2d(x, weight, None, (5, 5), *SAME)
    assert_close(cuda.conv2d(x, weight, None, (5, 5), *SAME), y)
    assert_close(cuda.conv2d_backward(g, x, weight, *SAME), reference.conv2d_backward(g, x, weight, *SAME))


SAME = (1, 1), (1, 1), (1, 1), 1  # 3 x 3, padding 1


@pytest.mark.parametrize("channels", [(9, 16), (40, 70)], ids=["narrow", "wide"])
def test_tf32_rounds_the_factors_only(channels, monkeypatch):
    monkeypatch.setattr(device, "_tf32", True)
    rng, (c, o) = np.random.default_rng(0), channels
    x, weight, g = (rng.standard_normal(shape).astype("f4") for shape in ((2, c, 9, 9), (o, c, 3, 3), (2, o, 9, 9)))

    def run(kernels, x, weight, g):
        return kernels.conv2d(x, weight, None, (9, 9), *SAME), *kernels.conv2d_backward(g, x, weight, *SAME)[:2]

    rounded = [to_tf32(a).astype("f8") for a in (x, weight, g)]
    for actual, expected, exact in zip(run(cuda, x, weight, g), run(reference, *rounded), run(reference, x, weight, g)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
        assert np.abs(actual - exact).max() > 1e-5 * np.abs(exact).max()
    assert_close(cuda.conv2d_backward(g, x, weight, *SAME)[2], g.sum((0, 2, 3)))  # has no factors


def to_tf32(a):
    """The nearest numbers with 10 bits of mantissa, by arithmetic instead of bits."""
    mantissa, exponent = np.frexp(a.astype("f8"))
    return np.ldexp(np.trunc(mantissa * 2**11 + np.copysign(0.5, a)), exponent - 11)


@pytest.mark.parametrize("kind", ["f4", "f8", "tf32"])
@pytest.mark.parametrize("channels", [(8, 12), (36, 40), (64, 32), (4, 132)])
def test_convolutions_as_the_networks_have_them(channels, kind, monkeypatch):
    """Channels and widths that divide by four: everything is read in Fours."""
    monkeypatch.setattr(device, "_tf32", kind == "tf32")
    rng, (c, o), dtype = np.random.default_rng(0), channels, kind.replace("tf32", "f4")
    tolerance = 5 * TOLERANCE[dtype]

    def images(n, c, *size):
        a = rng.standard_normal((n, *size, c)).astype(dtype).transpose(0, 3, 1, 2)
        return a if kind != "tf32" else to_tf32(a).astype("f4")

    def same(actual, expected):
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())

    x, weight = images(3, c, 8, 12), images(o, c, 3, 3)
    y = reference.conv2d(x, weight, None, (8, 12), *SAME)
    same([cuda.conv2d(x, weight, None, (8, 12), *SAME)], [y])
    g = images(*y.shape)
    same(cuda.conv2d_backward(g, x, weight, *SAME), reference.conv2d_backward(g, x, weight, *SAME))
    up, weight = ((2, 2), (0, 0), (1, 1), 1), images(c, o, 2, 2)
    y = reference.conv_transpose2d(x, weight, None, (16, 24), *up)
    same([cuda.conv_transpose2d(x, weight, None, (16, 24), *up)], [y])
    g = images(*y.shape)
    same(cuda.conv_transpose2d_backward(g, x, weight, *up), reference.conv_transpose2d_backward(g, x, weight, *up))


def test_convolutions_give_the_same_bits_twice():
    rng = np.random.default_rng(0)
    x, weight, g = (rng.standard_normal(shape).astype("f4") for shape in ((3, 5, 20, 20), (7, 5, 3, 3), (3, 7, 20, 20)))
    twice = [cuda.conv2d_backward(g, x, weight, *SAME) for _ in range(2)]
    for a, b in zip(*twice):
        np.testing.assert_array_equal(a, b)


# ---- what is not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(SPOILT) - {"add_at"}))
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_is_not_finite_spreads_as_far(name):
    for call, arrays in spoilt(name, np.random.default_rng(0), "f4"):
        assert_as_far_spoilt(call(cuda, *arrays), call(reference, *arrays), 1e-4)


# ---- matrix products ------------------------------------------------------------------------------------


def lying(draw, shape):
    """An array with its axes in any order in memory, some of them broadcast, some with gaps, some backwards."""
    order = draw.data.draw(st.permutations(range(len(shape))))
    sizes = [shape[axis] for axis in order]
    gaps = [draw.pick(1, 1, 1, 2) for _ in sizes]
    a = draw.rng.standard_normal([n * gap for n, gap in zip(sizes, gaps)]).astype(draw.dtype)
    a = a[tuple(slice(None, None, draw.pick(gap, gap, -gap)) for gap in gaps)].transpose(np.argsort(order))
    for axis in range(len(shape) - 2):
        if draw.pick(True, False, False, False):
            a = np.broadcast_to(a[(slice(None),) * axis + (slice(1),)], shape)
    return a


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_products(data):
    d = Draw(data)
    n, k, m = (d.pick(0, 1, 2, 16, 20, 33, 64, 100) for _ in range(3))
    stack = tuple(d.int(0, 3) for _ in range(d.int(0, 3)))
    stacks = [tuple(d.pick(size, size, 1) for size in stack[d.pick(0, 0, len(stack)):]) for _ in range(2)]
    a, b = lying(d, (*stacks[0], n, k)), lying(d, (*stacks[1], k, m))
    bias, scale = d.pick(None, d.rng.standard_normal(m).astype(d.dtype)), d.pick(1.0, -0.3)
    y, expected = cuda.matmul(a, b), reference.matmul(a, b)
    assert_close(y, expected)
    assert a.ndim > 2 or b.ndim > 2 or y.flags.c_contiguous
    expected = (scale * expected + (0 if bias is None else bias)).astype(d.dtype)
    assert_close(product(a, b, bias, scale), expected)


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), (3, 5)), ((4, 3), (3,)), ((3,), (2, 3, 5)), ((2, 4, 3), (3,))])
def test_products_of_vectors(shapes):
    a, b = (np.random.default_rng(0).standard_normal(shape) for shape in shapes)
    assert_close(cuda.matmul(a, b), np.asarray(a @ b))


@SOME
@given(st.data())
def test_linear(data):
    d = Draw(data)
    n, out, k = d.pick(0, 1, 20, 300, 1100), d.pick(1, 4, 33, 70), d.pick(0, 1, 4, 33, 140)
    g, x, weight = (d.array(*shape) for shape in ((n, out), (n, k), (out, k)))
    bias = d.pick(None, d.array(out))
    assert_close(cuda.linear(x, weight, bias), reference.linear(x, weight, bias))
    args = g, x, weight, *d.pick((), (True,), (False,))
    assert_close(cuda.linear_backward(*args), reference.linear_backward(*args))
    assert_close(cuda.matmul(g.T, x), g.T @ x)


@SOME
@given(st.data())
def test_attention(data):
    d = Draw(data)
    queries, keys, e, v = d.pick(1, 5, 40), d.pick(1, 7, 33), d.pick(1, 8, 32), d.pick(1, 8, 33)
    stack = tuple(d.int(1, 3) for _ in range(d.int(0, 2)))
    stacks = [tuple(d.pick(size, size, 1) for size in stack[d.pick(0, 0, len(stack)):]) for _ in range(3)]
    stacks[d.int(0, 1)] = stack
    query, key, value = (lying(d, (*s, *shape)) for s, shape in zip(stacks, ((queries, e), (keys, e), (keys, v))))
    mask = lying(d, (*d.pick((), stack), d.pick(1, queries), keys))
    mask = d.pick(None, mask, mask > 0, np.where(mask > 0, mask, -np.inf).astype(d.dtype))
    dropout = d.pick(None, 2 * (d.rng.random((*stack, queries, keys)) < 0.5).astype(d.dtype))
    scale = d.pick(1.0, 0.3)
    results, g, need_scores = [], None, d.pick(False, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cuda.attention.__globals__, "PIECE", d.pick(1 << 20, 2 * keys))  # scores at a time
        for room in (cuda, reference):
            y, weights = room.attention(query, key, value, mask, dropout, scale)
            g = d.array(*y.shape) if g is None else g
            grads = room.attention_backward(g, query, key, value, y, weights, mask, dropout, scale, need_scores)
            results.append((y, *grads))
    assert_close(*results)


def test_attention_is_three_launches_and_five():
    """The heads are read where they lie, and what comes out lies as they do."""
    rng, launches = np.random.default_rng(0), []

    class Counted(RawModule):
        def get_function(self, name):
            function = super().get_function(name)
            return lambda *args, **options: launches.append(name) or function(*args, **options)

    query, key, value, g = (rng.standard_normal((2, 40, 3, 32)).transpose(0, 2, 1, 3) for _ in range(4))
    with in_the_place_of_cupy(types.SimpleNamespace(RawModule=Counted, empty=empty)):
        y, weights = cuda.attention(query, key, value, None, None, 0.5)
        assert len(launches) == 3
        gradients = cuda.attention_backward(g, query, key, value, y, weights, None, None, 0.5)
        assert len(launches) == 3 + 5
    assert_close((y, weights), reference.attention(query, key, value, None, None, 0.5))
    assert_close(gradients, reference.attention_backward(g, query, key, value, y, weights, None, None, 0.5))
    assert weights.flags.c_contiguous
    assert all(a.transpose(0, 2, 1, 3).flags.c_contiguous for a in (y, *gradients[:3]))


def test_large_products_are_cublas_unless_captured(monkeypatch):
    capturing, asked = False, []
    stream = types.SimpleNamespace(is_capturing=lambda: capturing)
    fake = types.SimpleNamespace(**vars(FAKE_CUPY), cuda=types.SimpleNamespace(get_current_stream=lambda: stream))
    monkeypatch.setattr(device, "_cupy", fake)
    monkeypatch.setitem(cuda.matmul.__globals__, "LARGE", 1000)
    monkeypatch.setitem(cuda.matmul.__globals__, "_cublas", lambda a, b: asked.append(a.shape) or a @ b)
    rng = np.random.default_rng(0)
    a, b, bias, stack = (rng.standard_normal(shape) for shape in ((10, 10), (10, 10), (10,), (2, 9, 5)))
    for capturing in (False, True):
        assert_close(product(a, b, bias, 0.5), 0.5 * a @ b + bias)
        assert_close(cuda.matmul(a[:9], b), a[:9] @ b)
        assert_close(cuda.matmul(stack, stack.swapaxes(1, 2)), stack @ stack.swapaxes(1, 2))
        assert_close(cuda.linear_backward(a, b, b), reference.linear_backward(a, b, b))
    assert asked == [(10, 10)] * 3


@pytest.mark.parametrize("transposed", range(4))
def test_tf32_products(transposed, monkeypatch):
    monkeypatch.setattr(device, "_tf32", True)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 3, 70, 70)).astype("f4") for _ in range(2))
    a, b = a.swapaxes(-1, -2) if transposed % 2 else a, b.swapaxes(-1, -2) if transposed // 2 else b
    a[0, 0, 0, :2], b[0, 0, 1, :2] = (np.inf, 1), (1, np.uint32(0x7FFFFFFF).view("f4"))  # a GPU's NaN
    y = cuda.matmul(a, b)
    expected = to_tf32(a) @ to_tf32(b)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.nanmax(np.abs(expected[1])))
    assert np.isnan(y[0, 0, :, 1]).all() and np.isposinf(y[0, 0, 0, 0])
    assert np.abs(y[1] - a[1] @ b[1]).max() > 1e-5


# ---- optimisers -----------------------------------------------------------------------------------------


def on_gpu(x):
    """Arrays of the stand-in over these arrays' memory."""
    if isinstance(x, list):
        return [*map(on_gpu, x)]
    return standin_cupy.ndarray(_array=x) if isinstance(x, np.ndarray) else x


def copied(x):
    return [*map(copied, x)] if isinstance(x, list) else x.copy() if isinstance(x, np.ndarray) else x


OPTIMISERS = {  # name: its lists of arrays; which of them is new in each step; numbers behind lr
    "sgd": ("wgv", 1, [(0.9, 0.0), (0.0, 0.1)]),
    "adam": ("wgmvk", 1, [(0.8, 0.95, 1e-8, decay, decoupled) for decay in (0.0, 0.1) for decoupled in (False, True)]),
    "ema": ("sw", 1, [(0.9,), (0.1,)]), "clip_grad_norm": ("g", 0, [(0.5,), (1e4,)])}
each_optimiser = pytest.mark.parametrize("name, numbers", [(name, numbers) for name in OPTIMISERS
                                                           for numbers in OPTIMISERS[name][2]])


def check_steps(name, numbers, arrays, steps, tolerance=TOLERANCE):
    """Three steps on the stand-in against three of the plain kernels: all arrays, arrays(letter) for each list."""
    letters, new, _ = OPTIMISERS[name]
    lists = [steps if letter == "k" else arrays(letter) for letter in letters]
    mine = [*lists, *{"ema": steps[:1], "clip_grad_norm": []}.get(name, [np.array(0.05)]), *numbers]
    plain = copied(mine)
    with in_the_place_of_cupy(standin_cupy.module), standin_cupy.forbid_waiting():
        for _ in range(3):
            result, expected = getattr(cuda, name)(*on_gpu(mine)), getattr(reference, name)(*plain)
            if name == "clip_grad_norm":
                assert result.shape == () and result.dtype == mine[0][0].dtype
                np.testing.assert_allclose(result._a, expected, rtol=1e-6)
            for a, b in zip(mine, plain):
                for a, b in zip(a, b) if isinstance(a, list) else [(a, b)] if isinstance(a, np.ndarray) else []:
                    assert_close(a, b, tolerance=tolerance)
            mine[new] = arrays(letters[new])
            plain[new] = copied(mine[new])


@SOME
@given(st.data())
@each_optimiser
def test_optimisers(name, numbers, data):
    d = Draw(data)
    shapes = (), (0,), (7,), (300,), (5, 0, 2), (40, 60), (4, 3, 3, 3), (6, 1, 2, 2)
    shapes = [d.pick(*shapes) for _ in range(d.int(1, 4))]
    layout = d.pick(None, "contiguous", "channels last", "reversed axes")

    def arrays(letter):
        values = [np.asarray(d.rng.standard_normal(shape), d.dtype) for shape in shapes]
        values = [np.square(a, out=a) for a in values] if letter == "v" else values
        layouts = LAYOUTS if letter == "g" and name != "clip_grad_norm" else LAYOUTS[:-1]
        return [laid_out(a, layout or d.pick(*layouts)) for a in values]

    check_steps(name, numbers, arrays, [np.array(d.int(0, 9)) for _ in shapes])


@each_optimiser
def test_optimisers_of_more_arrays_than_a_table_holds(name, numbers):
    """Of both dtypes, one of them shared by several blocks."""
    rng = np.random.default_rng(0)
    sizes = [2500, *rng.integers(0, 6, 259)]

    def arrays(letter):
        return [abs(rng.standard_normal(n)).astype("f8" if i in (0, 3) else "f4") for i, n in enumerate(sizes)]

    tolerance = {"f4": 2e-5, "f8": 1e-7}  # the plain norm of float32 is a float32
    check_steps(name, numbers, arrays, [np.array(i) for i in range(260)], tolerance)


def test_optimisers_leave_gaps_as_they_are():
    memory = np.arange(12.0)
    with in_the_place_of_cupy(standin_cupy.module):
        cuda.clip_grad_norm([on_gpu(memory)[::2].reshape(3, 2)], 1.0)
    np.testing.assert_array_equal(memory[1::2], np.arange(1.0, 12, 2))
    np.testing.assert_allclose(np.linalg.norm(memory[::2]), 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_clipping_what_is_not_finite(value):
    grads = [np.array([1.0, 2.0]), np.array([value, 3.0])]
    plain = copied(grads)
    with in_the_place_of_cupy(standin_cupy.module):
        norm = cuda.clip_grad_norm(on_gpu(grads), 1.0)
    np.testing.assert_equal([norm._a.item(), *grads], [reference.clip_grad_norm(plain, 1.0), *plain])
    assert np.isnan(grads[1][0]) and (np.isnan(grads[0]).all() if np.isnan(value) else (grads[0] == 0).all())


class Step:
    """An optimiser's step on the stand-in, of as many parameters as the UNet for MNIST has."""

    def __init__(self):
        rng, xp = np.random.default_rng(0), standin_cupy.module
        self.params, self.grads, self.ms, self.averages = (
            [xp.asarray(rng.standard_normal((3, 3, 3, 2))).transpose(0, 3, 1, 2) if i % 5 == 0 else
             xp.asarray(rng.standard_normal(1 + i % 50)) for i in range(103)] for _ in range(4))
        self.vs = [xp.zeros_like(a) for a in self.params]
        self.steps, self.updates = [xp.zeros((), np.int64) for _ in range(103)], xp.zeros((), np.int64)
        self.lr = xp.asarray(np.array(0.01))

    def __call__(self):
        norm = cuda.clip_grad_norm(self.grads, 1.0)
        cuda.adam(self.params, self.grads, self.ms, self.vs, self.steps, self.lr, 0.9, 0.99, 1e-8, 0.1, True)
        cuda.ema(self.averages, self.params, self.updates, 0.9)
        self.grads[7] += norm
        return norm

    def values(self):
        lists = self.params, self.grads, self.ms, self.vs, self.averages
        return np.concatenate([a._a.ravel() for arrays in lists for a in arrays])


def test_optimisers_are_few_launches_and_can_be_captured():
    xp = standin_cupy.module
    with in_the_place_of_cupy(xp), standin_cupy.forbid_waiting():
        eager, step, expected = Step(), Step(), []
        copies = standin_cupy.counts["copies"]
        for _ in range(4):
            launches = standin_cupy.counts["launches"]
            eager()
            assert standin_cupy.counts["launches"] == launches + 3 + 3 + 1  # and CuPy counts the updates
            expected.append(eager.values())
        before, pool, stream = step.values(), xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
        with stream, xp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            step()
            graph = stream.end_capture()
        assert "ascontiguousarray" not in [function.__name__ for _, function, _, _ in graph.calls]  # nothing is copied
        np.testing.assert_array_equal(step.values(), before)
        for values in expected:
            graph.launch()
            np.testing.assert_array_equal(step.values(), values)
        assert standin_cupy.counts["copies"] == copies
        step.params[50] = None
        gc.collect()
        with pytest.raises(RuntimeError, match="freed"):
            graph.launch()


def test_the_stand_in_knows_whose_memory_tables_point_to():
    xp = standin_cupy.module
    with in_the_place_of_cupy(xp):
        average, w = xp.asarray(np.ones(3)), xp.asarray(np.zeros(3))
        gone = types.SimpleNamespace(data=average.data, size=3, dtype=average.dtype, flags=average.flags)
        del average
        with pytest.raises(RuntimeError, match="freed"):
            cuda.ema([gone], [w], xp.zeros((), np.int64), 0.9)
