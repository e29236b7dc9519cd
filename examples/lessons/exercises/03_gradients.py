"""Exercises of lesson 3: other ways that gradients take. Grade them with python examples/lessons/check.py 3"""

import numpy as np


def avg_pool2d_backward(g, shape, K, stride):
    """The gradient of x, for average pooling with windows that may hang over the edge.

    y_pq is the mean over those pixels of window (p, q) that lie inside the picture: of rows p·stride to
    p·stride + K − 1 and columns q·stride to q·stride + K − 1.

    g (N, C, P, Q): the gradient of y. shape: x's, (N, C, H, W); each window has pixels inside. K, stride: ints.
    Returns an array of that shape.
    """


def rms_norm_backward(g, x, weight, eps):
    """The gradients of RMS norm (Zhang & Sennrich 2019), which large language models use in place of layer norm:

        y = weight · x̂,   x̂ = x r,   r = 1/√(m(x²) + eps),

    m being the mean over the last axis. Which of the two directions of group norm is left?

    g, x (N, n); weight (n,); eps: a number. Returns (dx, dweight), of the shapes of x and weight.
    """


def attention_backward(g, q, k, v):
    """The gradients of attention (Vaswani et al. 2017, eq. 1): y = a v, where a = softmax(s), row by row, of the scores
    s = q kᵀ/√d.

    Go backwards: from g to dv and da, from da to ds (an exercise of lesson 1), from ds to dq and dk.

    g (n, e): the gradient of y. q (n, d), k (m, d), v (m, e). Returns (dq, dk, dv).
    """


def receptive_field(layers, p):
    """Which pixels of a row of pixels output p of a network depends on.

    layers: [(kernel, stride, padding), …] from the input to the output, of convolutions or poolings. Output p of a
    layer sees its inputs p·stride − padding to p·stride − padding + kernel − 1. p: an int.
    Returns (first, last), which may lie outside the row, where its padding is.
    """
