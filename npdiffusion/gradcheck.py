"""Gradients held against finite differences."""

import numpy as np

from .tensor import Tensor

ROUNDING = 10 * np.finfo(np.float64).eps.item()  # relative error that a value of the function may carry


def gradcheck(function, inputs, eps=1e-4, rtol=1e-5, atol=1e-7, directions=3, coordinates=12, generator=None):
    """Compare ``backward`` with central differences in float64; raises AssertionError where they differ.

    With a random cotangent u (never all ones: Σ softmax(x) is constant) and f(x) = ⟨u, function(x)⟩,

        ⟨Jᵀu, v⟩  against  (f(x + εv) − f(x − εv)) / 2ε

    for each input alone, along random unit directions v, which meet every element at once, and along single
    coordinates, which tell elements apart. All outputs of a function are checked together.

    Where the two differ, ε is cut by ten, twice, in case the function is strongly curved (a long step suffers less
    from rounding). If they differ still, there may be a kink (max, relu, |x|) within the step: then the slopes before
    and behind x differ too, and v is drawn again. So kinks may make the check fail ("move the point"), but no
    direction passes without agreement.

    function: Tensors -> Tensor (or a sequence of Tensors; integer ones are ignored), deterministic.
    inputs: a Tensor or array, or a sequence of them. Floating ones are differentiated: float64 arrays as they lie in
        memory, others converted. Integer ones are passed on.
    eps: first step ε. rtol, atol: |difference| ≤ rtol·slope + atol·‖Jᵀu‖, plus what rounding f may cause: functions
        with tiny gradients are held to the same relative error. So where terms cancel to nothing but rounding errors
        (Σ layer_norm(x)) the check fails.
    directions: random directions for each input. coordinates: single ones for each input; all where there are no more.
    generator: numpy.random.Generator; a fixed seed by default.

    Returns True. Raises AssertionError too when a result is not float64 or an input came out changed, ValueError
    when a second call gives another value.
    """
    rng = generator or np.random.default_rng(0)
    inputs = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    arrays = [x.data if isinstance(x, Tensor) else np.asarray(x) for x in inputs]
    arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    before = [a.copy() for a in arrays]
    tensors = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]

    def outputs(tensors):
        result = function(*tensors)
        result = result if isinstance(result, (tuple, list)) else (result,)
        return [y for y in result if y.dtype.kind == "f"]

    results = outputs(tensors)
    if any(y.dtype != np.float64 for y in results):
        raise AssertionError(f"float64 inputs gave {', '.join(str(y.dtype) for y in results)}")
    cotangents = [np.asarray(rng.standard_normal(y.shape)) for y in results]
    # one graph: f = Σ ⟨u, y⟩ is what all the gradients below belong to
    sum((y * Tensor(u)).sum() for y, u in zip(results, cotangents)).backward()
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(arrays, before)):
        raise AssertionError("the function or its backward changed an input")
    noise = ROUNDING * sum(float(np.abs(y.data * u).sum()) for y, u in zip(results, cotangents))

    for i, (x, a) in enumerate(zip(tensors, arrays)):
        if not x.requires_grad or not a.size:
            continue

        def f(moved):
            plain = [Tensor(moved if j == i else other) for j, other in enumerate(arrays)]
            return sum(float((y.data * u).sum()) for y, u in zip(outputs(plain), cotangents))

        gradient = np.zeros(a.shape) if x.grad is None else x.grad
        if not np.isfinite(gradient).all():
            raise AssertionError(f"input {i}: the gradient is not finite")
        centre, floor = f(a), atol * float(np.linalg.norm(gradient))
        if abs(f(a) - centre) > noise:
            raise ValueError("the function gives another value when called again; seed its random numbers")

        def agree(v):
            """Whether backward and finite differences agree along v (True), or v meets a kink (False)."""
            v = v / np.linalg.norm(v)
            analytic = float((gradient * v).sum())
            for step in (eps, eps / 10, eps / 100):
                ahead, behind = (f(a + step * v) - centre) / step, (centre - f(a - step * v)) / step  # slopes
                numeric = (ahead + behind) / 2
                difference = abs(numeric - analytic)
                if difference <= rtol * max(abs(ahead), abs(behind)) + floor + noise / step:
                    return True
            if abs(ahead - behind) > 0.2 * difference:  # a kink can make a difference of half of this
                return False
            raise AssertionError(f"input {i}: backward says {analytic:.10g} along a direction where finite differences "
                                 f"say {numeric:.10g}")

        for _ in range(directions):
            if not any(agree(rng.standard_normal(a.shape)) for _ in range(20)):
                raise AssertionError(f"input {i}: every direction meets a kink; move the point")
        tried = 0
        for k in rng.permutation(a.size):  # where all coordinates meet kinks, the directions above have decided
            tried += agree(np.eye(1, a.size, k).reshape(a.shape))
            if tried == coordinates:
                break
    return True
