"""A stand-in for CuPy on machines without a GPU: arrays of NumPy's that behave as CuPy's do, and that are stricter.

They are never converted to NumPy's silently and never mixed with them; flags, memory orders and scalars are CuPy's;
memory is NaN until it is written; only functions that CuPy has are here, with its parameters (test_devices.py compares
them with the real package where it is installed). RawModule runs the CUDA sources on the CPU (cuda_on_cpu.py).

``counts`` counts what a GPU would have to be waited for (reading a value, masks) and what is copied to it;
``forbid_waiting`` makes the former an error.

A capturing stream executes nothing, as far as can be seen: what is called (each function under ``@op``) is recorded,
and all memory is at the end as it was before, new memory is poison. A graph's ``launch`` calls it all again. Refused
are waiting, copies to the GPU, cuBLAS, what CuPy would have to compile first, and memory of the common pool; and a
launch when memory that was there before, or the graph's pool, has been freed. The memory of a call is that of its
arrays, and that whose addresses a kernel's structs hold.
"""

import contextlib
import functools
import time
import types
import weakref
from collections import Counter

import cuda_on_cpu
import numpy as np

__all__ = ["counts", "forbid_waiting", "module", "names"]

counts = Counter()
_forbidden = False


@contextlib.contextmanager
def forbid_waiting():
    """Context in which an AssertionError meets whoever waits for the GPU."""
    global _forbidden
    _forbidden = True
    try:
        yield
    finally:
        _forbidden = False


def wait(what):
    assert not _forbidden, f"{what} waits for the GPU"
    if Stream.current.graph:
        raise RuntimeError(f"the current stream is capturing, so synchronous API calls are disallowed: {what}")
    counts["waits"] += 1


def copied():
    """An array of the CPU is copied to the GPU. (While capturing CuPy would record the copy of a passing buffer.)"""
    assert not Stream.current.graph, "a copy to the GPU is captured"
    counts["copies"] += 1


def op(f):
    """Make a function one that is recorded while capturing."""
    @functools.wraps(f)
    def call(*args, **kwargs):
        graph = Stream.current.graph
        known = f.__name__, frozenset(x.dtype.name for x in arrays_in([*args, *kwargs.values()]))
        if graph is None:
            compiled.add(known)
        return graph.record(known, f, args, kwargs) if graph and not graph.busy else f(*args, **kwargs)

    return call


compiled = set()  # (function, dtypes) of what was called before


def arrays_in(args, addressed=False):
    """The arrays among the arguments; if ``addressed``, also those whose addresses structs hold."""
    for x in args:
        if isinstance(x, ndarray):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from arrays_in(x, addressed)
        elif addressed and isinstance(x, np.void):
            for field in cuda_on_cpu.addresses(x):
                yield from map(owner, field[field != 0].tolist())


owners = weakref.WeakValueDictionary()  # address -> the array whose memory begins there


def owner(address):
    """The array in whose memory an address lies, not a view of it; RuntimeError if there is none any more."""
    if address in owners:
        return owners[address]
    for start, array in list(owners.items()):
        if start <= address < start + array.nbytes:
            return array
    raise RuntimeError(f"a kernel was given an address, {address:#x}, of memory that was freed")


class Graph:
    """What was called while capturing."""

    def __init__(self):
        self.calls, self.new, self.before, self.busy = [], {}, {}, False

    def record(self, known, f, args, kwargs):
        if known not in compiled:
            raise RuntimeError(f"{known[0]} of {', '.join(known[1])} would be compiled while capturing")
        for x in arrays_in([*args, *kwargs.values()], addressed=True):
            root = x if x.base is None else x.base
            if id(root) not in self.before and id(root) not in self.new:
                self.before[id(root)] = weakref.ref(root), root._a, root._a.copy()
        self.busy = True
        try:
            result = f(*args, **kwargs)
        finally:
            self.busy = False
        place = result._a if id(result) in self.new else None
        self.calls.append((place, f, self._held(args), {name: self._held(x) for name, x in kwargs.items()}))
        return result

    def _held(self, x):
        """An argument; an array that was there before without what keeps its memory alive."""
        if isinstance(x, (list, tuple)):
            return type(x)(map(self._held, x))
        if not isinstance(x, ndarray) or id(x if x.base is None else x.base) in self.new:
            return x
        alone = ndarray.__new__(ndarray)
        alone._a, alone.base = x._a, None
        return alone

    def made(self, array):
        """New memory: refused unless it is of a pool of its own."""
        if _allocator is None:
            raise RuntimeError("memory of the common pool is captured: others may be given it later")
        self.pool = weakref.ref(_allocator.__self__)
        self.new[id(array)] = array

    def end(self):
        for _, memory, copy in self.before.values():
            memory[...] = copy
        for array in self.new.values():
            poison(array._a)

    def upload(self, stream=None):
        pass

    def launch(self, stream=None):
        if any(root() is None for root, *_ in self.before.values()) or self.new and self.pool() is None:
            raise RuntimeError("the graph's memory was freed")
        for place, f, args, kwargs in self.calls:
            result = f(*args, **kwargs)
            if place is not None:
                place[...] = result._a


