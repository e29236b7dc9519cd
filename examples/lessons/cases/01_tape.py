"""What the exercises of lesson 1 should return."""

import numpy as np


def unbroadcast():
    """Element by element: each element of g belongs to one of the operand."""
    rng = np.random.default_rng(0)
    for shape, stretched in [((1,), (1,)), ((1,), (2,)), ((), (2,)), ((2,), (2, 2)), ((2, 1), (2, 2)),
                             ((1, 3), (2, 3)), ((1, 1), (2, 2)), ((3, 1), (2, 3, 4))]:
        g = rng.integers(1, 10, stretched).astype(float)
        owner = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), stretched)
        yield (g, shape), np.reshape([g[owner == i].sum() for i in range(np.prod(shape, dtype=int))], shape)


def softmax_backward():
    """Central differences."""
    rng = np.random.default_rng(0)
    for shape in [(1,), (2,), (3,), (2, 2), (2, 3, 4)]:
        x, g = rng.standard_normal((2, *shape))

        def loss(x):
            y = np.exp(x)
            return (g * y / y.sum(-1, keepdims=True)).sum()

        dx = [(loss(x + 1e-6 * e) - loss(x - 1e-6 * e)) / 2e-6 for e in np.eye(x.size).reshape(-1, *shape)]
        y = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        yield (g, y), np.reshape(dx, shape)


def accumulate():
    """The sum over all paths, of the products of the derivatives along each: the chain rule written out."""
    def paths(tape, value, root):
        if value == root:
            return 1.0
        return sum(derivative * paths(tape, name, root) for name, parents in tape.items()
                   for parent, derivative in parents if parent == value)

    def leads(tape, value, root):
        return value == root or any(leads(tape, name, root) for name, parents in tape.items()
                                    for parent, _ in parents if parent == value)

    chain = {"x": [], "y": [("x", 2.0)], "z": [("y", 3.0)]}
    square = {"x": [], "y": [("x", 3.0), ("x", 3.0)]}
    diamond = {"x": [], "a": [("x", 2.0)], "b": [("x", 3.0)], "y": [("a", 5.0), ("b", 7.0)]}
    late = {"x": [], "a": [("x", 2.0)], "b": [("a", 3.0), ("x", 4.0)], "y": [("a", 5.0), ("b", 7.0)]}
    tapes = [({"x": []}, "x"), (chain, "z"), (square, "y"), (diamond, "y"), (late, "y"), (late, "b")]
    rng = np.random.default_rng(0)
    tapes.append(({str(i): [(str(j), float(rng.integers(1, 4))) for j in range(i) if rng.random() < 0.5]
                   for i in range(7)}, "5"))
    for tape, root in tapes:
        yield (tape, root), {name: paths(tape, name, root) for name in tape if leads(tape, name, root)}
