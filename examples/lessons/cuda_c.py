"""CUDA C for the lessons: on the GPU by CuPy; where there is none, on the CPU as C++, a thread for each thread.

And the same idea in Python, where a thread is a generator that yields where it would call __syncthreads().
"""

import ctypes
import re
import subprocess
import sys
import tempfile
from functools import cache
from itertools import zip_longest
from pathlib import Path

import npdiffusion as nd
import numpy as np
from npdiffusion.device import cupy

COMPILERS = ["c++"], ["g++"], ["clang++"], [sys.executable, "-m", "ziglang", "c++"]  # the last: pip install ziglang
OPTIONS = "-std=c++20 -O1 -shared -fPIC -pthread -x c++ -".split()
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')

# What a kernel finds on a GPU. The threads of a block run side by side, the blocks one after the other.
HEADER = r"""
#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#define __global__
#define __shared__ static

struct dim3 { int x, y, z; };
static thread_local dim3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static std::barrier<> *barrier;

static void __syncthreads() { barrier->arrive_and_wait(); }

static void launch(const int *grid, const int *block, std::function<void()> kernel) {
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], 1};
    std::barrier<> all(blockDim.x * blockDim.y);
    std::vector<std::thread> threads;
    barrier = &all;
    for (int t = 0; t < blockDim.x * blockDim.y; t++)
        threads.emplace_back([=] {
            threadIdx = {t % blockDim.x, t / blockDim.x, 0};
            for (int b = 0; b < gridDim.x * gridDim.y * gridDim.z; b++) {
                blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
                kernel();
                __syncthreads();  // before the next block takes the shared memory
            }
        });
    for (auto &thread : threads) thread.join();
}
"""


@cache
def build(source):
    """The kernels of a CUDA C source, and "GPU" or "CPU"; (None, None) without GPU and without a compiler of C++20."""
    if nd.cuda_is_available():
        return cupy().RawModule(code=source), "GPU"
    text = HEADER + source
    for name, parameters in KERNEL.findall(source):
        names = ", ".join(parameter.split()[-1].strip("*") for parameter in parameters.split(","))
        text += (f'extern "C" void launch_{name}(const int *grid, const int *block, {parameters}) '
                 f"{{ launch(grid, block, [=] {{ {name}({names}); }}); }}\n")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder, "kernels.so")
        for compiler in COMPILERS:
            try:
                subprocess.run([*compiler, *OPTIONS, "-o", library], input=text, text=True, check=True,
                               capture_output=True)
                return ctypes.CDLL(str(library)), "CPU"
            except (OSError, subprocess.CalledProcessError):
                pass
    return None, None


def launch(source, name, grid, block, arrays, *numbers):
    """Run a kernel whose arguments are arrays (NumPy's), then ints; returns the arrays after it.

    grid: blocks along x, y, z; block: threads along x, y.
    """
    kernels, device = build(source)
    rows = [np.array(a).ravel() for a in arrays]  # copies, whose elements lie in memory as the indices say
    if device == "GPU":
        rows = [nd.to_device(row, "cuda") for row in rows]
        kernels.get_function(name)(grid, block, (*rows, *map(np.int32, numbers)))
        rows = [nd.to_device(row, "cpu") for row in rows]
    else:
        pointers = [ctypes.c_void_p(row.ctypes.data) for row in rows]
        run = getattr(kernels, f"launch_{name}")
        run((ctypes.c_int * 3)(*grid), (ctypes.c_int * 2)(*block), *pointers, *map(int, numbers))
    return [row.reshape(a.shape) for row, a in zip(rows, arrays)]


def in_python(thread, grid, block, tile, arrays):
    """Run generators as the threads of blocks; returns the arrays after it.

    thread(*arrays, tile, *block's index, *thread's index within its block): a generator. grid: blocks, block: threads
    along each axis. tile: the shape of an array that the threads of a block share.
    """
    arrays = [np.array(a) for a in arrays]
    for index in np.ndindex(*grid):
        shared = np.full(tile, np.nan)
        threads = [thread(*arrays, shared, *index, *place) for place in np.ndindex(*block)]
        for _ in zip_longest(*threads):
            pass  # all of them have come to the barrier, or have ended
    return arrays
