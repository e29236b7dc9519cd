"""Every public op: results against plain loops (oracles.py) over drawn structures (strategies.py)."""

import inspect

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import ORACLES
from strategies import CASES, cases, small_pieces

import npdiffusion.tensor
from npdiffusion import Tensor
from npdiffusion import functional as F

IMAGES = ["avg_pool2d", "conv2d", "conv_transpose2d", "group_norm", "group_norm_silu", "interpolate", "max_pool2d"]


def many(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck))


def expected(case):
    options = dict(case.options)
    if "seed" in options:
        options["generator"] = np.random.default_rng(options.pop("seed"))
    y = ORACLES[case.name](*case.inputs, **options)
    return y if isinstance(y, tuple) else (y,)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max(initial=0)))


@pytest.mark.parametrize("name", sorted(ORACLES))
@many(25)
@given(data=st.data())
def test_forward(name, data):
    dtype, tolerance = data.draw(st.sampled_from([(np.float64, 1e-9), (np.float32, 1e-4)]), label="dtype")
    case = data.draw(cases(name, dtype), label=name)
    before = [a.copy() for a in case.arrays()]
    with small_pieces(data.draw(st.integers(1, 3), label="threads"), data.draw(st.booleans(), label="small")):
        results = case(*map(Tensor, case.arrays()))
    results = results if isinstance(results, tuple) else (results,)
    for y, should in zip(results, expected(case), strict=True):
        assert y.dtype == dtype or y.dtype.kind == "i"
        assert y.shape == should.shape
        close(y.data, should, tolerance)
    for a, b in zip(case.arrays(), before):
        np.testing.assert_array_equal(a, b)
    if name in IMAGES and results[0].ndim == 4:
        assert results[0].data.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("name", sorted(set(CASES) - {"dropout"}))  # which draws other numbers in float32
@many(10)
@given(data=st.data())
def test_float32_all_the_way(name, data):
    """Gradients are computed in float32 too (the engine would cast a float64 one), and close to float64's."""
    case = data.draw(cases(name), label=name)
    grads = []
    with pytest.MonkeyPatch.context() as patch:
        fitted = npdiffusion.tensor._fitted

        def spy(g, edge, node):
            assert g.dtype == edge.dtype, f"the backward of {node.name} gave {g.dtype} for {edge.dtype}"
            return fitted(g, edge, node)

        patch.setattr(npdiffusion.tensor, "_fitted", spy)
        for dtype in (np.float64, np.float32):
            case.options = {k: v.to(dtype) if isinstance(v, Tensor) and v.dtype.kind == "f" else v
                            for k, v in case.options.items()}
            case.inputs = tuple(_cast(x, dtype) for x in case.inputs)
            leaves = [Tensor(a, requires_grad=True) for a in case.arrays()]
            y = case(*leaves)
            y = y[0] if isinstance(y, tuple) else y
            assert y.dtype == dtype
            upstream = np.random.default_rng(0).standard_normal(y.shape)
            y.backward(np.asarray(upstream, dtype))
            grads.append([x.grad for x in leaves])
            assert all(x.grad is None or x.grad.dtype == dtype for x in leaves)
    for a, b in zip(*grads):
        if a is not None:
            close(b, a, 1e-3)


def _cast(x, dtype):
    if isinstance(x, list):
        return [_cast(part, dtype) for part in x]
    return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


@pytest.mark.parametrize("largest", [1, 63, 65, 88, 1e4])
def test_softmax_of_any_size(largest):
    """Numbers beyond which e^x would overflow, those just below, and −∞ (a mask)."""
    x = np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    x *= np.float32(largest) / abs(x).max()
    for masked in (x, np.where(x < 0, -np.inf, x)):
        z = masked.astype(np.float64)
        expected = np.exp(z - z.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        np.testing.assert_allclose(F.softmax(Tensor(masked), 1).data, expected, 1e-5, 1e-30)
        masked[-1] = expected[-1] = np.nan  # in one row changes no other
        np.testing.assert_allclose(F.softmax(Tensor(masked), 1).data, expected, 1e-5, 1e-30)


def test_every_public_op_has_an_oracle():
    assert sorted(ORACLES) == F.__all__


def test_every_public_op_has_a_docstring():
    assert all(inspect.getdoc(getattr(F, name)) for name in F.__all__)
