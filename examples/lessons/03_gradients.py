"""Lesson 3. Where gradients go

Which pixels does one output of a network depend on? Two operations answer in opposite ways. Max pooling hands the
gradient to one pixel of each window. Group norm spreads it over all pixels of a group, and takes two parts of it away.
This lesson derives both on paper, checks them, and follows the gradient of one output back to a digit.
"""

from course import digits, keep

import npdiffusion as nd
import npdiffusion.functional as F
import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view

rng = np.random.default_rng(0)

# 1. Max pooling: to the winner
#
# y_p is the largest pixel of window p. Let a(p) be the place of this pixel. A small change δx of the pixels leaves the
# winner where it is, so δy_p = δx_a(p), and with the gradient g of y
#
#     ⟨g, δy⟩ = Σ_p g_p δx_a(p) = Σ_a (Σ_{p: a(p) = a} g_p) δx_a.
#
# What stands before δx_a is the gradient of pixel a: the sum over the windows that it wins. Windows may overlap.


def max_pool(x, K, stride):
    """The maxima of windows K × K, and the numbers of the pixels that they are; of equal ones the first."""
    numbers = sliding_window_view(np.arange(x.size).reshape(x.shape), (K, K), (2, 3))[:, :, ::stride, ::stride]
    numbers = numbers.reshape(*numbers.shape[:4], K * K)  # [n, c, p, q, k]: the pixels of each window
    winners = np.take_along_axis(numbers, x.ravel()[numbers].argmax(-1)[..., None], -1)[..., 0]
    return x.ravel()[winners], winners


def max_pool_backward(g, winners, shape):
    return np.bincount(winners.ravel(), g.ravel(), np.prod(shape)).reshape(shape)


def agree(f, backward, x, h=1e-6):
    """The check of lesson 1: whether the gradient of ⟨g, f(x)⟩ gives its slope along v, for random g and v."""
    g, v = rng.standard_normal(f(x).shape), rng.standard_normal(x.shape)
    return np.isclose((backward(g) * v).sum(), (g * (f(x + h * v) - f(x - h * v))).sum() / (2 * h), rtol=1e-5)


x = rng.standard_normal((2, 4, 7, 7))
y, winners = max_pool(x, 3, 2)
assert agree(lambda x: max_pool(x, 3, 2)[0], lambda g: max_pool_backward(g, winners, x.shape), x)
assert np.isclose(max_pool_backward(y, winners, x.shape).sum(), y.sum())  # it goes elsewhere, but nothing is lost

# At a tie there is no derivative: the larger of (1, 1) grows at once with x_1, and does not shrink with it. The package
# gives all to the first. A gradient check whose step is longer than the winner's lead meets the kink and measures less
# than 1. nd.gradcheck therefore compares the slopes ahead and behind, and draws again where they differ.

lead, steps = 0.01, np.logspace(-4, 0, 50)  # of max(x_1, x_2), with x_1 = x_2 + lead, along x_1
ahead, behind = (np.maximum(lead + steps, 0) - lead) / steps, (lead - np.maximum(lead - steps, 0)) / steps
both_sides = (ahead + behind) / 2
assert np.allclose(both_sides[steps < lead], 1) and both_sides[-1] < 0.51

# 2. Group norm: all but two directions
#
# A group is some channels of a picture, x. Let m(·) be the mean over the group. With μ = m(x), σ² = m((x − μ)²) and
# r = 1/√(σ² + ε), group norm makes x̂ = (x − μ) r (Wu & He 2018, eq. 1). A change δx of the pixels brings about
#
#     δμ  = m(δx),  δσ² = 2 m((x − μ)(δx − δμ)) = 2 m((x − μ) δx),           as m(x − μ) = 0
#     δr  = −½ r³ δσ² = −r² m(x̂ δx)
#     δx̂  = r (δx − δμ) + (x − μ) δr = r (δx − m(δx) − x̂ m(x̂ δx)).
#
# Let d be the gradient of x̂. As Σ a m(b) = Σ m(a) b, the same operator comes back in ⟨d, δx̂⟩ = ⟨dx, δx⟩:
#
#     dx = r (d − m(d) − x̂ m(x̂ d)).


