"""The CUDA kernels, run on the CPU (see cuda_on_cpu), against the NumPy kernels.

Their Python side runs too, with NumPy arrays in the place of CuPy's. ``empty`` gives NaN, so that an element that a
kernel leaves out shows.
"""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuda_on_cpu
from npdiffusion import backend, optim
from npdiffusion.diffusion import DDIMScheduler, DDPMScheduler
from npdiffusion.kernels import cupy as cuda
from npdiffusion.kernels import numpy as reference
from npdiffusion.kernels.cupy import build
from npdiffusion.nn import Parameter
from strategies import LAYOUTS, laid_out

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
    ascontiguousarray=np.ascontiguousarray, concatenate=concatenate, broadcast_to=np.broadcast_to)


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu():
    caches = build.build, build.kernel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_cupy", FAKE_CUPY)
        for c in caches:
            c.cache_clear()
        yield
    for c in caches:
        c.cache_clear()


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
        return laid_out(a.astype(self.dtype), self.pick("channels last", *LAYOUTS[:-1]))


def assert_close(actual, expected, images=()):
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
        np.testing.assert_allclose(a, e, rtol=0, atol=TOLERANCE[e.dtype.str[1:]] * scale)


# ---- the harness itself ---------------------------------------------------------------------------------

PITFALLS = """
extern "C" __global__ void fill(int *x, int n, int value) { if (threadIdx.x < n) x[threadIdx.x] = value; }
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
    assert_close(cuda.channel_sums(x), reference.channel_sums(x))
    other = d.array(n, d.int(1, 4), h, w)
    assert_close(cuda.cat([x, other], 1), reference.cat([x, other], 1), images=[0])
    assert_close(cuda.add(x, x), x + x)
    parts = d.array(d.int(1, 20), *d.pair(1, 9))
    assert_close(cuda.elementwise.sum_parts(np.ascontiguousarray(parts)), parts.sum(0))


def test_channel_sums_over_many_blocks():
    x = np.random.default_rng(0).standard_normal((5, 7, 40, 41)).astype("f4")
    assert_close(cuda.channel_sums(x), x.sum((0, 2, 3)))


@SOME
@given(st.data())
def test_bias_activation(data):
    d = Draw(data)
    activation, c = d.pick(None, "relu", "silu"), d.int(1, 5)
    x = d.array(2, c, 3, 4) if d.pick(True, False) else d.array(d.int(1, 300), c)
    bias = d.pick(None, d.array(c))
    f = {None: lambda z: z, "relu": lambda z: np.maximum(z, 0), "silu": lambda z: z / (1 + np.exp(-z))}[activation]
    z = x if bias is None else x + (bias if x.ndim == 2 else bias[:, None, None])
    y = cuda.bias_activation(x, bias, activation)
    assert_close(y, f(z), images=[0] if x.ndim == 4 else [])
    assert_close(reference.bias_activation(x, bias, activation), y)
    g, step = d.array(*x.shape), 1e-6
    z = z.astype("f8")
    slope = (f(z + step) - f(z - step)) / (2 * step)
    dx = cuda.bias_activation_backward(g, x, bias, activation)
    np.testing.assert_allclose(dx, g * slope, rtol=0, atol=2e-5 if d.dtype == "f4" else 1e-8)
    assert_close(reference.bias_activation_backward(g, x, bias, activation), dx)


@SOME
@given(st.data())
def test_squared_error(data):
    d = Draw(data)
    shape = d.pick((), (1,), (5000,), (2, 3, 4, 5), (3, 70, 60))
    x, y, g, scale = *(np.asarray(d.array(*s)) for s in (shape, shape, ())), d.pick(1.0, 0.01)
    assert_close(cuda.squared_error(x, y, scale), reference.squared_error(x, y, scale))
    expected = np.asarray(reference.squared_error_backward(g, x, y, scale))
    assert_close(cuda.squared_error_backward(g, x, y, scale), expected, images=[0] if len(shape) == 4 else [])


@SOME
@given(st.data())
def test_timestep_embedding(data):
    d = Draw(data)
    n, dim = d.int(1, 5), 2 * d.int(1, 40)
    t = d.rng.integers(0, 1024, n)
    t = d.pick(t, t.astype("i4"), np.repeat(t, 2)[::2], np.broadcast_to(t[0], n))
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
    args = g, x, *expected[1:], groups, weight, bias, silu, scale_shift, d.pick(None, d.array(*x.shape))
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
    x, scale = d.array(*shape, scale=3.0), d.pick(1.0, 0.3, -2.0)
    y = reference.softmax(x, axis, scale)
    assert_close(cuda.softmax(x, axis, scale), y)
    g = d.array(*shape)
    expected = reference.softmax_backward(g, y, axis, scale)
    assert_close(cuda.softmax_backward(g, y, axis, scale), expected)


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
        """x, weight, bias and (stride, padding, dilation, groups)."""
        if self.pick(True, False, False):  # large
            kernel, stride, dilation, groups = self.pick((3, 3), (1, 1)), self.pair(1, 2), (1, 1), self.pick(1, 2)
            c, o, n, least = self.pick(4, 17, 40), self.pick(8, 33, 70), self.pick(1, 3), self.pick(9, 13)
        else:
            kernel, stride, dilation, groups = self.pair(1, 4), self.pair(1, 3), self.pair(1, 2), self.int(1, 3)
            c, o, n, least = self.int(1, 5), self.int(1, 5), self.int(1, 3), 1
        size = [max(least, (k - 1) * d + 1) + self.int(0, 3) for k, d in zip(kernel, dilation)]
        padding = tuple((self.int(0, k), self.int(0, k)) for k in kernel)
        x, weight = self.array(n, c * groups, *size), self.array(o * groups, c, *kernel)
        bias = self.pick(None, np.ascontiguousarray(self.array(o * groups)))
        return x, weight, bias, (stride, padding, dilation, groups)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_conv2d(data):
    d = ConvDraw(data)
    x, weight, bias, settings = d.conv()
    y = reference.conv2d(x, weight, bias, *settings)
    assert_close(cuda.conv2d(x, weight, bias, *settings), y, images=[0])
    onto = d.array(*y.shape)
    assert_close(cuda.conv2d(x, weight, bias, *settings, onto), y + onto, images=[0])
    g, needs = d.array(*y.shape), d.pick((True, True), (True, False), (False, True), (False, False, True))
    expected = reference.conv2d_backward(g, x, weight, *settings, *needs)
    assert_close(cuda.conv2d_backward(g, x, weight, *settings, *needs), expected, images=[0, 1])


@SOME
@given(st.data())
def test_conv_transpose2d(data):
    d = ConvDraw(data)
    _, weight, _, (stride, _, dilation, groups) = d.conv()
    x = d.array(d.int(1, 2), len(weight), *d.pair(1, 5))
    padding = tuple((p, p) for p in (min(d.int(0, 2), (e * (k - 1)) // 2) for e, k in zip(dilation, weight.shape[2:])))
    extra = tuple(d.int(0, max(s, e) - 1) for s, e in zip(stride, dilation))
    settings = stride, padding, extra, dilation, groups
    bias = d.pick(None, d.array(weight.shape[1] * groups))
    y = reference.conv_transpose2d(x, weight, bias, *settings)
    assert_close(cuda.conv_transpose2d(x, weight, bias, *settings), y, images=[0])
    g = d.array(*y.shape)
    expected = reference.conv_transpose2d_backward(g, x, weight, *settings)
    assert_close(cuda.conv_transpose2d_backward(g, x, weight, *settings), expected, images=[0, 1])


def test_convolution_of_arrays_that_begin_anywhere():
    """Fours are read at once only where they are aligned: elsewhere a GPU refuses, and so does the CPU."""
    rng = np.random.default_rng(0)
    x, weight, g = (rng.standard_normal(1 + n * k * k * 8)[1:].reshape(n, k, k, 8).transpose(0, 3, 1, 2)
                    for n, k in ((2, 5), (8, 3), (2, 5)))
    y = reference.conv2d(x, weight, None, *SAME)
    assert_close(cuda.conv2d(x, weight, None, *SAME), y)
    assert_close(cuda.conv2d_backward(g, x, weight, *SAME), reference.conv2d_backward(g, x, weight, *SAME))


SAME = (1, 1), ((1, 1), (1, 1)), (1, 1), 1  # 3 x 3, padding 1


@pytest.mark.parametrize("channels", [(9, 16), (40, 70)], ids=["narrow", "wide"])
def test_tf32_rounds_the_factors_only(channels, monkeypatch):
    monkeypatch.setattr(backend, "_tf32", True)
    rng, (c, o) = np.random.default_rng(0), channels
    x, weight, g = (rng.standard_normal(shape).astype("f4") for shape in ((2, c, 9, 9), (o, c, 3, 3), (2, o, 9, 9)))

    def run(kernels, x, weight, g):
        return kernels.conv2d(x, weight, None, *SAME), *kernels.conv2d_backward(g, x, weight, *SAME)[:2]

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
    monkeypatch.setattr(backend, "_tf32", kind == "tf32")
    rng, (c, o), dtype = np.random.default_rng(0), channels, kind.replace("tf32", "f4")
    tolerance = 5 * TOLERANCE[dtype]

    def images(n, c, *size):
        a = rng.standard_normal((n, *size, c)).astype(dtype).transpose(0, 3, 1, 2)
        return a if kind != "tf32" else to_tf32(a).astype("f4")

    def same(actual, expected):
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max())

    x, weight = images(3, c, 8, 12), images(o, c, 3, 3)
    y = reference.conv2d(x, weight, None, *SAME)
    same([cuda.conv2d(x, weight, None, *SAME)], [y])
    g = images(*y.shape)
    same(cuda.conv2d_backward(g, x, weight, *SAME), reference.conv2d_backward(g, x, weight, *SAME))
    up, weight = ((2, 2), ((0, 0), (0, 0)), (0, 0), (1, 1), 1), images(c, o, 2, 2)
    y = reference.conv_transpose2d(x, weight, None, *up)
    same([cuda.conv_transpose2d(x, weight, None, *up)], [y])
    g = images(*y.shape)
    same(cuda.conv_transpose2d_backward(g, x, weight, *up), reference.conv_transpose2d_backward(g, x, weight, *up))


def test_convolutions_give_the_same_bits_twice():
    rng = np.random.default_rng(0)
    x, weight, g = (rng.standard_normal(shape).astype("f4") for shape in ((3, 5, 20, 20), (7, 5, 3, 3), (3, 7, 20, 20)))
    twice = [cuda.conv2d_backward(g, x, weight, *SAME) for _ in range(2)]
    for a, b in zip(*twice):
        np.testing.assert_array_equal(a, b)


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
    bias = d.pick(None, d.rng.standard_normal(2 * m).astype(d.dtype)[::2])
    y = cuda.matmul(a, b, bias)
    assert_close(y, reference.matmul(a, b, bias))
    assert a.ndim > 2 or b.ndim > 2 or y.flags.c_contiguous


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3,), (3, 5)), ((4, 3), (3,)), ((3,), (2, 3, 5)), ((2, 4, 3), (3,))])
def test_products_of_vectors(shapes):
    a, b = (np.random.default_rng(0).standard_normal(shape) for shape in shapes)
    assert_close(cuda.matmul(a, b), np.asarray(a @ b))


@SOME
@given(st.data())
def test_linear_backward(data):
    d = Draw(data)
    n, out, k = d.pick(0, 1, 20, 300, 1100), d.pick(1, 4, 33, 70), d.pick(0, 1, 4, 33, 140)
    args = [d.array(*shape) for shape in ((n, out), (n, k), (out, k))]
    args += d.pick((), (False,), (True, d.array(n, k)))
    assert_close(cuda.linear_backward(*args), reference.linear_backward(*args))
    assert_close(cuda.matmul(args[0].T, args[1]), args[0].T @ args[1])


def test_attention_copies_nothing(monkeypatch):
    """The heads' products read them where they lie, and their results lie as the heads do."""
    rng, fake = np.random.default_rng(0), types.SimpleNamespace(**vars(FAKE_CUPY))
    query, key, value, g = (rng.standard_normal((2, 40, 3, 32)).transpose(0, 2, 1, 3) for _ in range(4))
    del fake.ascontiguousarray
    monkeypatch.setattr(backend, "_cupy", fake)

    def product(a, b):
        y = cuda.matmul(a, b)
        assert_close(y, a @ b)
        return y

    weights = product(query, key.swapaxes(-1, -2))
    assert weights.flags.c_contiguous and product(g, value.swapaxes(-1, -2)).flags.c_contiguous
    for a, b in ((weights, value), (weights.swapaxes(-1, -2), g), (weights, key)):
        assert product(a, b).transpose(0, 2, 1, 3).flags.c_contiguous
    assert product(query.swapaxes(-1, -2), weights).transpose(0, 3, 1, 2).flags.c_contiguous


