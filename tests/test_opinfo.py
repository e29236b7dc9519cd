"""Every sample input that PyTorch tests our ops with (its OpInfo), through ours and PyTorch's: results and gradients.

An op may refuse a sample, with an error that says so; what it computes has to be right.
"""

import collections
import sys
import types
import unittest

import numpy as np
import pytest

from npdiffusion import Tensor
from npdiffusion import functional as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed; nothing here needs it but these comparisons")
sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))  # what PyTorch's tests need
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


def flat(results):
    return list(results) if isinstance(results, tuple) else [results]


def outcome(op, sample):
    """None if we agree with PyTorch, else what went wrong; NotImplementedError, TypeError, ValueError for a refusal."""
    leaves = []
    args = [converted(x, leaves) for x in (sample.input, *sample.args)]
    options = {name: converted(x, leaves) for name, x in sample.kwargs.items()}
    torch.manual_seed(0)
    theirs = flat(op.op(sample.input, *sample.args, **sample.kwargs))
    ours = flat(OURS[op.name](*args, **options))
    tolerance = 1e-4 if sample.input is None or torch.float32 in (y.dtype for y in theirs) else 1e-9
    same = len(ours) == len(theirs) and all(
        a.shape == tuple(b.shape) and str(a.dtype) == str(b.dtype).removeprefix("torch.") for a, b in zip(ours, theirs))
    if not same:
        return f"{[(a.shape, a.dtype) for a in ours]} for {[(b.shape, b.dtype) for b in theirs]}"
    if 0 < sample.kwargs.get("dropout_p", sample.kwargs.get("p", 0.5 if "dropout" in op.name else 0)) < 1 and (
            sample.kwargs.get("training", True)):
        return None  # random numbers
    rng, different = np.random.default_rng(0), []
    for a, b in zip(ours, theirs):
        different += [] if close(a.data, b, tolerance) else ["result"]
        if a.requires_grad and b.requires_grad:
            g = np.asarray(rng.standard_normal(a.shape), a.dtype)
            a.backward(g)
            b.backward(torch.tensor(g))
        elif a.requires_grad:
            different.append("requires_grad")
    for x, mine in leaves:
        zeros = np.zeros(mine.shape, mine.dtype)
        grad = zeros if mine.grad is None else mine.grad
        different += [] if close(grad, torch.tensor(zeros) if x.grad is None else x.grad, tolerance) else ["gradient"]
        x.grad = None
    return " and ".join(different) or None


def close(a, b, tolerance):
    b = b.detach().numpy()
    return np.allclose(a, b, tolerance, tolerance * (1 + np.abs(b[np.isfinite(b)]).max(initial=0)), equal_nan=True)


@pytest.fixture(scope="module")
def counts():
    counts, wrong = collections.defaultdict(collections.Counter), []
    for op in OPS:
        for dtype in (torch.float32, torch.float64):
            for i, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=True)):
                if op.name == "nn.functional.max_pool2d" and i % 37:  # of its 1440
                    continue
                try:
                    said = outcome(op, sample)
                    kind = "wrong" if said else "right"
                except (NotImplementedError, TypeError, ValueError) as error:
                    kind, said = "refused", str(error)
                except Exception as error:
                    kind, said = "wrong", repr(error)
                counts[op.name][kind] += 1
                if kind != "right":
                    wrong.append((kind, op.formatted_name, dtype, str(sample.summary())[:300], said[:150]))
    for line in sorted(set((k, n, s) if k == "refused" else (k, n, d, s, sa) for k, n, d, sa, s in wrong), key=str): print(*line)
    return counts


def test_samples(counts):
    for name, kinds in counts.items():
        print(name, dict(kinds))
    total = sum(counts.values(), collections.Counter())
    print(total)
    assert 0
