"""Lesson 2. Convolution is a matrix product

Why is the slowest loop of a network its fastest part? Nearly all the arithmetic of an image network is convolution.
This lesson turns its seven loops into one product of matrices, forwards and backwards, and measures the gain.
"""

from timeit import timeit

from course import digits, keep

import npdiffusion as nd
import npdiffusion.functional as F
import numpy as np
from matplotlib.figure import Figure
from npdiffusion.kernels import plain
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits
from tqdm import trange

# 1. Seven loops
#
# Pictures x (N, C, H, W) have C channels; weights w (O, C, K, K) turn them into O channels. Each pixel of the result is
# a weighted sum over a window of K × K pixels in all channels, and the window slides (LeCun et al. 1989;
# strictly this is a correlation: a convolution flips w):
#
#     y[n, o, p, q] = Σ_{c, i, j} w[o, c, i, j] · x[n, c, p + i, q + j],  with a loop for each of the seven letters.


def conv_loops(x, w):
    (N, C, H, W), (O, _, K, _) = x.shape, w.shape
    y = np.zeros((N, O, H - K + 1, W - K + 1), x.dtype)
    for n, o, p, q, c, i, j in np.ndindex(*y.shape, C, K, K):
        y[n, o, p, q] += w[o, c, i, j] * x[n, c, p + i, q + j]
    return y


# 2. Columns
#
# The sum runs over (c, i, j). So let these number the rows of a matrix, and (n, p, q) its columns, each of which is the
# window that this pixel of the result sees. With w as a matrix of O rows,  y = w columns(x)  is one matrix product.
# Each pixel of x is copied up to K² times for it.


def columns(x, K):
    windows = sliding_window_view(x, (K, K), (2, 3))  # [n, c, p, q, i, j]: a view, nothing is copied yet
    return windows.transpose(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * K * K, -1)  # [c i j, n p q]


def conv(x, w):
    (N, _, H, W), (O, _, K, _) = x.shape, w.shape
    return (w.reshape(O, -1) @ columns(x, K)).reshape(O, N, H - K + 1, W - K + 1).swapaxes(0, 1)


# 3. Backwards
#
# Let g be the gradient of the loss with respect to y, as a matrix of O rows, too. The rule of lesson 1 for a product
# tells both gradients: dw = g columns(x)ᵀ, and wᵀ g, the gradient of the columns. A pixel of x stands in up to K²
# columns, so it gets the sum of what these get. That is the adjoint of taking columns, col2im:
# ⟨columns(x), b⟩ = ⟨x, col2im(b)⟩  for all x and b.


def col2im(b, shape, K):
    N, C, H, W = shape
    x, b = np.zeros(shape, b.dtype), b.reshape(C, K, K, N, H - K + 1, W - K + 1)
    for i, j in np.ndindex(K, K):
        x[:, :, i : i + H - K + 1, j : j + W - K + 1] += b[:, i, j].swapaxes(0, 1)
    return x


def conv_backward(g, x, w):
    O, _, K, _ = w.shape
    g = g.swapaxes(0, 1).reshape(O, -1)  # [o, n p q]
    return col2im(w.reshape(O, -1).T @ g, x.shape, K), (g @ columns(x, K).T).reshape(w.shape)


rng = np.random.default_rng(0)
x, w, g = (rng.standard_normal(shape) for shape in ((2, 3, 7, 6), (4, 3, 3, 3), (2, 4, 5, 4)))
b = rng.standard_normal(columns(x, 3).shape)
assert np.allclose(conv(x, w), conv_loops(x, w))
assert np.isclose((columns(x, 3) * b).sum(), (x * col2im(b, x.shape, 3)).sum())
theirs = [nd.Tensor(a, requires_grad=True) for a in (x, w)]
(F.conv2d(*theirs) * nd.Tensor(g)).sum().backward()
assert all(np.allclose(t.grad, mine) for t, mine in zip(theirs, conv_backward(g, x, w)))
assert nd.gradcheck(F.conv2d, (x, w)) and nd.gradcheck(F.conv_transpose2d, (g, w))

# 4. The other matrix
#
# For fixed weights y is linear in x: y = A x, both read pixel by pixel. Column k of A is what becomes of a picture that
# is 1 in pixel k and 0 elsewhere. This sparse matrix shows what dx = Aᵀ g is: each pixel of g adds its multiple
# of w to a window. On its own that is a transposed convolution (Dumoulin & Visin 2016, ch. 4), which enlarges.

digit = digits("test").images[:1].reshape(1, 1, 8, 4, 8, 4).mean((3, 5))  # 32 × 32 pixels, averaged to 8 × 8
edges = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None]  # large where it is brighter on the left
g = np.zeros((1, 1, 6, 6))
g[0, 0, [1, 2], [1, 3]] = 1, -0.5
A = conv(np.eye(64).reshape(64, 1, 8, 8), edges).reshape(64, 36).T
y, dx = conv(digit, edges), F.conv_transpose2d(nd.Tensor(g), nd.Tensor(edges)).data
assert np.allclose(A @ digit.ravel(), y.ravel()) and np.allclose(A.T @ g.ravel(), dx.ravel())