def test_large_products_are_cublas_unless_captured(monkeypatch):
    capturing, asked = False, []
    stream = types.SimpleNamespace(is_capturing=lambda: capturing)
    fake = types.SimpleNamespace(**vars(FAKE_CUPY), cuda=types.SimpleNamespace(get_current_stream=lambda: stream),
                                 matmul=lambda a, b: asked.append(a.shape) or a @ b)
    monkeypatch.setattr(backend, "_cupy", fake)
    monkeypatch.setitem(cuda.matmul.__globals__, "LARGE", 1000)
    monkeypatch.setitem(cuda.matmul.__globals__, "_set_tf32", lambda allowed: None)
    rng = np.random.default_rng(0)
    a, b, bias, stack = (rng.standard_normal(shape) for shape in ((10, 10), (10, 10), (10,), (2, 9, 5)))
    for capturing in (False, True):
        assert_close(cuda.matmul(a, b, bias), a @ b + bias)
        assert_close(cuda.matmul(a[:9], b), a[:9] @ b)
        assert_close(cuda.matmul(stack, stack.swapaxes(1, 2)), stack @ stack.swapaxes(1, 2))
        assert_close(cuda.linear_backward(a, b, b), reference.linear_backward(a, b, b))
    assert asked == [(10, 10)] * 3


