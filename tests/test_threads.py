"""On which cores our threads run, and how many there are: in processes of their own, on made-up machines."""

import subprocess
import sys

import pytest

MACHINE = """
import os, threading
masks = {{}}
def sched_getaffinity(pid):
    return set(masks.get(threading.get_ident(), {cores}))
def sched_setaffinity(pid, mask):
    masks[threading.get_ident()] = mask
os.sched_getaffinity, os.sched_setaffinity = sched_getaffinity, sched_setaffinity
import npdiffusion
from npdiffusion import threads
"""


def in_a_process(cores, code, before=""):
    code = before + MACHINE.format(cores=cores) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")


@pytest.mark.parametrize("cores, threads", [([5], 1), ([2, 3, 7], 3), (list(range(8)), 8), (list(range(64)), 8)])
def test_as_many_threads_as_cores_but_at_most_eight(cores, threads):
    assert in_a_process(cores, "print(npdiffusion.get_num_threads())")[0] == str(threads)


BARRIER = """
barrier = threading.Barrier(threads.get_num_threads())
def where(start, stop):
    barrier.wait(20)  # each thread has one slice
    return sorted(os.sched_getaffinity(0))
"""


def test_threads_that_use_all_cores_have_one_each_and_give_it_back():
    said = in_a_process([2, 3, 7], BARRIER + """
print(sorted(threads.parallel(where, 3)))
print(sorted(os.sched_getaffinity(0)))
try:
    threads.parallel(lambda start, stop: 1 / 0, 3)
except ZeroDivisionError:
    print(sorted(os.sched_getaffinity(0)))
""")
    assert said[:3] == ["[[2], [3], [7]]", "[2, 3, 7]", "[2, 3, 7]"]


def test_threads_are_left_alone_where_they_do_not_use_all_cores():
    said = in_a_process([2, 3, 7], "npdiffusion.set_num_threads(2)" + BARRIER + """
threads.parallel(where, 2)
print(masks)
npdiffusion.set_num_threads(3)
os.sched_setaffinity(0, mine := {2, 3})  # somebody else's wish
threads.parallel(lambda start, stop: None, 3)
print(masks[threading.get_ident()] is mine)
""")
    assert said[:2] == ["{}", "True"]


BLAS = """
def counts(*_):
    return [ask() for ask, _ in threads.blas()]
for _, tell in threads.blas():
    tell(2)
kernel = threads.multiplies(lambda: [counts(), *threads.parallel(counts, 1), *threads.parallel(counts, 2)])
for ours in (2, 1):
    threads.set_num_threads(ours)
    print([*map(sum, kernel()), sum(counts())])
"""


def test_blas_has_its_threads_where_ours_do_not_run_if_it_lets_go_of_the_cores():
    assert in_a_process([0, 1], BLAS)[:2] == ["[2, 2, 1, 1, 2]", "[1, 1, 1, 2]"]
    assert in_a_process([0, 1], BLAS, before="import numpy")[:2] == ["[1, 1, 1, 1, 2]", "[1, 1, 1, 2]"]  # too late
