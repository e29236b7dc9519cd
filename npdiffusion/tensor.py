"""The autograd engine: a Tensor, the node that made it, and the walk back through the nodes.

An op computes its result with plain arrays and calls ``record`` with a closure that turns the
gradient of the result into the gradients of its inputs. That closure is all the engine knows of it::

    def exp(input):
        y = np.exp(input.data)
        return record(y, "exp", (input,), lambda g: (g * y,))
"""

from contextlib import ContextDecorator
from contextvars import ContextVar
from inspect import isgeneratorfunction
from operator import attrgetter, index

import numpy as np

from .device import array_module, device_of, to_device
from .kernels import kernels

_no_grads = ContextVar("no_grads", default=0)  # how many no_grad this thread (or asyncio task) is inside


class no_grad(ContextDecorator):
    """Context manager and decorator: ops inside record no graph, so their inputs can be freed at once.

    As in PyTorch it holds for one thread: others record.
    """

    def __enter__(self):
        _no_grads.set(_no_grads.get() + 1)

    def __exit__(self, *exc):
        _no_grads.set(_no_grads.get() - 1)

    def __call__(self, function):
        if isgeneratorfunction(function):  # its body would run outside
            raise TypeError(f"no_grad cannot decorate the generator function {function.__name__}: use it inside")
        return super().__call__(function)


class Node:
    """One recorded op: edges to what its inputs came from, and the closure for their gradients.

    An edge is another Node, a leaf Tensor, or None where no gradient is wanted. A node does not hold
    its own result: only what the closure needs stays in memory.
    """

    __slots__ = ("name", "edges", "backward", "shape", "dtype")

    def __init__(self, name, edges, backward, shape, dtype):
        self.name, self.edges, self.backward, self.shape, self.dtype = name, edges, backward, shape, dtype