@pytest.mark.parametrize("transposed", range(4))
def test_tf32_products(transposed, monkeypatch):
    monkeypatch.setattr(backend, "_tf32", True)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 3, 70, 70)).astype("f4") for _ in range(2))
    a, b = a.swapaxes(-1, -2) if transposed % 2 else a, b.swapaxes(-1, -2) if transposed // 2 else b
    a[0, 0, 0, :2], b[0, 0, 1, :2] = (np.inf, 1), (1, np.uint32(0x7FFFFFFF).view("f4"))  # a GPU's NaN
    y = cuda.matmul(a, b)
    expected = to_tf32(a) @ to_tf32(b)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.nanmax(np.abs(expected[1])))
    assert np.isnan(y[0, 0, :, 1]).all() and np.isposinf(y[0, 0, 0, 0])
    assert np.abs(y[1] - a[1] @ b[1]).max() > 1e-5


# ---- optimiser and sampler ------------------------------------------------------------------------------


@SOME
@given(st.data())
def test_adam_and_ema(data):
    d = Draw(data)
    size, decoupled, decay, steps = d.pick(1, 255, 700), d.pick(True, False), d.pick(0.0, 0.1), d.int(1, 4)
    kind = optim.AdamW if decoupled else optim.Adam
    w = np.ascontiguousarray(d.array(size))
    parameter = Parameter(w.copy())
    expected = kind([parameter], lr=0.05, betas=(0.8, 0.95), weight_decay=decay)
    m, v, average, expected_average = np.zeros_like(w), np.zeros_like(w), w.copy(), w.copy()
    on_device = d.pick(True, False)
    for step in range(1, steps + 1):
        g = np.ascontiguousarray(d.array(size))
        parameter.grad = g.copy()
        expected.step()
        changing, factor = [0.05, 1 - 0.8**step, 1 - 0.95**step], None
        if on_device:
            changing, factor, g = np.array(changing), np.array([0.5], w.dtype), 2 * g
        cuda.adam(w, g, m, v, changing, 0.8, 0.95, 1e-8, decay, decoupled, factor)
        assert_close(w, parameter.data)
        expected_average += (1 - 0.9) * (w - expected_average)
        cuda.ema(average, w, np.array([0.9]) if on_device else 0.9)
        assert_close(average, expected_average)