class Stream:
    """The null stream is Stream.null; only ``current`` and capturing have a meaning here."""

    ptr = 0  # the address of nothing

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.null, self.graph, self.before = null, None, []

    def __enter__(self):
        self.before.append(Stream.current)
        Stream.current = self

    def __exit__(self, *exc):
        Stream.current = self.before.pop()
        assert not self.graph, "left while capturing"

    def begin_capture(self, mode=None):
        if self.null or self.graph:
            raise RuntimeError("cannot capture on the default (legacy) stream" if self.null else "is capturing already")
        self.graph = Graph()

    def end_capture(self):
        if self.graph is None:
            raise RuntimeError("cudaErrorIllegalState")
        graph, self.graph = self.graph, None
        graph.end()
        return graph

    def is_capturing(self):
        return self.graph is not None


Stream.current = Stream(null=True)
_allocator = None


class MemoryPool:
    def malloc(self, size):
        raise NotImplementedError("the stand-in's memory is NumPy's")


@contextlib.contextmanager
def using_allocator(allocator=None):
    global _allocator
    before, _allocator = _allocator, allocator
    try:
        yield
    finally:
        _allocator = before


def bare(x, what="operand"):
    """The NumPy array in x; scalars as they are. TypeError for arrays of the host and for lists."""
    if isinstance(x, ndarray):
        return x._a
    if x is None or isinstance(x, (bool, int, float, np.generic)):
        return x
    raise TypeError(f"Unsupported type {type(x)} ({what})")


def bares(x):
    return tuple(map(bare, x)) if isinstance(x, (tuple, list)) else bare(x)


def new(a):
    """A result of its own memory, in C order as nearly all of CuPy's are."""
    return ndarray(_array=np.array(a, order="C", copy=not isinstance(a, np.ndarray) or None))


class Flags:
    def __init__(self, a, base):
        self.c_contiguous, self.f_contiguous = a.flags.c_contiguous, a.flags.f_contiguous
        self.owndata = base is None


