"""The engine: Tensors, the walk back through the graph, its memory and its errors."""

import gc
import operator
import re
import weakref

import numpy as np
import pytest

import npdiffusion
from npdiffusion import Tensor, functional as F, graph, no_grad


def leaf(*shape, dtype=np.float64, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def test_dtypes_as_in_pytorch():
    assert Tensor([1.0, 2.0]).dtype == Tensor(0.5).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64 and Tensor([True]).dtype == bool
    assert Tensor(np.zeros(2)).dtype == np.float64 and Tensor(np.float64(1)).dtype == np.float64
    x = Tensor(np.ones(3, np.float32))
    for y in (x * 2.5, 1 - x, x / 3, x ** 2, x + np.float64(1), x.mean() * 0.1, x * Tensor([1, 2, 3])):
        assert y.dtype == np.float32


def test_a_number_in_a_tensor_does_not_change_the_dtype():
    """As in PyTorch, if it is of no higher kind: () beside (3,)."""
    x, small = Tensor(np.ones(3, np.float32)), Tensor(np.ones(3, np.int8))
    for number in (Tensor(np.float64(2)), np.array(2.0), np.float64(2), Tensor(2)):
        for op in (F.add, F.div, F.maximum, F.mul, F.pow, F.sub):
            assert op(x, number).dtype == op(number, x).dtype == np.float32
        assert F.where(x > 0, x, number).dtype == x.clamp(number).dtype == np.float32
    assert (small + Tensor(2)).dtype == np.int8 and (small + np.array(2.0)).dtype == np.float64
    assert (Tensor([True]) + Tensor(2)).dtype == np.int64
    assert (Tensor(np.float32(1)) * Tensor(np.float64(1))).dtype == (x * Tensor(np.ones(1))).dtype == np.float64


@pytest.mark.parametrize("bad", [np.zeros(2, np.float16), np.zeros(2, complex), np.array(["a"])])
def test_unsupported_dtypes(bad):
    with pytest.raises(TypeError, match="float32, float64"):
        Tensor(bad)


def test_integers_cannot_require_gradients():
    with pytest.raises(TypeError, match="floating-point"):
        Tensor([1, 2], requires_grad=True)


def test_arrays_are_shared_not_copied():
    a = np.zeros(3, np.float32)
    assert Tensor(a).data is a and Tensor(a).detach().numpy() is a


def test_operators_and_reflected_ones():
    x, a = leaf(3), np.array([1.0, 2.0, 4.0])
    assert np.allclose((2 / x).data, 2 / x.data) and np.allclose((2 ** x).data, 2 ** x.data)
    for y in (a * x, a + x, a - x, a / x):  # NumPy leaves it to the Tensor
        assert isinstance(y, Tensor) and y.requires_grad
    assert ((x > 0).data == (x.data > 0)).all() and (x == x).data.all() and not (x != x).data.any()


def test_a_used_twice_gets_both_gradients():
    x = leaf(4)
    y = x * x + 3 * x
    (y * y.detach()).sum().backward()
    assert np.allclose(x.grad, (2 * x.data + 3) * y.data)


def test_a_number_used_many_times():
    x = leaf()
    y = x * 1.0
    (y * 2 + y * 3 + y * 5 + y * 7).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad == 17


def test_gradients_add_up_over_backwards_and_do_not_alias():
    x, y = leaf(4), leaf(4, seed=1)
    g = np.ones(4)
    (x + y).backward(g)
    assert x.grad is not y.grad and not np.shares_memory(x.grad, y.grad) and not np.shares_memory(x.grad, g)
    held = x.grad
    (x * 2).backward(g)
    assert np.array_equal(x.grad, np.full(4, 3.0)) and np.array_equal(held, np.ones(4))
    assert np.array_equal(y.grad, np.ones(4)) and np.array_equal(g, np.ones(4))


def test_shared_gradient_buffers_are_never_written_to():
    """a and b receive the very same array from add; a's branch then adds to it."""
    x = leaf(4)
    a, b = x * 1.0, x * 1.0
    c = a + b
    (c + a * 5.0 + a * 7.0).backward(np.ones(4))
    assert np.allclose(x.grad, 1 + 1 + 5 + 7)


def test_one_new_array_for_two_inputs():
    """The op gives both inputs the same array; what is added to one must not reach the other."""
    x, y = leaf(4), leaf(4, seed=1)
    a, b = x * 1.0, y * 1.0

    def backward(g):
        h = 3 * g
        return h, h

    c = npdiffusion.tensor.record(3 * (a.data + b.data), "triple", (a, b), backward)
    (c + a * 5.0 + a * 7.0 + b * 11.0).backward(np.ones(4))
    assert np.allclose(x.grad, 3 + 5 + 7) and np.allclose(y.grad, 3 + 11)
    (npdiffusion.tensor.record(3 * (x.data + y.data), "triple", (x, y), backward)).backward(np.ones(4))
    assert not np.shares_memory(x.grad, y.grad)


def test_broadcast_gradients_are_summed_back():
    x, y = leaf(3, 1), leaf(2, 1, 4)
    (x * y).backward(np.ones((2, 3, 4)))
    assert np.allclose(x.grad, np.broadcast_to(y.data.sum(), (3, 1))) and x.grad.shape == (3, 1)
    assert y.grad.shape == (2, 1, 4) and np.allclose(y.grad, x.data.sum())


def test_a_chain_of_100_000_nodes():
    x = leaf(1)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1
    for _ in range(100_000):
        x = x * 1.0
    del x  # a graph that nobody walks back through must be freed without recursion, too
    gc.collect()


def test_buffers_are_freed_as_backward_goes():
    x = leaf(1000)
    kept = []
    y = x
    for _ in range(5):
        y = F.exp(y * 0.1)
        kept.append(weakref.ref(y))
    loss = y.sum()
    node = loss.node
    del y
    assert all(ref() is None for ref in kept)  # nodes do not hold their results
    loss.backward()
    assert node.edges == () and node.backward is None


def test_second_backward_over_a_freed_graph():
    x = leaf(3)
    y = x * x
    a, b = y.sum(), (y * 2).sum()
    a.backward()
    before = x.grad.copy()
    for again in (a, b):
        with pytest.raises(RuntimeError, match="freed"):
            again.backward()
    assert np.array_equal(x.grad, before)


def test_backward_errors():
    x = leaf(3)
    with pytest.raises(ValueError, match=r"one element.*\(3,\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(4,\)"):
        (x * 2).backward(np.ones(4))
    with pytest.raises(TypeError, match="float64, got float32"):
        (x * 2).backward(np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match="requires_grad"):
        x.detach().sum().backward()
    with pytest.raises(TypeError, match="NumPy array"):
        (x * 2).backward([1.0, 1.0, 1.0])


def test_an_op_that_returns_a_wrong_shape_is_named():
    x = leaf(3)
    y = npdiffusion.tensor.record(x.data * 2, "crooked", (x,), lambda g: (np.ones((2, 5)),))
    with pytest.raises(RuntimeError, match="crooked"):
        y.backward(np.ones(3))


def test_no_grad_nests_and_decorates():
    x = leaf(2)

    @no_grad()
    def double(v):
        return v * 2

    same = no_grad()
    with same:
        with same, no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert not double(x).requires_grad and (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert (x * 2).requires_grad


def test_frozen_inputs_get_no_gradient():
    x, w = leaf(1, 2, 4, 4), Tensor(np.ones((3, 2, 3, 3)))
    F.conv2d(x, w).sum().backward()
    assert x.grad is not None and w.grad is None


def test_item_bool_len_iter():
    assert Tensor([2.5]).item() == 2.5 and float(Tensor(2.5)) == 2.5 and int(Tensor(3)) == 3 and bool(Tensor(True))
    with pytest.raises(ValueError, match="one element"):
        Tensor([1.0, 2.0]).item()
    assert [row.shape for row in leaf(3, 2)] == [(2,)] * 3
    with pytest.raises(TypeError, match="unsized"):
        len(Tensor(1.0))
    with pytest.raises(RuntimeError, match="detach"):
        leaf(2).numpy()
    assert "grad_fn=mul" in repr(leaf(2) * 2) and "requires_grad" in repr(leaf(2))


def test_pythons_protocols_of_numbers():
    loss, one, many = Tensor(np.float32(0.123456)), Tensor([2.5]), Tensor([[1.26, 2.0]])
    assert f"{loss:.3f}" == "0.123" and f"{one:6.2f}" == "  2.50" and f"{Tensor(7):03d}" == "007"
    assert f"{loss}" == str(loss.item()) and f"{one}" == str(one) and f"{many}" == str(many)
    assert round(loss, 2) == 0.12 and round(one) == 2 and type(round(one)) is int
    assert "abc"[Tensor(1)] == "b" and operator.index(Tensor([4])) == 4 and [0, 1, 2, 3][Tensor(1):Tensor(3)] == [1, 2]
    with pytest.raises(TypeError, match="format"):
        f"{many:.3f}"
    for bad in (loss, one):
        with pytest.raises(TypeError, match="integer"):
            operator.index(bad)
    for f in (round, operator.index):
        with pytest.raises(ValueError, match="one element"):
            f(many)


def test_numpys_protocol_of_arrays(cupy):
    x = Tensor(np.arange(3, dtype=np.float32))
    assert np.asarray(x) is x.data and np.asarray(x, dtype=np.float64).tolist() == [0, 1, 2]
    assert not np.shares_memory(np.array(x), x.data) and np.stack([x, x]).dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(x, dtype=np.float64, copy=False)
    for bad, match in ((leaf(3), "detach"), (leaf(3) * 2, "detach"), (x.cuda(), "cpu")):
        with pytest.raises(RuntimeError, match=match):
            np.asarray(bad)


def test_nothing_becomes_an_array_unasked():
    x, a = leaf(3), np.ones(3)
    for bad in ([x, x], (x * 2,), [[1.0, x.sum()]]):  # which would cut their graph
        with pytest.raises(RuntimeError, match="requires gradients"):
            Tensor(bad)
    for f in (np.maximum, np.add):
        for args in ((x.detach(), a), (a, x.detach())):
            with pytest.raises(TypeError, match="ufunc"):
                f(*args)
    with pytest.raises(TypeError, match="ufunc"):
        a += x
    assert a.tolist() == [1, 1, 1]
    x += a
    assert isinstance(x, Tensor) and x.requires_grad


def test_to():
    x = leaf(3, dtype=np.float32)
    y = x.double()
    (y * y).sum().backward()
    assert y.dtype == np.float64 and x.grad.dtype == np.float32 and x.to("cpu") is x


def test_graph_is_dot_text():
    x, w = leaf(2, 3), leaf(4, 3)
    text = graph(F.relu(F.linear(x, w)).sum())
    assert text.startswith("digraph") and text.count("->") == 4
    assert all(name in text for name in ("linear", "relu", "sum", "2×4", "scalar"))
    assert len(re.findall("leaf", text)) == 2


def test_manual_seed_repeats_and_leaves_numpys_global_generator_alone():
    state = np.random.get_state()[1].copy()
    npdiffusion.manual_seed(3)
    a = npdiffusion.nn.Linear(4, 5).weight.data
    npdiffusion.manual_seed(3)
    assert np.array_equal(a, npdiffusion.nn.Linear(4, 5).weight.data)
    assert np.array_equal(state, np.random.get_state()[1])


def test_number_of_threads():
    before = npdiffusion.get_num_threads()
    x, w = (np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in ((5, 8, 16, 16), (8, 8, 3, 3)))
    try:
        results = []
        for n in (1, 2, 3):
            npdiffusion.set_num_threads(n)
            assert npdiffusion.get_num_threads() == n
            results.append(F.conv2d(Tensor(x), Tensor(w), padding=1).data)
        assert all(np.allclose(results[0], r, atol=1e-5) for r in results)
        for bad in (0, -1, 1.5, True, "2"):
            with pytest.raises(ValueError, match="integer >= 1"):
                npdiffusion.set_num_threads(bad)
    finally:
        npdiffusion.set_num_threads(before)