@SOME
@given(st.data())
def test_clip_norm(data):
    d = Draw(data)
    g = np.ascontiguousarray(d.array(d.pick(1, 300, 9000)))
    norm, limit = np.linalg.norm(g.astype("f8")), d.pick(0.5, 1e4)
    clipped = g.copy()
    result = cuda.clip_norm(clipped, limit)
    assert_close(result[:1], np.array([norm], g.dtype))
    assert_close(clipped, (g * min(1, limit / (norm + 1e-6))).astype(g.dtype))
    np.testing.assert_array_equal(result, cuda.clip_norm(g, limit, scale=False))


def test_gather():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n).astype("f4") for n in rng.integers(0, 600, 130)]
    out = empty(sum(a.size for a in arrays), "f4")
    places = [types.SimpleNamespace(data=types.SimpleNamespace(ptr=a.ctypes.data), size=a.size) for a in arrays]
    cuda.gather(places, out)
    np.testing.assert_array_equal(out, np.concatenate(arrays))


@SOME
@given(st.data())
def test_sampler_step(data):
    d = Draw(data)
    kind, clip = d.pick("epsilon", "sample", "v_prediction"), d.pick(True, False)
    x, z = d.array(2, 3, 4, 5), d.array(2, 3, 4, 5)
    guidance = d.pick(None, 0.0, 2.5)
    output = d.array(2 if guidance is None else 4, 3, 4, 5)
    mixed = output if guidance is None else output[2:] + guidance * (output[:2] - output[2:])
    ddim = d.pick(True, False)
    options = {"prediction_type": kind, "clip_sample": clip}
    scheduler = DDIMScheduler(eta=0.5, **options) if ddim else DDPMScheduler(**options)
    scheduler.set_timesteps(20)
    t = int(scheduler.timesteps[7])
    alpha_bar, before = (scheduler.alphas_cumprod[i] for i in (t, scheduler.previous_timestep(t)))
    beta, shrink = 1 - alpha_bar / before, (1 - before) / (1 - alpha_bar)
    limit, guided = 1.0 if clip else np.inf, 1.0 if guidance is None else guidance
    if ddim:
        variance, clipped = 0.25 * shrink * beta, d.pick(True, False)
        expected = scheduler.step(mixed, t, x, noise=z, use_clipped_model_output=clipped)
        numbers = cuda.coefficients(kind, alpha_bar, np.sqrt(before), 0, np.sqrt(1 - before - variance),
                                    np.sqrt(variance), limit, clipped, guided)
    else:
        expected = scheduler.step(mixed, t, x, noise=z)
        numbers = cuda.coefficients(kind, alpha_bar, np.sqrt(before) * beta / (1 - alpha_bar),
                                    np.sqrt(1 - beta) * shrink, 0, np.sqrt(shrink * beta), limit, guidance=guided)
    actual = cuda.sampler_step(x, output, z, numbers)
    assert_close(actual, tuple(expected), images=[0, 1])