class ndarray:
    __slots__ = ("_a", "base", "__weakref__")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape=(), dtype=float, memptr=None, strides=None, order="C", *, _array=None, _base=None):
        if _array is None:
            _array = np.empty(shape, dtype, order)
            poison(_array)
        self._a, self.base = _array, _base
        if _base is None:
            if _array.size:
                owners[_array.__array_interface__["data"][0]] = self
            if Stream.current.graph:
                Stream.current.graph.made(self)

    def _seen(self, a):
        """A view of this array's memory."""
        return ndarray(_array=a, _base=self if self.base is None else self.base)

    shape = property(lambda self: self._a.shape)
    strides = property(lambda self: self._a.strides)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    dtype = property(lambda self: self._a.dtype)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    flags = property(lambda self: Flags(self._a, self.base))
    data = property(lambda self: types.SimpleNamespace(ptr=self._a.ctypes.data if self.size else 0, device_id=0))
    T = property(lambda self: self.transpose())

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # what NumPy's scalars ask for when they stand left of an array. (CuPy would also serve np.exp(array).)
        if method != "__call__" or kwargs or not any(isinstance(x, np.generic) for x in inputs):
            raise TypeError(f"numpy.{ufunc.__name__} was called with a CuPy array")
        return getattr(module, ufunc.__name__)(*inputs)

    def __repr__(self):
        return repr(self.get())

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    # waiting for the GPU

    def get(self, stream=None, order="C", out=None, blocking=True):
        wait("get()")
        return np.array(self._a, order=order)

    def item(self):
        wait("item()")
        return self._a.item()

    def tolist(self):
        wait("tolist()")
        return self._a.tolist()

    def __float__(self):
        wait("float()")
        return float(self._a)

    def __int__(self):
        wait("int()")
        return int(self._a)

    def __bool__(self):
        wait("bool()")
        return bool(self._a)

    # moving elements

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"set() expects a NumPy array {self.dtype} {self.shape}, got {arr!r}")
        wait("set()")  # CuPy's copies without a buffer of its own
        self._a[...] = arr

    def fill(self, value):
        self._a.fill(bare(value))

    def copy(self, order="C"):
        return ndarray(_array=self._a.copy(order))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        same = self.dtype == np.dtype(dtype) and not copy
        return self if same else ndarray(_array=self._a.astype(dtype, order))

    def _view_or_copy(self, a):
        return self._seen(a) if np.may_share_memory(a, self._a) else new(a)

    def reshape(self, *shape, order="C"):
        return self._view_or_copy(self._a.reshape(*shape, order=order))

    def ravel(self, order="C"):
        return self._view_or_copy(self._a.ravel(order))

    def flatten(self, order="C"):
        return new(self._a.flatten(order))

    def transpose(self, *axes):
        return self._seen(self._a.transpose(*axes))

    def swapaxes(self, axis1, axis2):
        return self._seen(self._a.swapaxes(axis1, axis2))

    def squeeze(self, axis=None):
        return self._seen(self._a.squeeze(axis))

    def take(self, indices, axis=None, out=None):
        return new(self._a.take(bare(indices), axis))

    def repeat(self, repeats, axis=None):
        return new(self._a.repeat(repeats, axis))

    def _index(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        out = []
        for i in parts:
            if isinstance(i, (list, np.ndarray)):
                raise TypeError(f"index of the host: {i!r}")  # CuPy would copy it to the GPU
            if isinstance(i, ndarray) and i.dtype.kind == "b":
                wait("a mask")
            out.append(i if i is None or i is ... or isinstance(i, slice) else bare(i))
        return tuple(out)

    def __getitem__(self, index):
        index = self._index(index)
        a = self._a[index]
        if any(isinstance(i, np.ndarray) for i in index):
            return new(a)
        return self._seen(a if isinstance(a, np.ndarray) else self._a[(*index, ...)])

    def __setitem__(self, index, value):
        self._a[self._index(index)] = bare(value, "value")

    # reductions

    def clip(self, min=None, max=None, out=None):
        return new(self._a.clip(bare(min), bare(max)))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return new(self._a.sum(axis, dtype, keepdims=keepdims))

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return new(self._a.mean(axis, dtype, keepdims=keepdims))

    def max(self, axis=None, out=None, keepdims=False):
        return new(self._a.max(axis, keepdims=keepdims))

    def min(self, axis=None, out=None, keepdims=False):
        return new(self._a.min(axis, keepdims=keepdims))

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        return new(self._a.argmax(axis, keepdims=keepdims))

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False):
        return new(self._a.argmin(axis, keepdims=keepdims))

    def all(self, axis=None, out=None, keepdims=False):
        return new(self._a.all(axis, keepdims=keepdims))

    def any(self, axis=None, out=None, keepdims=False):
        return new(self._a.any(axis, keepdims=keepdims))


def poison(a):
    a.fill(np.nan if a.dtype.kind == "f" else True if a.dtype.kind == "b" else 99)


def ufunc(name):
    compute = getattr(np, name)

    def call(*args, out=None, dtype=None):
        if not 0 <= len(args) - compute.nin <= 1:
            raise TypeError(f"Wrong number of arguments for {name!r}")
        args, out = args[:compute.nin], args[compute.nin] if len(args) > compute.nin else out
        if out is None:
            return new(compute(*map(bare, args), dtype=dtype))
        if not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        if np.broadcast_shapes(*(np.shape(bare(x)) for x in args)) != out.shape:
            raise ValueError("Out shape is mismatched")
        compute(*(np.array(bare(x)) for x in args), out=out._a, dtype=dtype, casting="same_kind")
        return out

    call.__name__ = name
    return op(call)


UFUNCS = """abs absolute add arctan2 ceil cos divide equal exp expm1 floor floor_divide fmax fmin greater greater_equal
    invert isfinite isinf isnan less less_equal log log1p logaddexp logical_and logical_not logical_or maximum minimum
    multiply negative not_equal power reciprocal remainder sign sin sqrt square subtract tanh true_divide bitwise_and
    bitwise_or bitwise_xor""".split()
