"""The gradient of indexing."""

import numpy as np


def add_at(shape, index, g):
    """dx of y = x[index], for an x of this shape. Let a(i) be the element of x that y_i is a copy of:

        δy_i = δx_a(i),  <g, δy> = Σ_i g_i δx_a(i) = Σ_a (Σ_{i: a(i) = a} g_i) δx_a

    so g is added at index, as often as an element is named there.
    """
    out = np.zeros(shape, g.dtype)
    np.add.at(out, index, g)
    return out
