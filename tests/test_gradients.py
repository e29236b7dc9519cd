"""Every public op: backward against central differences, over drawn structures (strategies.py)."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import CASES, cases, small_pieces

from npdiffusion import Tensor, gradcheck
from npdiffusion import functional as F


def check_gradients(name, examples=50, shrink=True):
    """Run the op's gradient check; AssertionError on a wrong gradient."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=phases,
              report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        case = data.draw(cases(name), label=name)
        upstream = data.draw(st.sampled_from(UPSTREAM), label="gradient arrives")
        arrays = case.arrays()
        # differentiating some of the inputs only takes other branches than all of them
        chosen = [i for i in range(len(arrays)) if not data.draw(st.sampled_from([False, False, True]))] or [0]

        def function(*some):
            some = dict(zip(chosen, some))
            results = case(*(some.get(i, Tensor(a)) for i, a in enumerate(arrays)))
            results = results if isinstance(results, tuple) else (results,)
            return tuple(upstream(y) if y.dtype.kind == "f" else y for y in results)

        with small_pieces(data.draw(st.integers(1, 3), label="threads"), data.draw(st.booleans(), label="small")):
            gradcheck(function, [arrays[i] for i in chosen])

    check()


# Ops behind the one under test, which hand its gradient back in different memory layouts.


def as_it_is(y):
    return y


def transposed(y):
    return y.permute(*range(y.ndim)[::-1]) if y.ndim else y


def in_rows(y):
    """The gradient is a slice of a larger array."""
    return F.pad(y, (1, 1) * y.ndim)


def stretched(y):
    """The gradient is constant along the first axis, with stride 0."""
    return y.sum(0) if y.ndim > 1 else y


UPSTREAM = [as_it_is, transposed, in_rows, stretched]


@pytest.mark.parametrize("name", sorted(CASES))
def test_gradients(name):
    check_gradients(name)


def test_every_public_op_has_a_check():
    assert sorted(CASES) == F.__all__


@pytest.mark.parametrize("small", [False, True])
def test_a_result_used_several_times(small):
    def function(x):
        y = x.exp()
        return y * y + F.cat([y, y], 1)[:, :3] + y.sum(0) + y

    with small_pieces(2, small):
        gradcheck(function, np.random.default_rng(0).standard_normal((2, 3, 2, 2)))


@pytest.mark.parametrize("order", range(4))
def test_gradients_that_meet(order):
    """Some ops add what others have given to theirs: whoever comes first, all of it arrives."""
    def function(x, w):
        y = x.exp()
        results = [F.linear(y, w), F.group_norm_silu(y, 2), y, F.linear(y.permute(0, 3, 1, 2), w[:, :1].expand(2, 3))]
        total = F.linear(w, w).sum()
        for z in results[order:] + results[:order]:
            total = total + (z * z).sum()
        return total

    rng = np.random.default_rng(0)
    gradcheck(function, [rng.standard_normal((2, 4, 3, 2)), rng.standard_normal((2, 2))])