class Tensor:
    """An array that remembers how it was computed.

    Args:
        data: array (NumPy's or CuPy's), Tensor, number or nested list. Arrays are not copied and keep their dtype
            (float32, float64, integers or bool); Python floats become float32, as in PyTorch.
        requires_grad: whether ``backward`` shall leave d(result)/d(this) in ``.grad``.
        device: "cpu" or "cuda" to move the data there; None leaves them where they are.

    Attributes: ``data`` the array; ``grad`` an array of the same shape, dtype and device, or None;
    ``requires_grad``; ``shape``, ``ndim``, ``dtype``, ``device`` ("cpu", "cuda:0", ...).
    """

    __slots__ = ("data", "grad", "requires_grad", "node", "__weakref__")
    __array_ufunc__ = None  # ndarray * Tensor asks the Tensor, not NumPy

    def __init__(self, data, requires_grad=False, device=None):
        if isinstance(data, Tensor):
            data = data.data
        elif isinstance(data, np.generic):  # before float: np.float64 is one, and what an op makes of 0-d arrays
            data = np.asarray(data)
        elif isinstance(data, (bool, int, float, list, tuple)):
            data = np.asarray(data)
            if data.dtype == np.float64:
                data = data.astype(np.float32)
        array_module(data)  # TypeError for anything else
        if data.dtype.kind not in "fiub" or data.dtype.itemsize > 8 or data.dtype == np.float16:
            raise TypeError(f"a Tensor holds float32, float64, integers or bool, not {data.dtype}; use .astype first")
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"only floating-point Tensors can require gradients, not {data.dtype}")
        self.data = data if device is None else to_device(data, device)
        self.grad, self.requires_grad, self.node = None, requires_grad, None

    shape = property(attrgetter("data.shape"))
    ndim = property(attrgetter("data.ndim"))
    dtype = property(attrgetter("data.dtype"))
    device = property(lambda self: device_of(self.data))
    is_leaf = property(lambda self: self.node is None)

    def __repr__(self):
        grad = f", grad_fn={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        device = "" if self.device == "cpu" else f", device={self.device!r}"
        values = np.array2string(to_device(self.data, "cpu"), separator=", ", threshold=50)
        return f"Tensor({values}, dtype={self.dtype}{device}{grad})"

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    __hash__ = object.__hash__  # == compares element by element; a set or dict key is the object itself

    def __bool__(self):
        return bool(self.item())

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __index__(self):
        return index(self.item())

    def __round__(self, ndigits=None):
        return round(self.item(), ndigits)

    def __format__(self, spec):
        number = self.data.size == 1 and (spec or not self.ndim)
        return format(self.item(), spec) if number else super().__format__(spec)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.numpy(), dtype, copy=copy)

    def size(self, dim=None):
        """The shape, or its entry ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self):
        """Number of elements."""
        return self.data.size

    def item(self):
        """The only element, as a Python number; ValueError if there are more. On a GPU this waits for its result."""
        if self.data.size != 1:
            raise ValueError(f"item() needs a Tensor of one element, this one has shape {self.shape}")
        return self.data.item()

    def detach(self):
        """The same array, outside the graph."""
        return Tensor(self.data)

    def numpy(self):
        """The array itself (not a copy). RuntimeError if the Tensor is part of a graph, or on a GPU."""
        if self.requires_grad:
            raise RuntimeError("this Tensor requires gradients; call .detach().numpy()")
        if self.device != "cpu":
            raise RuntimeError(f"this Tensor is on {self.device}; call .cpu().numpy()")
        return self.data

    def backward(self, grad=None):
        """Add d(self)/d(leaf) · grad to ``.grad`` of every leaf that requires it, and free the graph.

        Reverse-mode differentiation (Griewank & Walther 2008, ch. 3): nodes are visited in reverse
        topological order, so each one runs once, when its whole gradient is known.

        Args:
            grad: array or Tensor of this Tensor's shape and dtype; may be left out for one element (then 1).

        Raises:
            RuntimeError: nothing here requires gradients, or the graph was freed by an earlier backward.
            ValueError, TypeError: ``grad`` is missing, or of another shape, dtype or device.
        """
        if not self.requires_grad:
            raise RuntimeError("backward() on a Tensor that does not require gradients: set requires_grad=True "
                               "on an input, and compute outside no_grad()")
        if grad is None:
            if self.data.size != 1:
                raise ValueError(f"backward() without a gradient needs one element, this Tensor has shape "
                                 f"{self.shape}: pass grad, or reduce with sum() or mean() first")
            grad = array_module(self.data).ones_like(self.data)
        grad = grad.data if isinstance(grad, Tensor) else grad
        if device_of(grad) != self.device:
            raise TypeError(f"backward() expects a gradient on {self.device}, got one on {device_of(grad)}")
        if grad.shape != self.shape:
            raise ValueError(f"backward() expects a gradient of shape {self.shape}, got {grad.shape}")
        if grad.dtype != self.dtype:
            raise TypeError(f"backward() expects a gradient of dtype {self.dtype}, got {grad.dtype}")
        if self.node is None:
            _add_to_leaf(self, grad, others=[grad])
        else:
            _walk_back(self.node, grad)


def _walk_back(root, grad):
    """Each node turns the gradient of its result into gradients of its inputs; where several meet they are summed."""
    order, grads = _topological_order(root), {root: (grad, False)}  # node -> its gradient so far, whether it is ours
    while order:
        node = order.pop()
        g, _ = grads.pop(node, (None, False))
        edges, backward = node.edges, node.backward
        node.edges, node.backward = (), None  # frees the closure's arrays after this turn
        if g is None:
            continue
        parts = [None if part is None or edge is None else _fitted(part, edge, node)
                 for edge, part in zip(edges, backward(g))]
        for i, (edge, part) in enumerate(zip(edges, parts)):
            if part is None:
                continue
            if isinstance(edge, Tensor):
                _add_to_leaf(edge, part, others=[g, *parts[:i], *parts[i + 1:]])
            elif edge not in grads:
                grads[edge] = part, False  # others may hold it: the same array can be the gradient of two inputs
            else:  # two arrays summed make one that nobody else holds: what comes after is added to it in place
                total, ours = grads[edge]
                grads[edge] = kernels(part).add(total, part, out=total if ours else None), True


def _fitted(g, edge, node):
    """g in the shape and dtype of the input it belongs to: summed over axes that broadcasting added or stretched."""
    if g.shape != edge.shape:
        added = g.ndim - len(edge.shape)
        stretched = tuple(i + added for i, size in enumerate(edge.shape) if size == 1)
        if added < 0 or any(g.shape[i + added] != size != 1 for i, size in enumerate(edge.shape)):
            raise RuntimeError(f"the backward of {node.name} made a gradient of shape {g.shape} "
                               f"for an input of shape {edge.shape}")
        g = g.sum(tuple(range(added)) + stretched, keepdims=True).reshape(edge.shape)
    g = np.asarray(g) if isinstance(g, np.generic) else g
    return g if g.dtype == edge.dtype else g.astype(edge.dtype)


def _add_to_leaf(leaf, g, others):
    """Add g to ``leaf.grad``, never in place: what is there may be held elsewhere. The first one is kept as it is if
    nobody else has its memory: the arrays ``others``, or its own elements more than once (a stride of 0)."""
    xp = array_module(g)
    if leaf.grad is not None:
        leaf.grad = xp.asarray(leaf.grad + g)
    elif all(g.strides) and not any(isinstance(a, type(g)) and xp.may_share_memory(g, a) for a in others):
        leaf.grad = g
    else:
        leaf.grad = xp.array(g, order="K")


def _topological_order(root):
    """Nodes below ``root``, each after the nodes it depends on (depth first, with a stack of our own:
    a chain of 100,000 ops must not meet Python's recursion limit)."""
    order, seen, stack = [], set(), [(root, False)]  # a node, and whether those below it are in the order already
    while stack:
        node, complete = stack.pop()
        if complete:
            order.append(node)
        elif node not in seen:
            if node.backward is None:
                raise RuntimeError("this graph was already freed by backward(); compute the result again")
            seen.add(node)
            stack.append((node, True))
            stack += [(edge, False) for edge in reversed(node.edges) if isinstance(edge, Node)]
    return order


def record(data, name, inputs, backward):
    """A Tensor of ``data``, the result of an op, and its place in the graph.

    Args:
        data: the result's array.
        name: the op's name, for ``graph`` and error messages.
        inputs: the Tensors it was computed from (None where an optional one was not given).
        backward: function of the result's gradient; returns one gradient (or None) for each input: a new array, or a
            view of the gradient it got, never of what it keeps. Where an input was broadcast the engine sums over
            the added axes. The function should hold on to arrays, not Tensors, and to no more than it needs.
    """
    out = Tensor.__new__(Tensor)  # without the checks of what users give
    out.data = np.asarray(data) if isinstance(data, np.generic) else data  # NumPy makes scalars of 0-d arrays
    out.grad, out.requires_grad, out.node = None, False, None
    if not _no_grads.get() and out.data.dtype.kind == "f" and any([x is not None and x.requires_grad for x in inputs]):
        edges = tuple([None if x is None or not x.requires_grad else x.node or x for x in inputs])
        out.requires_grad, out.node = True, Node(name, edges, backward, out.data.shape, out.data.dtype)
    return out
