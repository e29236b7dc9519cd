"""Matrix products."""

import numpy as np


def matmul(a, b):
    """a (..., n, k) @ b (..., k, m) -> (..., n, m). The gradients of y = A B are products again (Giles 2008):
    dA = g Bᵀ and dB = Aᵀ g.

        <g, δA B> = Σ_ijk g_ij δA_ik B_kj = <g Bᵀ, δA>
        <g, A δB> = Σ_ijk g_ij A_ik δB_kj = <Aᵀ g, δB>
    """
    return np.matmul(a, b)


def linear(x, weight, bias):
    """y = x Wᵀ + b: x (n, in), weight W (out, in), bias b (out,) or None -> (n, out)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_backward(g, x, weight, need_input=True):
    """dx (or None), dweight and dbias of ``linear``, y_no = Σ_k x_nk W_ok + b_o:

        Σ_nok g_no δx_nk W_ok = <g W, δx>,    Σ_nok g_no x_nk δW_ok = <gᵀ x, δW>,    Σ_no g_no δb_o = <Σ_n g_n, δb>
    """
    return g @ weight if need_input else None, g.T @ x, g.sum(0)