# 5. Fewer multiplications
#
# Two neighbouring results of a filter f with three taps, from four numbers d, are 6 products. Winograd (1980) takes 4:
#
#     m_1 = (d_0 − d_2) f_0              m_2 = (d_1 + d_2) (f_0 + f_1 + f_2)/2             y_0 = m_1 + m_2 + m_3
#     m_4 = (d_1 − d_3) f_2              m_3 = (d_2 − d_1) (f_0 − f_1 + f_2)/2             y_1 = m_2 − m_3 − m_4
#
# or y = Aᵀ[(G f) ⊙ (Bᵀ d)], another A, ⊙ element by element (Lavin & Gray 2015, section 4.1). G f is made once for all.
# Along both axes, 2 × 2 results take 4² = 16 products, not 36; the package's 4 × 4 take 36, not 144.

BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
d, f = rng.integers(-9, 10, 4), rng.integers(-9, 10, 3)
assert np.array_equal(AT @ ((G @ f) * (BT @ d)), [d[:3] @ f, d[1:] @ f])

# 6. The ladder
#
# A layer of a UNet, C to C channels on 4 pictures, on one core. The package takes Winograd's way by itself, unless a
# pixel is far smaller in all channels than another, and might drown in the other's rounding errors. So one pixel of
# zeros makes it use columns, built piece by piece, which stay in a cache (lesson 11). Python's loops are timed on a
# small part and scaled up.

C = 64
x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, C, 34, 34), (C, C, 3, 3)))
black, ready = x * (np.arange(34 * 34).reshape(34, 34) > 0), columns(x, 3)
rungs = {
    "seven loops in Python": lambda: conv_loops(x[:1, :, :5, :5], w[:4]),
    "seven loops in C (einsum)": lambda: np.einsum("ncpqij, ocij -> nopq", sliding_window_view(x, (3, 3), (2, 3)), w),
    "a product for each tap": lambda: plain.conv2d(x, w, None, (32, 32), (1, 1), (0, 0), (1, 1), 1),
    "columns, one product": lambda: conv(x, w),
    "columns in pieces": lambda: F.conv2d(nd.Tensor(black), nd.Tensor(w)),
    "Winograd F(4×4, 3×3)": lambda: F.conv2d(nd.Tensor(x), nd.Tensor(w)),
    "the product, without making columns": lambda: w.reshape(C, -1) @ ready,
}
exact = conv(x, w)
assert np.abs(rungs["Winograd F(4×4, 3×3)"]().data - exact).max() < 1e-4 * np.abs(exact).max()
nd.set_num_threads(1)
with threadpool_limits(1):  # in turns, so that a busy machine is busy for all of them
    seconds = np.median([[timeit(f, number=1) for f in rungs.values()] for _ in trange(11, desc="timing")], 0)
seconds[0] *= 4 * 32 * 32 * C / (3 * 3 * 4)  # pixels of the layer's result and of the part's
rates = 2e-9 * 4 * 32 * 32 * C * C * 9 / seconds  # a multiplication and an addition each
for name, t, rate in zip(rungs, seconds, rates):
    print(f"{name:36s} {1000 * t:11.1f} ms {rate:9.3f} GFLOP/s")
assert seconds[0] > 100 * seconds[3]

# The figure (red: above 0, blue: below): above, each row of A picks a window of the digit, and gives a pixel of y.
# Below, the way back: each pixel of g stamps the filter into dx, and where stamps overlap they add. Right, the ladder.
# A product of matrices is fast since each number, once fetched, serves many multiplications. Winograd's way, with
# fewer, can beat the product alone; its GFLOP/s count the multiplications of the direct way.

figure = Figure(figsize=(13, 5), layout="constrained")
left, right = figure.subfigures(1, 2)
pictures = {"x, a digit": digit, "A, 36 × 64": A, "y = A x": y, "dx = Aᵀ g": dx, "Aᵀ, 64 × 36": A.T, "g": g}
for axes, (title, picture) in zip(left.subplots(2, 3, width_ratios=[1, 1.6, 1]).flat, pictures.items()):
    axes.imshow(picture.squeeze() / abs(picture).max(), "gray" if picture is digit else "RdBu_r", vmin=-1, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
ladder = right.subplots()
ladder.plot(seconds[:-1], list(rungs)[:-1], "o")
for i, (t, rate) in enumerate(zip(seconds[:-1], rates)):
    ladder.text(1.6 * t, i, f"{t:.3g} s, {rate:.3g} GFLOP/s", va="center", bbox=dict(fc="white", ec="none", pad=1))
ladder.axvline(seconds[-1], color="k", ls=":", zorder=0, label="the product alone, columns being ready")
ladder.set(xscale="log", xlim=(1e-3, 3e5), ylim=(6.2, -0.6), xlabel="seconds on one core",
           title=f"one layer: 4 pictures of 32 × 32, {C} to {C} channels")
ladder.legend(loc="lower right", frameon=False)
keep(figure, __file__)

# Try: write = in place of += in col2im. Which assertion notices? Set C to 12: why does Winograd gain nothing now
# (kernels/numpy/winograd.py, winograd_pays)? Then the exercises: exercises/02_convolution.py.
