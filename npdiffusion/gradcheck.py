"""Gradients held against finite differences."""

import numpy as np

from .tensor import Tensor

__all__ = ["gradcheck"]


def gradcheck(function, inputs, eps=1e-5, rtol=1e-5, atol=1e-7, directions=3, generator=None):
    """Compare ``backward`` with central differences in float64; raises AssertionError where they differ.

    For a random cotangent u (never all ones: a softmax's gradient would vanish) and random unit directions v,

        ⟨Jᵀu, v⟩  against  (⟨u, f(x + εv)⟩ − ⟨u, f(x − εv)⟩) / 2ε,

    for each input alone, plus v along single coordinates, so that one wrong element shows. A direction that meets a
    kink (max, relu, |x|) is recognised by the second difference, which for a smooth function falls with ε² and
    for a kink with ε only, and is drawn again. The inputs must come out unchanged.

    Args:
        function: Tensors -> Tensor (or a tuple of Tensors), deterministic.
        inputs: a Tensor or array, or a sequence of them. Floating ones are converted to float64 and differentiated
            (their memory layout is kept); integer ones are passed on.
        eps: step. rtol, atol: |difference| ≤ atol·scale + rtol·|slope|, where scale = 1 + ‖Jᵀu‖.
        directions: random directions for each input; as many coordinates are tried too.
        generator: numpy.random.Generator; a fixed seed by default.

    Returns True.
    """
    rng = generator or np.random.default_rng(0)
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    arrays = [x.data if isinstance(x, Tensor) else np.asarray(x) for x in inputs]
    arrays = [a.astype(np.float64, order="K") if a.dtype.kind == "f" else a for a in arrays]
    before = [a.copy() for a in arrays]
    tensors = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]

    def outputs(tensors):
        result = function(*tensors)
        return result if isinstance(result, (tuple, list)) else (result,)

    results = outputs(tensors)
    cotangents = [rng.standard_normal(y.shape) for y in results]
    for y, u in zip(results, cotangents):
        if y.dtype != np.float64:
            raise AssertionError(f"float64 inputs gave a {y.dtype} result")
    # one graph: Σ ⟨u, y⟩ is what all the gradients below belong to
    total = sum((y * Tensor(u)).sum() for y, u in zip(results, cotangents))
    total.backward()

    def value(i, moved):
        plain = [Tensor(moved if j == i else a) for j, a in enumerate(arrays)]
        return sum(float((y.data * u).sum()) for y, u in zip(outputs(plain), cotangents))

    for i, (x, a) in enumerate(zip(tensors, arrays)):
        if not x.requires_grad or not a.size:
            continue
        gradient = np.zeros(a.shape) if x.grad is None else x.grad
        if gradient.shape != a.shape or not np.isfinite(gradient).all():
            raise AssertionError(f"input {i}: gradient of shape {gradient.shape}, or not finite")
        scale = 1 + float(np.linalg.norm(gradient))
        centre = value(i, a)
        for trial in range(2 * directions):
            for _ in range(20):
                v = np.zeros(a.shape)
                if trial < directions:
                    v += rng.standard_normal(a.shape)
                    v /= np.linalg.norm(v)
                else:
                    v.flat[rng.integers(a.size)] = 1.0
                steps = np.empty_like(a)  # K order: keeps the layout
                up, down = value(i, np.add(a, eps * v, out=steps.copy(order="K"))), value(
                    i, np.subtract(a, eps * v, out=steps.copy(order="K")))
                near, far = _second_difference(value, i, a, v, eps, centre, up, down)
                if not (near > 1e-8 * scale and near > 0.35 * far):
                    break
            else:
                raise AssertionError(f"input {i}: every direction meets a kink; move the point")
            numeric, analytic = (up - down) / (2 * eps), float((gradient * v).sum())
            if not abs(numeric - analytic) <= atol * scale + rtol * abs(numeric):
                raise AssertionError(f"input {i}: backward says {analytic:.10g} along a direction where finite "
                                     f"differences say {numeric:.10g}")
    if any((a != b).any() for a, b in zip(arrays, before)):
        raise AssertionError("the function or its backward changed an input")
    return True


def _second_difference(value, i, a, v, eps, centre, up, down):
    """|f(x + εv) − 2f(x) + f(x − εv)| at ε and at 2ε: ratio 1/4 for a smooth function, 1/2 for a kink at x."""
    wide = abs(value(i, a + 2 * eps * v) - 2 * centre + value(i, a - 2 * eps * v))
    return abs(up - 2 * centre + down), wide
