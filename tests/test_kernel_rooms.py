"""The fast kernels against the plain ones, by way of every op; and how a room is chosen."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import CASES, SPOILT, assert_as_far_spoilt, cases, small_pieces, spoilt
from test_training import loss_of, training

import npdiffusion
from npdiffusion import Tensor, functional as F, use_kernels
from npdiffusion.kernels import kernels, plain
from npdiffusion.kernels import numpy as fast


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=25, deadline=None, derandomize=True, database=None, report_multiple_bugs=False,
          suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_op_computes_the_same_in_both(name, data):
    """Results and all gradients."""
    dtype, tolerance = data.draw(st.sampled_from([(np.float64, 1e-10), (np.float32, 1e-4)]), label="dtype")
    case, results = data.draw(cases(name, dtype), label=name), []
    pieces = data.draw(st.integers(1, 3), label="threads"), data.draw(st.booleans(), label="small")
    for room in ("plain", "numpy"):
        leaves = [Tensor(a, requires_grad=True) for a in case.arrays()]
        with use_kernels(room), small_pieces(*pieces):
            outputs = case(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            upstream = np.random.default_rng(0).standard_normal(outputs[0].shape)
            outputs[0].backward(np.asarray(upstream, dtype))
        results.append([*(y.data for y in outputs), *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * (1 + np.abs(a).max(initial=0)))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", sorted(SPOILT))
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_is_not_finite_spreads_as_far_in_both(name, small):
    if name.startswith("attention") and name.endswith("backward"):
        small = False  # in tiles the softmax's sum comes from y, and NaN may fill more or less of a query's row
    rng = np.random.default_rng(0)
    for dtype, tolerance in ((np.float32, 1e-4), (np.float64, 1e-10)):
        for call, arrays in spoilt(name, rng, dtype):
            expected = call(plain, *arrays)
            with small_pieces(2, small):
                assert_as_far_spoilt(call(fast, *arrays), expected, tolerance)


ROWS = {"bool": np.array([[True, True], [False, False]]), "float": np.array([[0.0, 0.0], [-np.inf, -np.inf]])}


@pytest.mark.parametrize("mask", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("size", [1.0, 1000.0])
@pytest.mark.parametrize("room", [plain, fast], ids=["plain", "numpy"])
@pytest.mark.parametrize("small", [False, True])
def test_attention_of_a_query_that_sees_nothing(room, size, mask, small):
    query, value = np.array([[size], [np.nan if mask.dtype == bool else size]]), np.array([[1.0], [3.0]])
    one = np.ones((2, 1))
    with small_pieces(2, small):
        y, _ = room.attention(query, one, value, mask, None, 1.0)
        assert y.tolist() == [[2], [0]]
        query[1] = size
        y, kept = room.attention(query, one, value, mask, None, 1.0)
        gradients = room.attention_backward(one, query, one, value, y, kept, mask, None, 1.0, True)
    expected = [[0], [0]], [[-0.5 * size], [0.5 * size]], [[0.5], [0.5]], [[-0.5, 0.5], [0, 0]]
    for a, b in zip(gradients, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    with small_pieces(2, small):
        y, _ = room.attention(np.array([[np.nan], [1.0]]), one, value, None, None, 1.0)
    np.testing.assert_array_equal(y, [[np.nan], [2]])


@pytest.mark.parametrize("size", [1.0, 50.0])  # scores up to 2e4: e^S would overflow
@pytest.mark.parametrize("mask", [None, "bool", "float", "large float"])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("stack", [(2, 3), (3,), ()])
def test_attention_in_tiles(size, mask, dropout, stack):
    rng = np.random.default_rng(0)
    query, key, value, g = (rng.standard_normal((*stack, *shape)) for shape in ((70, 8), (1500, 8), (1500, 5), (70, 5)))
    query, noise = size * query, rng.standard_normal((70, 1500))
    mask = {None: None, "bool": noise > 0, "float": noise, "large float": 400 * noise}[mask]
    dropped = 2.0 * (rng.random((*stack, 70, 1500)) < 0.5) if dropout else None
    results = []
    for room in (plain, fast):
        y, kept = room.attention(query, key, value, mask, dropped, 0.5)
        results.append([y, *room.attention_backward(g, query, key, value, y, kept, mask, dropped, 0.5, True)])
    for expected, result in zip(*results):
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def test_attention_never_holds_its_scores():
    heads = [np.random.default_rng(i).standard_normal((1, 2, 2048, 16), dtype=np.float32) for i in range(4)]
    tracemalloc.start()
    y, kept = fast.attention(*heads[:3], None, None, 0.25)
    fast.attention_backward(heads[3], *heads[:3], y, kept, None, None, 0.25)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20  # they would take 32 MiB


@pytest.mark.parametrize("room", [plain, fast], ids=["plain", "numpy"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_dropout_drops_is_gone(room):
    one, dropout = np.ones((2, 1)), np.array([[0.0, 0.0], [2.0, 2.0]])
    y, _ = room.attention(np.array([[np.nan], [1.0]]), one, one, None, dropout, 1.0)
    assert y.tolist() == [[0], [2]]
    y, kept = room.attention(one, one, one, None, dropout, 1.0)
    upstream = np.array([[np.inf], [1.0]])
    gradients = room.attention_backward(upstream, one, one, one, y, kept, None, dropout, 1.0, True)
    assert np.isfinite(gradients[0]).all() and np.isfinite(gradients[1]).all() and np.isfinite(gradients[3]).all()


def test_a_training_on_the_plain_kernels_is_the_same(tmp_path):
    runs = []
    for room in ("plain", "numpy"):
        with use_kernels(room):
            runs.append(training())
            runs[-1].fit(loss_of(runs[-1]), tmp_path / room)
    np.testing.assert_allclose(runs[0].log[-1][2], runs[1].log[-1][2], rtol=1e-5)
    for a, b in zip(*(run.model.state_dict().items() for run in runs)):
        if not a[0].startswith("convs.") or a[0].endswith("weight"):  # the biases' gradients are nothing but rounding
            np.testing.assert_allclose(a[1], b[1], rtol=1e-3, atol=1e-4)


def test_use_kernels():
    x = np.zeros(1)
    assert kernels(x) is kernels(np.float32(0)) is fast
    with use_kernels("plain"):
        assert kernels(x) is plain
        with use_kernels("numpy"):
            assert kernels(x) is fast
        assert kernels(x) is plain
    assert kernels(x) is fast
    use_kernels("plain")
    assert kernels(x) is plain and F.relu(Tensor([-1.0, 2.0])).data.tolist() == [0, 2]
    with pytest.raises(ValueError, match="'plain' or 'numpy', got 'fast'"):
        npdiffusion.use_kernels("fast")
    assert kernels(x) is plain


def test_that_use_of_the_plain_kernels_was_put_back():
    """By conftest.py, if the test before this one left it."""
    assert kernels(np.zeros(1)) is fast


@pytest.mark.parametrize("room", ["plain", "numpy"])
def test_the_environment_chooses(room, monkeypatch):
    monkeypatch.setenv("NPDIFFUSION_KERNELS", room)
    code = "import numpy, npdiffusion.kernels as k; print(k.kernels(numpy.zeros(1)).__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"npdiffusion.kernels.{room}"
