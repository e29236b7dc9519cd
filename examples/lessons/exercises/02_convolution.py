"""Exercises of lesson 2: what convolution needs next. Grade them with python examples/lessons/check.py 2"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def output_size(n, kernel, stride, padding, dilation):
    """How many windows fit into a row of pixels.

    The row has n pixels, and on each side padding more, which are 0. A window has kernel taps, neighbouring taps are
    dilation pixels apart. The first window begins at the first pixel of the padded row, the next ones stride later
    each, and all of a window's taps lie inside the padded row.

    All arguments are ints; at least one window fits. Returns an int.
    """


def conv2d(x, w, stride, padding, dilation):
    """Convolution with a stride, padding and a dilation, through columns:

        y[n, o, p, q] = Σ_{c, i, j} w[o, c, i, j] · x̄[n, c, p·stride + i·dilation, q·stride + j·dilation],

    where x̄ is x with padding rows and columns of zeros on all four sides. Take larger windows than K × K, and of these
    only some, and of their pixels only some.

    x (N, C, H, W), w (O, C, K, K); stride, padding, dilation: ints. Returns y (N, O, P, Q), all pixels there are.
    """


def conv_transpose2d_backward(g, x, w):
    """The gradients of a transposed convolution y:

        y[n, c, p + i, q + j] += w[o, c, i, j] · x[n, o, p, q]  for all o, i, j, p, q.

    It is Aᵀ x, with the matrix A of the convolution with w. So for all x, g and w, ⟨g, y⟩ = ⟨conv(g, w), x⟩: an
    expression which is linear in x, and in w.

    g (N, C, H, W): the gradient of y. x (N, O, P, Q), w (O, C, K, K), with H = P + K − 1, W = Q + K − 1.
    Returns (dx, dw), of the shapes of x and w.
    """


def winograd_tile(d, f):
    """Winograd's F(2 × 2, 3 × 3): four neighbouring results of a filter, by 16 multiplications.

    With the matrices of the lesson, from both sides: Y = Aᵀ M A, with M = (G f Gᵀ) ⊙ (Bᵀ d B), ⊙ element by element.

    d (4, 4): pixels. f (3, 3): the filter. Returns (M, Y), of shapes (4, 4) and (2, 2):
    Y[p, q] = Σ_{i, j} f[i, j] · d[p + i, q + j].
    """