OPERATORS = dict(add="add", sub="subtract", mul="multiply", truediv="true_divide", floordiv="floor_divide",
                 mod="remainder", pow="power", lt="less", le="less_equal", gt="greater", ge="greater_equal", eq="equal",
                 ne="not_equal", matmul="matmul", **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"})

module = types.ModuleType("cupy", "A stand-in for CuPy, from npdiffusion's tests.")
module.ndarray = ndarray
for _name in UFUNCS:
    setattr(module, _name, ufunc(_name))


def function(f):
    setattr(module, f.__name__, op(f))
    return f


def cublas():
    if Stream.current.graph:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


@function
def matmul(x1, x2, out=None):
    cublas()
    return new(np.matmul(bare(x1), bare(x2)))


@function
def dot(a, b, out=None):
    cublas()
    return new(np.dot(bare(a), bare(b)))


for _name, _ufunc in OPERATORS.items():
    def _operator(self, other, function=getattr(module, _ufunc)):
        return function(self, other)

    def _reflected(self, other, function=getattr(module, _ufunc)):
        return function(other, self)

    def _in_place(self, other, function=getattr(module, _ufunc)):
        return function(self, other, out=self)

    setattr(ndarray, f"__{_name}__", _operator)
    if _name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__r{_name}__", _reflected)
        if _name != "matmul":
            setattr(ndarray, f"__i{_name}__", _in_place)
ndarray.__neg__ = lambda self: module.negative(self)
ndarray.__abs__ = lambda self: module.absolute(self)
ndarray.__invert__ = lambda self: module.invert(self)
for _name in [n for n, v in vars(ndarray).items() if isinstance(v, types.FunctionType)]:
    getattr(ndarray, _name).__name__ = _name
for _name in """copy astype reshape ravel flatten take repeat __getitem__ __setitem__ fill clip sum mean max min argmax
        argmin all any""".split():
    setattr(ndarray, _name, op(getattr(ndarray, _name)))


# Making arrays


@function
def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    if isinstance(obj, ndarray):
        return ndarray(_array=np.array(obj._a, dtype, order=order))
    if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in obj):
        raise TypeError("array() of a list of arrays: use stack()")
    copied()
    return new(np.array(obj, dtype))


@function
def asarray(a, dtype=None, order=None, *, blocking=False):
    if isinstance(a, ndarray) and dtype in (None, a.dtype):
        return a
    return array(a, dtype, order=order or "K")


@function
def ascontiguousarray(a, dtype=None):
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else new(np.array(bare(a), dtype, order="C"))


@function
def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(order=order) if isinstance(a, ndarray) else np.asarray(a, order=order)


@function
def empty(shape, dtype=float, order="C"):
    return ndarray(shape, dtype, order=order)


@function
def zeros(shape, dtype=float, order="C"):
    return new(np.zeros(shape, dtype, order))


@function
def ones(shape, dtype=float, order="C"):
    return new(np.ones(shape, dtype, order))


@function
def full(shape, fill_value, dtype=None, order="C"):
    return new(np.full(shape, bare(fill_value), dtype, order))


@function
def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    a = np.empty_like(bare(prototype), dtype, order, False, shape)
    poison(a)
    return ndarray(_array=a)


@function
def zeros_like(a, dtype=None, order="K", subok=None, shape=None):
    return ndarray(_array=np.zeros_like(bare(a), dtype, order, False, shape))


@function
def ones_like(a, dtype=None, order="K", subok=None, shape=None):
    return ndarray(_array=np.ones_like(bare(a), dtype, order, False, shape))


@function
def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None):
    return ndarray(_array=np.full_like(bare(a), bare(fill_value), dtype, order, False, shape))


