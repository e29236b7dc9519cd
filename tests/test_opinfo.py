"""Every sample input that PyTorch tests our ops with (its OpInfo), through ours and PyTorch's: results and gradients.

An op may refuse a sample, with an error that says so; what it computes has to be right.
"""

import collections
import sys
import types
import unittest
from unittest import mock

import numpy as np
import pytest

from npdiffusion import Tensor
from npdiffusion import functional as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed; nothing here needs it but these comparisons")
sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))  # what PyTorch's tests need
with mock.patch.object(torch.backends, "disable_global_flags", lambda: None):  # for the tests after these
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")

OURS = {"view": F.reshape, "__getitem__": F.getitem,
        "where": lambda x, condition, y: F.where(condition, x, y),  # in the order of the samples
        "nn.functional.embedding": lambda weight, index: F.embedding(index, weight)}
for name in F.__all__:
    OURS.setdefault(name, getattr(F, name))
    OURS.setdefault(f"nn.functional.{name}", getattr(F, name))
for name in ("__radd__", "__rmul__", "__rpow__", "__rmatmul__", "eq", "ne", "lt", "le", "gt", "ge"):
    OURS[name] = getattr(Tensor, name if name.startswith("_") else f"__{name}__")
OPS = [op for op in methods.op_db if op.name in OURS]


def converted(x, leaves):
    """A sample's argument as ours; ``leaves`` gets pairs of Tensors, PyTorch's and ours, that want a gradient."""
    if isinstance(x, torch.Tensor):
        mine = Tensor(x.detach().numpy().copy(), requires_grad=x.requires_grad)
        leaves += [(x, mine)] if x.requires_grad else []
        return mine
    if isinstance(x, torch.dtype):
        return str(x).removeprefix("torch.")
    if type(x) in (list, tuple):
        return type(x)([converted(part, leaves) for part in x])
    return x


def arrays(results):
    return list(results) if isinstance(results, tuple) else [results]


def random(op, sample):
    """Whether its result is: then it is held against PyTorch's in shape and dtype alone."""
    p = sample.kwargs.get("dropout_p", sample.kwargs.get("p", 0.5 if op.name.endswith("dropout") else 0))
    return 0 < p < 1 and sample.kwargs.get("training", True)


def differences(op, sample):
    """What differs from PyTorch. Raises what our op raises."""
    leaves, rng = [], np.random.default_rng(0)
    args = [converted(x, leaves) for x in (sample.input, *sample.args)]
    ours = arrays(OURS[op.name](*args, **{name: converted(x, leaves) for name, x in sample.kwargs.items()}))
    theirs = arrays(op.op(sample.input, *sample.args, **sample.kwargs))
    kinds = [[(tuple(y.shape), str(y.dtype).removeprefix("torch.")) for y in ys] for ys in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return [f"{kinds[0]} for {kinds[1]}"]
    if random(op, sample):
        return []
    tolerance = 1e-9 if theirs[0].dtype == torch.float64 else 1e-4
    pairs = [("result", a.data, b.detach()) for a, b in zip(ours, theirs)]
    for a, b in zip(ours, theirs):
        g = np.asarray(rng.standard_normal(a.shape), a.dtype)
        if a.requires_grad:
            a.backward(g)
        if b.requires_grad:
            b.backward(torch.tensor(g))
    for x, mine in leaves:
        pairs.append(("gradient", *(np.zeros(mine.shape) if g is None else g for g in (mine.grad, x.grad))))
        x.grad = None  # samples share their leaves
    return [what for what, a, b in pairs if not close(a, np.asarray(b), tolerance)]


def close(a, b, tolerance):
    return np.allclose(a, b, tolerance, tolerance * (1 + np.abs(b[np.isfinite(b)]).max(initial=0)), equal_nan=True)


@pytest.mark.filterwarnings("ignore")  # PyTorch's about even kernels, NumPy's about powers of negative numbers
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str)
def test_samples(dtype):
    counts, wrong = collections.defaultdict(collections.Counter), []
    for op in OPS:
        for i, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=True)):
            if op.name == "nn.functional.max_pool2d" and i % 61:  # of 1440
                continue
            try:
                found = differences(op, sample)
            except (NotImplementedError, TypeError, ValueError):
                counts[op.name]["refused"] += 1
                continue
            counts[op.name]["wrong" if found else "right"] += 1
            wrong += [(op.formatted_name, sample.summary(), found)] if found else []
    for name, kinds in counts.items():
        print(name, dict(kinds))
    assert not wrong
    refused = {name.removeprefix("nn.functional."): kinds["refused"] for name, kinds in counts.items()}
    assert {name: n for name, n in refused.items() if n} == {
        "add": 2, "sub": 2,  # alpha
        "cat": 1,  # an empty Tensor of another number of axes
        "div": 18,  # rounding_mode
        "interpolate": 150, "pad": 38}  # other modes, other numbers of axes
    assert sum(kinds["right"] for kinds in counts.values()) >= 700
