"""Lesson 1. A tape: from one derivative to all of them

How does a computer know which way to turn a million knobs? A network is a long computation that ends in one number, its
loss. Training asks how that number changes with every weight. This lesson builds the machine that answers, from NumPy
alone, and the check that would notice if it lied.
"""

from course import keep

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure

# 1. One derivative
#
# f(x) = x sin x. Move x by a little h, and see how far f goes: that is all a derivative is. Taken on both sides the
# error shrinks with h²:   f'(x) ≈ (f(x + h) − f(x − h)) / 2h.  On paper, f'(x) = sin x + x cos x.


def slope(f, x, h=1e-5):
    return (f(x + h) - f(x - h)) / (2 * h)


print("f'(2) measured:", slope(lambda x: x * np.sin(x), 2.0), " on paper:", np.sin(2) + 2 * np.cos(2))

# Measuring costs two runs for each knob: a network of a million weights would run two million times for one step.
#
# 2. A tape
#
# The way out is the chain rule, read backwards. Let L be the number at the end. If we know dL/dy for some y = g(x),
# then dL/dx = dL/dy · g'(x): what it takes is local. So each operation leaves behind, on a tape, what it was made from
# and how a gradient of its result becomes gradients of its inputs. Then one walk from the end to the beginning finds
# all derivatives, for the price of a few runs. Where a value was used twice, both uses count: their parts are *added*.
#
# With arrays: write ⟨a, b⟩ for the sum of the products of all elements, and δ for a small change. If δL = ⟨g, δx⟩ for
# every δx, then g is the gradient of L with respect to x. Of a matrix product y = A B, with the gradient g of y,
#
#     δL = ⟨g, δA B⟩ + ⟨g, A δB⟩ = ⟨g Bᵀ, δA⟩ + ⟨Aᵀ g, δB⟩,
#
# and what stands beside δA and δB are their gradients. All rules below are found in this way.


class Value:
    """A number or an array, what it was made from, and how to pass a gradient on."""

    def __init__(self, data, parents=(), backward=lambda g: ()):
        self.data, self.grad = np.asarray(data, float), 0.0
        self.parents, self.pass_on = parents, backward

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda g: (g, g))

    def __mul__(self, other):  # δ(ab) = b δa + a δb
        return Value(self.data * other.data, (self, other), lambda g: (g * other.data, g * self.data))

    def __matmul__(self, other):
        return Value(self.data @ other.data, (self, other), lambda g: (g @ other.data.T, self.data.T @ g))

    def sin(self):
        return Value(np.sin(self.data), (self,), lambda g: (g * np.cos(self.data),))

    def tanh(self):
        y = np.tanh(self.data)
        return Value(y, (self,), lambda g: (g * (1 - y * y),))

    def sum(self):
        return Value(self.data.sum(), (self,), lambda g: (g * np.ones_like(self.data),))

    def tape(self):
        """Everything that this was made from, in an order in which inputs come before what is made of them."""
        order = []

        def visit(value):
            if value not in order:
                for parent in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        return order

    def backward(self):
        """d(self)/d(value) in ``grad`` of every value of the tape; from the end, so that each is complete in time."""
        self.grad = np.ones_like(self.data)
        for value in reversed(self.tape()):
            for parent, g in zip(value.parents, value.pass_on(value.grad)):
                parent.grad = parent.grad + g


x = Value(2.0)
f = x * x.sin()  # x is used twice
f.backward()
print("f'(2) by the tape:", x.grad)
assert np.isclose(x.grad, np.sin(2) + 2 * np.cos(2))

# 3. A check that would notice
#
# Arrays have many derivatives. Measuring them one by one is slow; instead draw a random direction v and compare one
# number: ⟨gradient, v⟩ with the slope along v. A wrong gradient passes only if its error is at a right angle to v.
# Beware of a loss such as y.sum(): the outputs of a softmax sum to 1, so its gradient is 0, and so is that of many
# mistakes. Weight the results at random, by u. (Below, the median of 20 directions: along some the slope is near 0.)

rng = np.random.default_rng(0)
x, w, u = rng.standard_normal((5, 3)), rng.standard_normal((3, 4)), rng.standard_normal((5, 4))


def loss(w):  # of a layer of a network
    return ((Value(x) @ w).tanh() * Value(u)).sum()


def disagreement(gradient, h):
    """How far ⟨gradient, v⟩ is from the slope along a random direction v, as a share of the slope."""
    v = rng.standard_normal(w.shape)
    measured = slope(lambda s: loss(Value(w + s * v)).data, 0.0, h)
    return abs((gradient * v).sum() - measured) / abs(measured)


weights = Value(w)
loss(weights).backward()
planted = x.T @ (u * (1 - np.tanh(x @ w)))  # somebody forgot the square
steps = 10.0 ** np.arange(-12, 0.5, 0.5)
right, wrong = (np.array([np.median([disagreement(g, h) for _ in range(20)]) for h in steps])
                for g in (weights.grad, planted))
print(f"smallest relative difference: {right.min():.0e} by the tape, {wrong.min():.0e} with a mistake in the gradient")
assert right.min() < 1e-8 < 1e-2 < wrong.min()

# The package's own tape (npdiffusion/tensor.py) works the same way. It comes to the same gradient.

theirs = nd.Tensor(w, requires_grad=True)
(nd.functional.tanh(nd.Tensor(x) @ theirs) * nd.Tensor(u)).sum().backward()
assert np.allclose(theirs.grad, weights.grad, rtol=1e-12)

# The figure: on the left the tape of f(x) = x sin x at x = 2, each value with df/dvalue below it, and beside the arrows
# what is passed back along them: x was used twice, and gets the sum. On the right the check: a long step h suffers from
# the curve (error ∝ h², and at h = 1 no gradient agrees), a short one from rounding (∝ 1/h); between them the right
# gradient agrees to ten digits. The one with a mistake never does.

figure = Figure(figsize=(10, 4), layout="constrained")
graph, check = figure.subplots(1, 2, width_ratios=[1, 1.3])
place = dict(zip(f.tape(), [(0.5, 3), (-0.3, 2), (0.5, 1)]))
for (value, at), name in zip(place.items(), ["x", "sin x", "x sin x"]):
    graph.text(*at, f"{name}\n{value.data:.3f}\ngradient {float(value.grad):.3f}", ha="center", va="center",
               bbox=dict(boxstyle="round", fc="white"))
    for parent, g in zip(value.parents, value.pass_on(value.grad)):
        graph.annotate("", place[parent], at, arrowprops=dict(arrowstyle="->", shrinkA=46, shrinkB=46))
        graph.text(*np.add(at, place[parent]) / 2, f"{float(g):.3f}", color="C3", ha="center",
                   bbox=dict(fc="white", ec="white"))
graph.set(xlim=(-0.7, 0.9), ylim=(0.5, 3.5), title="the tape of f(x) = x sin x at x = 2, walked back")
graph.set_axis_off()
check.loglog(steps, right, "o-", ms=4, label="gradient by the tape")
check.loglog(steps, wrong, "s-", ms=4, label="tanh' = 1 − tanh: a mistake")
check.set(xlabel="step h", ylabel="relative difference from the slope", title="a gradient check")
check.legend(loc=(0.25, 0.65))
keep(figure, __file__)

# Try: let __mul__ pass (g, g) on, or make `parent.grad + g` a plain `g`. The first assertion fails: take it out. Which
# of the two does the gradient check notice, and why not the other? Then the exercises: exercises/01_tape.py.