def mean(a, groups):
    return a.reshape(len(a), groups, -1).mean(2).repeat(a.shape[1] // groups, 1)[..., None, None]  # [n, c, 1, 1]


def group_norm(x, groups, eps=1e-5):
    centred = x - mean(x, groups)
    r = 1 / np.sqrt(mean(centred ** 2, groups) + eps)
    return centred * r, r


def group_norm_backward(d, xhat, r, groups):
    return r * (d - mean(d, groups) - xhat * mean(xhat * d, groups))


xhat, r = group_norm(x, 2)
dx = group_norm_backward(rng.standard_normal(x.shape), xhat, r, 2)
assert agree(lambda x: group_norm(x, 2)[0], lambda g: group_norm_backward(g, xhat, r, 2), x)

# What is taken away? m(d) is the part of d along (1, …, 1): adding a number to all of x does nothing to x̂, so no
# gradient may point there. x̂ m(x̂ d) is the part along x̂, as m(x̂²) = 1 but for ε: stretching x does nothing either.

assert np.allclose(group_norm(3 * x + 2, 2)[0], xhat, atol=1e-4)
assert np.allclose(mean(dx, 2), 0) and np.allclose(mean(dx * xhat, 2), 0, atol=1e-4)

# 3. A network
#
# After group norm come a weight and a bias for each channel, z = weight x̂ + bias, and SiLU, y = z s(z) with
# s(z) = 1/(1 + e⁻ᶻ), whose slope is s (1 + z (1 − s)). A digit goes through filters for edges of four directions, max
# pooling 3 × 3 at every second pixel, and this, in two groups of two channels. What does one output depend on?

digit = digits("test").images[:1].astype(float)
sobel = np.array([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
edges = np.stack([sobel, -sobel, sobel.T, -sobel.T])[:, None]
weight, bias = np.array([1.0, 0.8, 1.2, 0.9]), np.array([0.1, 0.0, -0.1, 0.2])

c = F.conv2d(nd.Tensor(digit), nd.Tensor(edges)).data
p, winners = max_pool(c, 3, 2)
xhat, r = group_norm(p, 2)
z = xhat * weight[:, None, None] + bias[:, None, None]
s = 1 / (1 + np.exp(-z))
y, dy = z * s, np.zeros(z.shape)
dy[0, 0].flat[y[0, 0].argmax()] = 1
dz = dy * s * (1 + z * (1 - s))
dp = group_norm_backward(dz * weight[:, None, None], xhat, r, 2)
dc = max_pool_backward(dp, winners, c.shape)
ddigit = F.conv_transpose2d(nd.Tensor(dc), nd.Tensor(edges)).data

tape = [nd.Tensor(a, requires_grad=True) for a in (digit, weight, bias)]
pooled = F.max_pool2d(F.conv2d(tape[0], nd.Tensor(edges)), 3, 2)
(F.silu(F.group_norm(pooled, 2, *tape[1:])) * nd.Tensor(dy)).sum().backward()
mine = ddigit, (dz * xhat).sum((0, 2, 3)), dz.sum((0, 2, 3))
assert all(map(np.allclose, (tensor.grad for tensor in tape), mine))
for name, gradient in {"maxima": dp, "edges": dc, "pixels": ddigit}.items():
    print(f"One output depends on {np.count_nonzero(abs(gradient) > 1e-12)} of {gradient.size} {name}")
assert np.count_nonzero(dc) <= np.count_nonzero(dp[:, :2]) and not dp[:, 2:].any()

# The figure: above what the network makes of the digit, below the gradient of one output, from right to left (red above
# 0, blue below; cube roots, so that faint parts show). Group norm spreads it over both channels of its group. Max
# pooling hands it to the winners; where all is black, that is a window's first pixel. The convolution stamps its
# filters; those of the two channels are opposite, and so the stamps in the black cancel. Right, the slope of a maximum
# along the winner, who leads by 0.01: longer steps see the kink. Below, a group of three numbers, seen along (1, 1, 1):
# x̂ is on the circle of radius √3. Gradients of ⟨d, x̂⟩ (red: d) run around it, not in or out, and shrink as x grows.

figure = Figure(figsize=(15, 6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[3.2, 1])
stages = {"digit": digit, "→ edges": c, "→ max pooling": p, "→ group norm, SiLU": y, "gradient of the digit": ddigit,
          "← of the edges": dc, "← of the maxima": dp, "← one output": dy}
for i, (axes, (title, a)) in enumerate(zip(left.subplots(2, 4).flat, stages.items())):
    a = np.pad(a[0] / abs(a).max(), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)  # lines between the channels
    picture = a[0] if len(a) == 1 else np.block([[a[0], a[1]], [a[2], a[3]]])
    axes.imshow(np.cbrt(picture) if i > 3 else picture, "RdBu_r" if i > 3 else "gray", vmin=-1, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
kink, circle = right.subplots(2, 1, height_ratios=[1, 1.7])
kink.semilogx(steps, np.stack([ahead, both_sides, behind], 1), label=["ahead", "both sides", "behind"])
kink.set(xlabel="step h", ylabel="slope", title="a maximum near its kink")
kink.legend()
plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # at right angles to (1, 1, 1)
d, turns = np.array([1.0, -0.6, 0.2]), np.linspace(0, 2 * np.pi, 49)
ring = np.stack([np.cos(turns), np.sin(turns)])
at = np.concatenate([radius * ring[:, ::3] for radius in (3 ** 0.5, 3, 4.5)], 1)
arrows = group_norm_backward(d.reshape(1, 1, 1, 3), *group_norm((at.T @ plane).reshape(-1, 1, 1, 3), 1), 1)
circle.quiver(*at, *(plane @ arrows.reshape(-1, 3).T), angles="xy", scale_units="xy", scale=0.8, width=0.008)
circle.quiver(0, 0, *(plane @ d), color="C3", angles="xy", scale_units="xy", scale=0.8, width=0.015)
circle.plot(*3 ** 0.5 * ring, "k", lw=1)
circle.set(aspect="equal", xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), xticks=[], yticks=[], title="gradients of group norm")
keep(figure, __file__)

# Try: let the one output be in the black, dy[0, 0, 1, 1] = 1. Where does its gradient go, and why there? Take m(d)
# out of group_norm_backward: which assertions notice? Then the exercises: exercises/03_gradients.py.
