"""Solutions of lesson 1."""


def unbroadcast(g, shape):
    g = g.sum(tuple(range(g.ndim - len(shape))))  # axes that were put in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(stretched, keepdims=True)


def softmax_backward(g, y):
    # δy_i = y_i (δx_i − Σ_j y_j δx_j), so Σ_i g_i δy_i = Σ_j y_j (g_j − Σ_i g_i y_i) δx_j
    return y * (g - (g * y).sum(-1, keepdims=True))


def accumulate(tape, root):
    gradients = {root: 1.0}
    for name in reversed(tape):  # whatever uses a value was computed after it
        for parent, derivative in tape[name] if name in gradients else ():
            gradients[parent] = gradients.get(parent, 0.0) + gradients[name] * derivative
    return gradients