@function
def arange(start, stop=None, step=1, dtype=None):
    return new(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


@function
def tri(N, M=None, k=0, dtype=float):
    return new(np.tri(N, M, k, dtype))


def rfft2(a, s=None, axes=(-2, -1), norm=None):
    return new(np.fft.rfft2(bare(a), s, axes, norm))


def irfft2(a, s=None, axes=(-2, -1), norm=None):
    return new(np.fft.irfft2(bare(a), s, axes, norm))


# Moving elements


@function
def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    if len(tup) > 8:
        copied()  # their addresses
    return new(np.concatenate(bares(list(tup)), axis))


@function
def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    if len(tup) > 8:
        copied()
    return new(np.stack(bares(list(tup)), axis))


@function
def moveaxis(a, source, destination):
    return a._seen(np.moveaxis(bare(a), source, destination))


@function
def transpose(a, axes=None):
    return a._seen(np.transpose(bare(a), axes))


@function
def expand_dims(a, axis):
    return a._seen(np.expand_dims(bare(a), axis))


@function
def broadcast_to(array, shape):
    return array._seen(np.broadcast_to(bare(array), shape))


@function
def reshape(a, newshape, order="C"):
    return a.reshape(newshape, order=order)


@function
def take(a, indices, axis=None, out=None):
    return a.take(indices, axis)


@function
def take_along_axis(a, indices, axis):
    return new(np.take_along_axis(bare(a), bare(indices), axis))


@function
def put_along_axis(arr, indices, values, axis):
    np.put_along_axis(bare(arr), bare(indices), bare(values), axis)


@function
def where(condition, x=None, y=None):
    if not isinstance(condition, ndarray):
        raise TypeError("where() expects a condition on the GPU")
    if x is None:
        wait("where(condition)")
    return new(np.where(condition._a, bare(x), bare(y)))


@function
def clip(a, a_min, a_max, out=None):
    return new(np.clip(bare(a), bare(a_min), bare(a_max)))


@function
def unique(ar, return_index=False, return_inverse=False, return_counts=False, axis=None):
    wait("unique()")
    return new(np.unique(bare(ar)))


@function
def sum(a, axis=None, dtype=None, out=None, keepdims=False):
    return a.sum(axis, dtype, keepdims=keepdims)


@function
def may_share_memory(a, b, max_work=None):
    return np.may_share_memory(bare(a), bare(b))


# The device


class RawModule:
    def __init__(self, code=None, *, path=None, options=(), backend="nvrtc", translate_cucomplex=False,
                 enable_cooperative_groups=False, name_expressions=None, jitify=False):
        if Stream.current.graph:
            raise RuntimeError("a RawModule would be compiled while capturing")
        self.kernels = cuda_on_cpu.compile(code, options)

    def get_function(self, name):
        def kernel(grid, block, args, *, shared_mem=0):
            counts["launches"] += 1
            args = [x._a if isinstance(x, ndarray) else x for x in args]
            self.kernels.launch(name, grid, block, args, shared_mem, lambda address: owner(address)._a)

        kernel.__name__ = name
        return op(kernel)


class Device:
    def __init__(self, device=None):
        self.id = 0 if device is None else device

    def use(self):
        assert self.id == 0

    def synchronize(self):
        wait("synchronize()")


class Event:
    """Takes the time of the CPU."""

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        wait("synchronize()")


def get_current_stream(device_id=-1):
    return Stream.current


def get_elapsed_time(start_event, end_event):
    return 1e3 * (end_event.time - start_event.time)


@function
def is_available():
    return True


module.RawModule = RawModule
module._core = types.SimpleNamespace(
    set_compute_type=lambda dtype, compute_type: None,
    _routines_linalg=types.SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=4))
module.cuda = types.SimpleNamespace(
    Device=Device, Event=Event, Graph=Graph, MemoryPool=MemoryPool, Stream=Stream, using_allocator=using_allocator,
    get_current_stream=get_current_stream, get_elapsed_time=get_elapsed_time, runtime=types.SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda device: {"name": b"a CPU in the place of a GPU"}))
module.fft = types.SimpleNamespace(rfft2=op(rfft2), irfft2=op(irfft2))
module.__version__ = "stand-in"


def names():
    """{"ndarray.sum", "exp", ...}: all that CuPy must have too."""
    own = {n for n in vars(module) if not n.startswith("__")} | {
        "cuda.Device.use", "cuda.Device.synchronize", "cuda.Event.record", "cuda.Event.synchronize",
        "cuda.Graph.launch", "cuda.Graph.upload", "cuda.MemoryPool.malloc", "cuda.Stream.begin_capture",
        "cuda.Stream.end_capture", "cuda.Stream.is_capturing", "cuda.get_current_stream", "cuda.using_allocator",
        "cuda.get_elapsed_time", "cuda.runtime.getDeviceCount", "cuda.runtime.getDeviceProperties",
        *(f"fft.{n}" for n in vars(module.fft)), *(f"_core.{n}" for n in vars(module._core)),
        *(f"_core._routines_linalg.{n}" for n in vars(module._core._routines_linalg))}
    return own | {f"ndarray.{n}" for n in vars(ndarray) if n not in (
        "_a", "_seen", "_view_or_copy", "_index", "__module__", "__slots__", "__weakref__", "__doc__")}
