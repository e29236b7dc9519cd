"""Exercises of lesson 1: what a tape needs next. Grade them with python examples/lessons/check.py 1"""

import numpy as np


def unbroadcast(g, shape):
    """The gradient of an operand that NumPy has stretched.

    In a + b the smaller operand is repeated along axes until both shapes agree. So each of its elements was used many
    times, and its gradient is the sum over all of them.

    g: gradient of the result, an array. shape: of the operand, one that NumPy broadcasts to g's.
    Returns the gradient of the operand, of that shape.
    """


def softmax_backward(g, y):
    """The gradient of x, for y = softmax(x) along the last axis: y_i = exp(x_i) / Σ_j exp(x_j).

    Every y_i depends on every x_j. Write δy_i = Σ_j (…) δx_j, put that into Σ_i g_i δy_i, and collect what stands
    before δx_j.

    g, y: (..., n): the gradient of the result, and the result. Returns an array of the same shape.
    """


def accumulate(tape, root):
    """The walk back over a tape, without arrays: d(root)/d(value) for every value from which root was made.

    tape: {name: [(name of parent, d(value)/d(parent)), …]}, in the order in which the values were computed.
    root: a name. Returns {name: derivative} of root itself, which is 1, and of all that it depends on.
    """
