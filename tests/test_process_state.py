"""State that threads, asyncio tasks and forks might share: each has its own, and waits for nobody who is not there."""

import ast
import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import npdiffusion
from npdiffusion import Tensor, captured, functional as F, nn, no_grad, threads, to_device, use_kernels
from npdiffusion.diffusion import DDIMScheduler, generate
from npdiffusion.kernels import kernels, numpy as fast, plain
from npdiffusion.models import UNet
from npdiffusion.threads import blas, one_blas_thread, parallel
from npdiffusion.training import Training, stop_requests

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def recording():
    return (Tensor([1.0], requires_grad=True) * 2).requires_grad


def overlapping(make, look):
    """Two threads, each inside ``make()`` for a time: what ``look`` says before, in and after them, and here."""
    seen, turns = {}, threading.Barrier(2, timeout=20)

    def first():
        with make():
            turns.wait()
            turns.wait()  # the second has entered
        seen["first, after"] = look()
        turns.wait()

    def second():
        turns.wait()
        seen["second, before"] = look()
        with make():
            turns.wait()
            turns.wait()  # the first has left
            seen["second, inside"] = look()
        seen["second, after"] = look()

    both = [threading.Thread(target=f) for f in (first, second)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return {**seen, "here": look()}


def test_threads_record_for_themselves():
    assert overlapping(no_grad, recording) == {"second, before": True, "second, inside": False, "second, after": True,
                                               "first, after": True, "here": True}
    with no_grad(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(recording).result() and not recording()


def test_one_no_grad_for_everybody():
    """The same object nested, in two threads, and as a decorator, in any order."""
    same = no_grad()
    with same, same:
        assert not recording()
    assert recording() and overlapping(lambda: same, recording)["here"]
    seen, turns = [], threading.Barrier(2, timeout=20)

    @same
    def work(inner):
        turns.wait()
        if inner:
            with same:
                turns.wait()
        else:
            turns.wait()
        seen.append(recording())

    pair = [threading.Thread(target=work, args=(inner,)) for inner in (True, False)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert seen == [False, False] and recording()


def test_asyncio_tasks_record_for_themselves():
    async def inside(entered, leave):
        with no_grad():
            entered.set()
            await leave.wait()
            return recording()

    async def both():
        entered, leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(entered, leave))
        await entered.wait()
        there = recording()
        leave.set()
        return there, await task, recording()

    assert asyncio.run(both()) == (True, False, True)


def room():
    return kernels(np.zeros(1)).__name__.rpartition(".")[2]


def test_with_use_kernels_is_for_this_thread_and_a_call_for_all():
    seen = overlapping(lambda: use_kernels("plain"), room)
    assert seen == {"second, before": "numpy", "second, inside": "plain", "second, after": "numpy",
                    "first, after": "numpy", "here": "numpy"}
    a, b = use_kernels("plain"), use_kernels("plain")  # both made before one is entered
    with a, b:
        assert kernels(np.zeros(1)) is plain
    assert kernels(np.zeros(1)) is fast
    use_kernels("plain")
    with concurrent.futures.ThreadPoolExecutor(1) as pool, use_kernels("numpy"):
        assert pool.submit(room).result() == "plain" and room() == "numpy"
    assert room() == "plain"


def test_workers_have_the_caller_s_state():
    npdiffusion.set_num_threads(3)
    turns = threading.Barrier(3, timeout=20)  # so that each takes one slice

    def state(start, stop):
        turns.wait()
        return np.geterr()["over"], room(), recording()

    with np.errstate(over="raise"), use_kernels("plain"), no_grad():
        assert parallel(state, 3) == [("raise", "plain", False)] * 3
    assert parallel(state, 3) == [("warn", "numpy", True)] * 3


# Modes


class Noisy(nn.Module):
    """A network whose output tells the mode, and which can be made to wait."""

    num_classes = None

    def __init__(self, pause=lambda: None):
        self.drop, self.frozen, self.pause = nn.Dropout(0.5), nn.Dropout(0.5).eval(), [pause]
        self.scale = nn.Parameter(np.ones(1, np.float32))

    def forward(self, x, t=None, labels=None):
        self.pause[0]()
        self.modes = self.training, self.drop.training, self.frozen.training
        return x * self.scale


def modes(model):
    return model.training, model.drop.training, model.frozen.training


def test_sampling_changes_no_mode_of_anybody_else():
    turns = threading.Barrier(2, timeout=20)
    model, scheduler, seen = Noisy(), DDIMScheduler(10), []

    def pause():
        if threading.current_thread() is not threading.main_thread():
            turns.wait()
            turns.wait()

    model.pause[0] = pause
    sampler = threading.Thread(target=lambda: (generate(model, scheduler, (1, 1, 2, 2), num_inference_steps=1),
                                               seen.append(model.modes)))
    sampler.start()
    turns.wait()  # it is inside
    assert modes(model) == (True, True, False)  # here the model trains
    generate(model, scheduler, (1, 1, 2, 2), num_inference_steps=1)
    assert model.modes == (False, False, False) and modes(model) == (True, True, False)
    turns.wait()
    sampler.join()
    assert seen == [(False, False, False)] and modes(model) == (True, True, False)
    with model.evaluating():
        assert not modes(model)[0] and Noisy().training  # another model trains
        with model.drop.evaluating():
            assert modes(model) == (False, False, False)
        assert modes(model) == (False, False, False)


def test_training_leaves_frozen_modules_in_evaluation_mode():
    model, seen = Noisy(), []
    run = Training(model, 4, {}, steps=3, batch_size=2, lr=0.1)
    with run.averaged():
        assert modes(model) == (False, False, False)
    assert modes(model) == (True, True, False)
    run.train_step(lambda index: seen.append(modes(model)))
    model.eval()
    run.train_step(lambda index: seen.append(modes(model)))  # as pretrained() gives it
    assert seen == [(True, True, False), (True, True, True)]


# A GPU


def at_once(function, count=4):
    """What as many threads get from function(0), function(1), ..., changing places as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(function, range(count)))
    finally:
        sys.setswitchinterval(before)


def test_threads_take_turns_with_a_captured_function(cupy):
    model = nn.Linear(1, 1).to("cuda")
    run = captured(lambda x: x * 2 + 1, model)
    for _ in range(3):
        run(to_device(np.zeros(3, np.float32), "cuda"))

    def calls(n):
        arguments = [np.full(3, 100 * n + i, np.float32) for i in range(50)]
        return [(to_device(run(to_device(x, "cuda")), "cpu") == 2 * x + 1).all() for x in arguments]

    assert np.all(at_once(calls))


def test_threads_draw_different_numbers_from_one_generator(cupy):
    generator = npdiffusion.default_generator("cuda")
    drawn = at_once(lambda n: [float(to_device(generator.random(1), "cpu")[0]) for _ in range(50)])
    assert len(set(sum(drawn, []))) == 200


def test_a_captured_model_knows_the_mode_of_each_module(cupy):
    model = Noisy().to("cuda")
    model.forward = lambda x: model.drop(x)
    fast, x = captured(model), Tensor(np.ones(64, np.float32), device="cuda")
    for _ in range(3):
        assert (to_device(fast(x).data, "cpu") != 1).all()
    model.drop.eval()
    for _ in range(4):
        assert (to_device(fast(x).data, "cpu") == 1).all()


# Forks


def in_child(work):
    """``work()`` in a child: what it returned; a failure here if it hangs or raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(writer, repr(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    until = time.monotonic() + 30
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.005)
    with os.fdopen(reader) as said:
        assert done[1] == 0
        return ast.literal_eval(said.read())


def threads_at_work():
    """Names of the workers that took part in a ``parallel`` of all threads."""
    turns = threading.Barrier(npdiffusion.get_num_threads(), timeout=20)

    def name(start, stop):
        turns.wait()
        return threading.current_thread().name

    return sorted(parallel(name, npdiffusion.get_num_threads()))


def affinity():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def blas_threads():
    return [ask() for ask, _ in blas()]


@pytest.fixture
def three_threads():
    npdiffusion.set_num_threads(3)
    assert len(threads_at_work()) == 3


@needs_fork
def test_a_child_has_workers_of_its_own(three_threads):
    image = Tensor(np.random.default_rng(0).standard_normal((3, 4, 6, 6), dtype=np.float32), requires_grad=True)

    def convolved():
        image.grad = None
        F.conv2d(image, Tensor(np.ones((2, 4, 3, 3), np.float32))).sum().backward()
        return float(image.grad.sum())

    here = convolved()
    assert in_child(lambda: (convolved(), threads_at_work(), threads._workers, threads._tasks.qsize(), affinity())) == (
        here, ["MainThread", "npdiffusion-1", "npdiffusion-2"], 2, 0, affinity())
    assert in_child(lambda: in_child(threads_at_work)) == ["MainThread", "npdiffusion-1", "npdiffusion-2"]
    assert in_child(lambda: at_once(lambda n: one_blas_thread()(blas_threads)(), 2)) == [[1] * len(blas())] * 2
    assert len(threads_at_work()) == 3 and convolved() == here


@contextmanager
def elsewhere(make):
    """Another thread inside ``make()``; yields what ends it."""
    entered, leave = threading.Event(), threading.Event()

    def inside():
        with make():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=inside)
    thread.start()
    entered.wait(20)

    def ended():
        leave.set()
        thread.join()

    yield ended
    ended()


@pytest.mark.parametrize("last", [0, 1])
def test_whichever_thread_leaves_its_kernel_last_blas_is_as_before(last):
    """threadpoolctl 3.8 by itself listens to the first thread that asks alone."""
    before, ones = blas_threads(), [1] * len(blas())
    with elsewhere(one_blas_thread) as leave:
        with ExitStack() as here:
            here.enter_context(one_blas_thread())
            assert blas_threads() == ones
            if last:
                here.close()
                assert blas_threads() == ones
            leave()
            assert blas_threads() == (before if last else ones)
        assert blas_threads() == before
    for alone in (one_blas_thread, partial(threadpool_limits, 1, "blas")):  # the user's, too
        one_blas_thread()(blas_threads)()  # this thread has asked last
        with elsewhere(alone):
            assert blas_threads() == ones
    assert blas_threads() == before


@needs_fork
@pytest.mark.parametrize("theirs, ours", [(1, 0), (2, 0), (0, 1), (1, 1), (0, 2)])
def test_a_fork_amid_kernels_leaves_blas_as_the_user_had_it(theirs, ours):
    for _, tell in blas():
        tell(2)
    users = blas_threads()  # [2]; where BLAS has no threads [1]
    try:
        with ExitStack() as stack:
            for _ in range(theirs):
                stack.enter_context(elsewhere(one_blas_thread))
            mine = [stack.enter_context(ExitStack()) for _ in range(ours)]
            for one in mine:
                one.enter_context(one_blas_thread())
            assert blas_threads() == [1] * len(users)

            def child():
                inside = blas_threads()
                for one in mine:
                    one.close()
                after = blas_threads()
                with one_blas_thread():
                    again = blas_threads()
                return inside, after, again, blas_threads()

            ones = [1] * len(users)
            assert in_child(child) == (ones if ours else users, users, ones, users)
        assert blas_threads() == users
    finally:
        for _, tell in blas():
            tell(npdiffusion.get_num_threads())


@needs_fork
def test_a_fork_while_threads_begin_and_end_kernels():
    """Whatever moment it comes at: no lock is held in the child, and the counts are right."""
    stop, users = threading.Event(), blas_threads()

    def busy():
        while not stop.is_set():
            with one_blas_thread():
                pass

    pair = [threading.Thread(target=busy) for _ in range(2)]
    for thread in pair:
        thread.start()
    try:
        for _ in range(15):
            assert in_child(lambda: (one_blas_thread()(blas_threads)(), blas_threads())) == ([1] * len(users), users)
    finally:
        stop.set()
        for thread in pair:
            thread.join()


def trained(seed):
    """A step of a training and a picture, as a process of the user's would: numbers that depend on all of it."""
    npdiffusion.manual_seed(seed)
    npdiffusion.set_num_threads(2)
    model = UNet(channels=(8, 8), attention=())
    optimizer = npdiffusion.optim.AdamW(model.parameters())
    model(Tensor(np.ones((2, 1, 4, 4), np.float32)), 3).sum().backward()
    optimizer.step()
    return float(generate(model, DDIMScheduler(10), (2, 1, 4, 4), num_inference_steps=2).sum())


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_of_multiprocessing_and_futures(context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {context}")
    here = trained(5)
    context = multiprocessing.get_context(context)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(trained, [5, 5, 5], timeout=60)) == [here] * 3


def test_training_in_another_thread(tmp_path):
    """Signal handlers are the main thread's; all else works."""
    def work():
        layer = nn.Linear(1, 1)
        run = Training(layer, 4, {}, steps=2, batch_size=2, lr=0.1)
        layer.config = {}
        run.fit(lambda index: (layer(Tensor(np.ones((2, 1), np.float32))) ** 2).mean(), tmp_path)
        return run.step

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 2


def test_a_generator_function_is_not_decorated():
    """Its body would run after the context was left."""
    with pytest.raises(TypeError, match="no_grad cannot decorate the generator function numbers"):
        @no_grad()
        def numbers():
            yield recording()


@needs_fork
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="needs the main thread")
def test_a_request_to_stop_the_training_stops_a_child_at_once():
    """A data loader forked in the training is not the training: Pool.terminate() sends SIGTERM."""
    with stop_requests() as asked:
        fork = multiprocessing.get_context("fork")
        begun = fork.Event()
        child = fork.Process(target=lambda: (begun.set(), time.sleep(20)))
        child.start()
        assert begun.wait(20)
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM and not asked
