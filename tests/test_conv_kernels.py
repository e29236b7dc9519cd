"""Convolution kernels against plain loops over output pixels, in float64."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiffusion import threads
from npdiffusion.kernels.numpy import conv, winograd
from npdiffusion.kernels.numpy import conv2d, conv2d_backward, conv_transpose2d, conv_transpose2d_backward

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of the largest element
SAME = ((1, 1), (1, 1))


# ---- the slow and obvious oracle ----------------------------------------------------------------------


def conv_loops(x, weight, make_g, stride, padding, dilation, groups):
    """y = conv2d(x, weight); for g = make_g(y's shape) the gradients dx, dweight of <g, y>; and g."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    (o, c, kh, kw), (sh, sw), (dh, dw) = weight.shape, stride, dilation
    (top, bottom), (left, right) = padding
    xpad = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    h = (xpad.shape[2] - dh * (kh - 1) - 1) // sh + 1
    w = (xpad.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), o, h, w))
    g = make_g(y.shape)
    dxpad, dweight = np.zeros_like(xpad), np.zeros_like(weight)
    for k in range(o):
        first = k // (o // groups) * c  # first input channel of the group of output channel k
        for p in range(h):
            for q in range(w):
                rows = slice(p * sh, p * sh + dh * (kh - 1) + 1, dh)
                columns = slice(q * sw, q * sw + dw * (kw - 1) + 1, dw)
                for n in range(len(x)):
                    window = n, slice(first, first + c), rows, columns
                    y[n, k, p, q] = (xpad[window] * weight[k]).sum()
                    dxpad[window] += g[n, k, p, q] * weight[k]
                    dweight[k] += g[n, k, p, q] * xpad[window]
    dx = dxpad[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return y, dx, dweight, g


def conv_transpose_loops(x, weight, stride, padding, output_padding, dilation, groups):
    """Every pixel of x adds its multiple of the taps to y; then padding is cut off."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    (count, channels, h, w), (_, o, kh, kw) = x.shape, weight.shape
    (sh, sw), (dh, dw), (ph, pw) = stride, dilation, (padding[0][0], padding[1][0])
    full = [(h - 1) * sh + dh * (kh - 1) + 1, (w - 1) * sw + dw * (kw - 1) + 1]
    full = [n + extra for n, extra in zip(full, output_padding)]
    y = np.zeros((count, o * groups, *full))
    for c in range(channels):
        first = c // (channels // groups) * o
        for p in range(h):
            for q in range(w):
                for i in range(kh):
                    for j in range(kw):
                        for n in range(count):
                            taps = y[n, first : first + o, p * sh + i * dh, q * sw + j * dw]
                            taps += x[n, c, p, q] * weight[c, :, i, j]
    return y[:, :, ph : full[0] - ph, pw : full[1] - pw]


# ---- helpers --------------------------------------------------------------------------------------------


def array(rng, shape, dtype, layout="nchw"):
    if layout == "nhwc":
        n, c, h, w = shape
        return rng.standard_normal((n, h, w, c)).astype(dtype).transpose(0, 3, 1, 2)
    if layout == "strided":  # every second element of a larger array, rows backwards
        return rng.standard_normal([2 * k for k in shape]).astype(dtype)[::2, ::2, ::2, ::2][:, :, ::-1]
    return rng.standard_normal(shape).astype(dtype)


def assert_close(actual, expected, dtype, channels_last=True):
    assert actual.shape == expected.shape and actual.dtype == dtype
    layout = actual.transpose(0, 2, 3, 1) if channels_last else actual
    assert layout.flags.c_contiguous
    tolerance = TOLERANCE[dtype] * max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@contextmanager
def machine(num_threads, chunk_bytes):
    """Run with so many threads, and with chunks so small that they cut images into rows."""
    before = threads.get_num_threads()
    threads.set_num_threads(num_threads)
    try:
        with mock.patch.object(conv, "_CHUNK_BYTES", chunk_bytes):
            with mock.patch.object(winograd, "_CHUNK_BYTES", chunk_bytes):
                yield
    finally:
        threads.set_num_threads(before)


def front(padding):
    """(top, left) of ((top, bottom), (left, right))."""
    return tuple(before for before, _ in padding)


def check_gradients(backward, g, x, weight, geometry, dx, dweight):
    """All gradients at once, and the larger two alone."""
    dtype = x.dtype.name
    results = backward(g, x, weight, *geometry)
    assert_close(results[0], dx, dtype)
    assert_close(results[1], dweight, dtype)
    assert_close(results[2], g.sum((0, 2, 3)), dtype, channels_last=False)
    only_dx, *none = backward(g, x, weight, *geometry, needs=(True, False, False))
    assert none == [None, None]
    assert_close(only_dx, dx, dtype)
    none, only_dweight, also_none = backward(g, x, weight, *geometry, needs=(False, True, False))
    assert none is None and also_none is None
    assert_close(only_dweight, dweight, dtype)


def check_conv(x, weight, bias, rng, stride, padding, dilation, groups, layout="nhwc"):
    dtype = x.dtype.name
    y, dx, dweight, g = conv_loops(
        x, weight, lambda shape: array(rng, shape, dtype, layout), stride, padding, dilation, groups
    )
    if bias is not None:
        y += bias[:, None, None]
    inputs = [a for a in (x, weight, bias, g) if a is not None]
    before = [a.copy() for a in inputs]
    geometry = stride, front(padding), dilation, groups
    assert_close(conv2d(x, weight, bias, y.shape[2:], *geometry), y, dtype)
    check_gradients(conv2d_backward, g, x, weight, geometry, dx, dweight)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, before))


def check_conv_transpose(
    x, weight, bias, rng, stride, padding, output_padding, dilation, groups, layout="nhwc"
):
    dtype = x.dtype.name
    y = conv_transpose_loops(x, weight, stride, padding, output_padding, dilation, groups)
    g = array(rng, y.shape, dtype, layout)
    if bias is not None:
        y += bias[:, None, None]
    inputs = [a for a in (x, weight, bias, g) if a is not None]
    before = [a.copy() for a in inputs]
    geometry = stride, front(padding), dilation, groups
    assert_close(conv_transpose2d(x, weight, bias, y.shape[2:], *geometry), y, dtype)

    # <g, conv_transpose(x, weight)> = <conv(g, weight), x>; rows of g past the last window get no x.
    windows = [
        ((n - 1) * s + d * (k - 1) + 1 - 2 * p[0])
        for n, s, d, k, p in zip(x.shape[2:], stride, dilation, weight.shape[2:], padding)
    ]
    far = [(p[0], p[0] + w - n) for p, w, n in zip(padding, windows, g.shape[2:])]
    cut = g[:, :, : g.shape[2] + min(0, far[0][1]), : g.shape[3] + min(0, far[1][1])]
    far = [(near, max(0, f)) for near, f in far]
    dx, _, dweight, _ = conv_loops(cut, weight, lambda shape: x, stride, far, dilation, groups)
    check_gradients(conv_transpose2d_backward, g, x, weight, geometry, dx, dweight)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, before))


# ---- hypothesis draws the structure, a seeded generator the values ------------------------------------

pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
structure = dict(
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=pairs(1, 4),
    size=pairs(1, 7),
    kernel=pairs(1, 3),
    stride=st.one_of(st.just((1, 1)), pairs(1, 3)),
    dilation=st.one_of(st.just((1, 1)), pairs(1, 2)),
    bias=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    layouts=st.tuples(*[st.sampled_from(["nchw", "nhwc", "strided"])] * 2),
    num_threads=st.integers(1, 3),
    chunk_bytes=st.sampled_from([1, 500, 1 << 20]),
    seed=st.integers(0, 2**32 - 1),
)


@settings(max_examples=200, deadline=None)
@given(padding=st.tuples(pairs(0, 3), pairs(0, 3)), **structure)
def test_conv2d_and_its_gradients(
    batch, groups, channels, size, kernel, stride, padding, dilation, bias, dtype, layouts, num_threads,
    chunk_bytes, seed,
):  # fmt: skip
    rng, (c, o) = np.random.default_rng(seed), channels
    size = [max(n, d * (k - 1) + 1 - sum(p)) for n, k, d, p in zip(size, kernel, dilation, padding)]
    x = array(rng, (batch, groups * c, *size), dtype, layouts[0])
    weight = array(rng, (groups * o, c, *kernel), dtype, layouts[1])
    bias = rng.standard_normal(groups * o).astype(dtype) if bias else None
    with machine(num_threads, chunk_bytes):
        check_conv(x, weight, bias, rng, stride, padding, dilation, groups, layouts[1])


@settings(max_examples=200, deadline=None)
@given(padding=pairs(0, 2), output_padding=pairs(0, 2), **structure)
def test_conv_transpose2d_and_its_gradients(
    batch, groups, channels, size, kernel, stride, padding, output_padding, dilation, bias, dtype, layouts,
    num_threads, chunk_bytes, seed,
):  # fmt: skip
    rng, (c, o) = np.random.default_rng(seed), channels
    output_padding = [min(extra, max(s, d) - 1) for extra, s, d in zip(output_padding, stride, dilation)]
    spans = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel)]
    padding = tuple((min(p, (span - 1) // 2),) * 2 for p, span in zip(padding, spans))  # leaves y a pixel
    x = array(rng, (batch, groups * c, *size), dtype, layouts[0])
    weight = array(rng, (groups * c, o, *kernel), dtype, layouts[1])
    bias = rng.standard_normal(groups * o).astype(dtype) if bias else None
    with machine(num_threads, chunk_bytes):
        geometry = stride, padding, output_padding, dilation, groups
        check_conv_transpose(x, weight, bias, rng, *geometry, layouts[1])


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=pairs(1, 3),
    size=pairs(1, 9),
    corner=pairs(0, 3),
    far=pairs(0, 3),
    dtype=st.sampled_from(["float32", "float64"]),
    layouts=st.tuples(*[st.sampled_from(["nchw", "nhwc", "strided"])] * 3),
    num_threads=st.integers(1, 3),
    chunk_bytes=st.sampled_from([1, 500, 1 << 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_winograd_of_any_size(
    batch, channels, size, corner, far, dtype, layouts, num_threads, chunk_bytes, seed
):
    rng, (c, o) = np.random.default_rng(seed), channels
    size = [max(n, 3 - near - f) for n, near, f in zip(size, corner, far)]
    x = array(rng, (batch, c, *size), dtype, layouts[0])
    weight, bias = array(rng, (o, c, 3, 3), dtype, layouts[1]), rng.standard_normal(o).astype(dtype)
    padding = tuple(zip(corner, far))
    y, _, dweight, partner = conv_loops(
        x, weight, lambda shape: array(rng, shape, dtype, layouts[2]), (1, 1), padding, (1, 1), 1
    )
    y += bias[:, None, None]
    with machine(num_threads, chunk_bytes):
        both = winograd.winograd(x, weight, bias, partner, y.shape[2:], corner)
        only_y, none = winograd.winograd(x, weight, bias, None, y.shape[2:], corner)
        nothing, only_dweight = winograd.winograd(x, weight, bias, partner, y.shape[2:], corner, need_y=False)
    assert none is nothing is None
    for result in (both[0], only_y):
        assert_close(result, y, dtype)
    for result in (both[1], only_dweight):
        assert_close(result, dweight, dtype)


# ---- the fast paths, by name ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "x_shape, out_channels, kernel, padding",
    [
        ((5, 16, 14, 16), 17, 3, SAME),  # Winograd; the last row of tiles hangs over
        ((16, 16, 8, 8), 16, 3, SAME),  # Winograd, whole tiles
        ((1, 16, 40, 29), 16, 3, SAME),  # Winograd, one image for two threads
        ((3, 1, 16, 16), 8, 3, SAME),  # one channel in: columns stored by taps
        ((3, 8, 16, 16), 1, 3, SAME),  # one channel out: scattered
        ((2, 6, 5, 7), 4, 1, ((0, 0), (0, 0))),  # 1x1: no columns at all
        ((2, 6, 5, 7), 4, 1, SAME),  # 1x1, padded: the gradient crops
        ((2, 6, 5, 7), 4, 1, ((0, 1), (0, 0))),  # 1x1, padded at a far side only
        ((2, 6, 5, 7), 4, 1, ((0, 0), (0, 2))),
        ((2, 3, 1, 1), 4, 3, SAME),  # a single pixel
    ],
)
def test_conv2d_fast_paths(x_shape, out_channels, kernel, padding, dtype):
    rng = np.random.default_rng(0)
    x = array(rng, x_shape, dtype, "nhwc")
    weight = array(rng, (out_channels, x_shape[1], kernel, kernel), dtype)
    check_conv(x, weight, rng.standard_normal(out_channels).astype(dtype), rng, (1, 1), padding, (1, 1), 1)


@pytest.mark.parametrize(
    "groups, kernel, stride", [(1, (2, 2), (2, 2)), (2, (2, 3), (2, 3)), (6, (3, 3), (2, 2))]
)
def test_conv_transpose2d_fast_paths(groups, kernel, stride):
    rng = np.random.default_rng(0)
    x = array(rng, (3, 6, 5, 4), "float32", "nhwc")
    weight, bias = array(rng, (6, 2, *kernel), "float32"), rng.standard_normal(2 * groups).astype("float32")
    none = ((0, 0), (0, 0))
    check_conv_transpose(x, weight, bias, rng, stride, none, (0, 0), (1, 1), groups)


@pytest.mark.parametrize("x_shape", [(64, 32, 32, 32), (64, 128, 8, 8), (1, 64, 32, 32), (16, 32, 28, 28)])
def test_the_unets_shapes_go_to_winograd(x_shape):
    n, c, h, w = x_shape
    assert winograd.winograd_pays(n, (c, c, 3, 3), (h, w), (1, 1), (1, 1), 1)
    for other in [
        (n, (c, c, 3, 3), (h, w), (2, 2), (1, 1), 1),
        (n, (c, c, 3, 3), (h, w), (1, 1), (2, 2), 1),
        (n, (c, c // 2, 3, 3), (h, w), (1, 1), (1, 1), 2),
        (n, (c, c, 3, 1), (h, w), (1, 1), (1, 1), 1),
        (n, (c, 1, 3, 3), (h, w), (1, 1), (1, 1), 1),
    ]:
        assert not winograd.winograd_pays(*other)


@pytest.mark.parametrize("channels", [4, 32])  # im2col, Winograd
def test_threads_agree_and_runs_repeat(channels):
    rng = np.random.default_rng(0)
    x, g = (array(rng, (9, channels, 16, 16), "float32", "nhwc") for _ in range(2))
    weight = array(rng, (channels, channels, 3, 3), "float32")

    def run(num_threads):
        with machine(num_threads, 1 << 16):
            y = conv2d(x, weight, None, (16, 16), (1, 1), (1, 1), (1, 1), 1)
            return y, *conv2d_backward(g, x, weight, (1, 1), (1, 1), (1, 1), 1)

    one, two, again = run(1), run(2), run(2)
    for a, b, c in zip(one, two, again):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
        assert np.array_equal(b, c)


# ---- images on which Winograd's way would lose digits ------------------------------------------------


def hot(x):
    x[0, 3, 9, 9] = 1e6


def dark(x):
    x[:, :, :, :11] *= 1e-3


def black(x):
    x[...] = 0
    x[1, 2, 5, 5] = 1


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("change", [hot, dark, black])
def test_uneven_images_keep_their_digits(change, num_threads):
    """Each output within 1e-4 of what its window can make: √(Σ x² Σ w²)."""
    rng = np.random.default_rng(0)
    x, weight = array(rng, (2, 16, 16, 16), "float32", "nhwc"), array(rng, (16, 16, 3, 3), "float32")
    change(x)
    with machine(num_threads, 1 << 21):
        y = conv2d(x, weight, None, (16, 16), (1, 1), (1, 1), (1, 1), 1)
        turned = conv_transpose2d(x, weight, None, (16, 16), (1, 1), (1, 1), (1, 1), 1)
    for y, weight in ((y, weight), (turned, weight.swapaxes(0, 1)[..., ::-1, ::-1])):
        expected, *_ = conv_loops(x, weight, np.zeros, (1, 1), SAME, (1, 1), 1)
        sizes, *_ = conv_loops(x**2, weight**2, np.zeros, (1, 1), SAME, (1, 1), 1)
        assert (np.abs(y - expected) <= 1e-4 * np.sqrt(sizes)).all()


def test_even_images_take_winograds_way():
    rng = np.random.default_rng(0)
    x = array(rng, (2, 16, 16, 16), "float32")
    assert winograd.fits_winograd(x, even=True)
    x[0, :, 3, 3] *= 1e3
    assert winograd.fits_winograd(x, even=False) and not winograd.fits_winograd(x, even=True)
    assert winograd.fits_winograd(x.astype("float64"), even=True)
    assert winograd.fits_winograd(0 * x, even=True)
    x[0, 0, 0, 0] = np.nan
    assert not winograd.fits_winograd(x, even=False)
