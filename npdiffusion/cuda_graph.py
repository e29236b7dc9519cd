"""Work for a GPU recorded once, as a CUDA graph, and then replayed: one launch in the place of hundreds.

Launching a kernel takes the CPU about 10 µs, longer than many kernels of a small network take the GPU.
"""

from collections import Counter
from contextlib import suppress
from functools import partial
from operator import is_, methodcaller
from threading import RLock

from .device import cupy, tf32_allowed, to_device
from .tensor import Tensor

WARMUP = 2  # calls that run as they are: they compile kernels, and make what is made once


def captured(function, model=None):
    """``function`` as a CUDA graph of what it launches (see ``Captured``); on the CPU ``function`` itself.

        model = captured(model)         # generate(model, ...) replays its passes
        step = captured(step, model)    # so does a function that reads, or trains, the model

    The model must be on its device already.
    """
    model = function if model is None else model
    return function if model.device == "cpu" else Captured(function, model)


def replayed(model, function, *args):
    """function(model, *args), which is replayed if the model is a captured one."""
    return model.replay(function, *args) if isinstance(model, Captured) else function(model, *args)


class Captured:
    """A function on a GPU that is recorded as a CUDA graph in its third call, and replayed from then on.

    Arguments: arrays (those of the CPU are moved to the GPU), Tensors, numbers, None, schedulers. Results: arrays,
    Tensors (through which no gradient flows), or lists of them. A recording serves arguments of the same shapes and
    dtypes and the same numbers, in the same mode of the model (``train``, ``eval``) and of ``allow_tf32``; else there
    is another one. All keep their memory until the model is moved or this object is gone. Threads take turns.

    Python runs while recording and not again: what changes must be an array among the arguments, or lie on the GPU, as
    weights and the generator's state do. RuntimeError if the function waits for the GPU or brings arrays from the CPU.

    All other attributes are the function's: ``config``, ``eval()``, ...
    """

    def __init__(self, function, model):
        self._function, self._modules, self._parameters = function, list(model.modules()), list(model.parameters())
        self._lock = RLock()
        self._weights, self._calls, self._recordings = [None] * len(self._parameters), Counter(), {}

    def __getattr__(self, name):
        return getattr(self._function, name)

    def __call__(self, *args):
        return self.replay(None, *args)

    def replay(self, way, *args):
        """way(function, *args), recorded for this way: say, a pass and a scheduler's step. None is function(*args)."""
        with self._lock:  # a recording has one place for its arguments
            weights = [p.data for p in self._parameters]
            if not all(map(is_, weights, self._weights)):  # recordings read them where they were
                self._weights, self._calls, self._recordings = weights, Counter(), {}
            args = _each(lambda a: to_device(a, "cuda"), args)
            work = partial(way, self._function) if way else self._function
            key = way, *[module.training for module in self._modules], tf32_allowed(), *map(_form, args)
            if key not in self._recordings:
                self._calls[key] += 1
                if self._calls[key] <= WARMUP:
                    return _each(_copy, work(*args))
                self._recordings[key] = _record(work, args)
            _, places, graph, results = self._recordings[key]
            for place, a in zip(_arrays(places), _arrays(args)):
                place[...] = a
            graph.launch()
            return _each(_copy, results)


def _record(function, args):
    """The graph of one call of a function: its memory, where the arguments are put, the graph, and its results."""
    cuda, places = cupy().cuda, _each(_copy, args)
    pool, stream = cuda.MemoryPool(), cuda.Stream(non_blocking=True)
    with stream, cuda.using_allocator(pool.malloc):  # whose memory nobody else will ever be given
        stream.begin_capture()
        try:
            results = function(*places)
            return pool, places, stream.end_capture(), results
        except Exception as error:
            with suppress(Exception):  # it complains, too
                stream.end_capture()
            raise RuntimeError(f"this cannot be recorded as a CUDA graph: {error}. It runs without being captured "
                               "(cuda_graph=False)") from error


_copy = methodcaller("copy", order="K")  # an array's, which keeps its order in memory


def _each(function, x):
    """``function`` of an array, of a Tensor's array, or of each in a list or tuple; other things as they are."""
    if isinstance(x, (list, tuple)):
        return [_each(function, part) for part in x]
    if isinstance(x, Tensor):
        return Tensor(function(x.data))
    return function(x) if hasattr(x, "dtype") else x


def _arrays(args):
    return [x.data if isinstance(x, Tensor) else x for x in args if hasattr(x, "dtype")]


def _form(x):
    """What two arguments share if one recording serves both."""
    if hasattr(x, "config"):  # of a scheduler, a dict of numbers and strings
        return type(x), *x.config.values()
    return (type(x), x.shape, x.dtype) if hasattr(x, "dtype") else (type(x), x)
