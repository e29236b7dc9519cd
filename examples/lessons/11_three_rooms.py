"""Lesson 11. One kernel, three rooms

What are a cache, a thread and a block for? The package has each kernel three times: plain, to be read; fast, for CPUs;
in CUDA C, for GPUs. All compute the same, but the fast ones know where numbers lie and who fetches them. This lesson
takes one convolution through these rooms, in npdiffusion/kernels, and measures or counts what each idea is worth.
"""

from itertools import product
from pathlib import Path
from timeit import repeat

import cuda_c
from course import keep

import npdiffusion as nd
import numpy as np
from matplotlib.figure import Figure
from npdiffusion.kernels import plain
from npdiffusion.threads import parallel
from numpy.lib.stride_tricks import sliding_window_view
from threadpoolctl import threadpool_limits
from tqdm import trange

# 1. A cache: for what is soon used again
#
# The convolution of lesson 2, on n pictures at a time. The columns, nine times as large as the pictures, are written,
# read once by the product, and never needed again. Where they fit into a cache they need not go through the slower
# memory. But fewer pictures at a time are more calls of NumPy.


def conv(x, w, n):
    (N, C, H, W), O = x.shape, len(w)
    y = np.empty((N, O, H - 2, W - 2), x.dtype)
    for part, out in zip(np.split(x, range(n, N, n)), np.split(y, range(n, N, n))):
        columns = sliding_window_view(part, (3, 3), (2, 3)).transpose(1, 4, 5, 0, 2, 3).reshape(9 * C, -1)
        out[...] = (w.reshape(O, -1) @ columns).reshape(O, len(part), H - 2, W - 2).swapaxes(0, 1)
    return y


# 2. A thread: for work that takes longer than to wake it
#
# Two threads may take half of the pictures each: NumPy lets go of Python's lock (the GIL) while it computes. But a
# thread has to be woken, and between two calls of NumPy both want the lock. The package takes as many as
# nd.set_num_threads says, but keeps to one for less than about a millisecond (WORTH in npdiffusion/threads.py). Times
# change with the machine and with who else is on it: we look at them, and assert nothing.

rng, sizes = np.random.default_rng(0), 2 ** np.arange(7)
x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 12, 34, 34), (12, 12, 3, 3)))
jobs = {"all at once": lambda x: conv(x, w, len(x)), "two at a time": lambda x: conv(x, w, 2),
        "two at a time, two threads": lambda x: np.concatenate(parallel(lambda i, k: conv(x[i:k], w, 2), len(x), 2)),
        "plain room": lambda x: plain.conv2d(x, w, None, (32, 32), (1, 1), (0, 0), (1, 1), 1),
        "fast room": lambda x: nd.functional.conv2d(nd.Tensor(x), nd.Tensor(w)).data}
right = jobs["plain room"](x)
assert all(np.abs(job(x) - right).max() < 1e-5 * np.abs(right).max() for job in jobs.values())
with threadpool_limits(1):  # the fastest of many rounds, as others on the machine can only make them slower
    times = 1e6 * np.min([[[min(repeat(lambda: job(x[:n]), number=1, repeat=128 // n)) / n for n in sizes]
                           for job in jobs.values()] for _ in trange(12, desc="timing")], 0)
for name, row in zip(jobs, times):
    print(f"{name:26s}", "".join(f"{t:5.0f}" for t in row), "µs per picture in batches of 1, 2, 4, …, 64")

# 3. A block: threads that share what they fetch
#
# A GPU runs thousands of threads, here one for each pixel of the result. Each needs a window of nine pixels, most of
# which its neighbours fetch too, from a memory far away. So threads come in blocks, of T × T here, that share a small
# memory of their own. Together they fetch a tile, T + 2 pixels wide: their own and a halo. They wait until all have
# done so (__syncthreads), read their windows from the tile, and wait again before the next channel takes its place: for
# each result and channel ((T + 2)/T)² reads in place of 9, and more where a block hangs over the edge, as its
# tile serves fewer results. In Python such a thread, (ty, tx) of block (by, bx) of channel o, is a generator that
# yields where it waits.


def thread(x, w, y, reads, tile, o, by, bx, ty, tx):
    (C, H, W), T, total = x.shape, len(tile) - 2, 0
    p, q = by * T + ty, bx * T + tx  # the pixel of this thread
    for c in range(C):
        for i, j in product(range(ty, T + 2, T), range(tx, T + 2, T)):
            if by * T + i < H and bx * T + j < W:
                tile[i, j] = x[c, by * T + i, bx * T + j]
                reads[o, p, q] += 1  # of the memory far away
        yield
        total += (w[o, c] * tile[ty : ty + 3, tx : tx + 3]).sum()
        yield
    if p < H - 2 and q < W - 2:  # blocks at the edge may hang over
        y[o, p, q] = total


CUDA = r"""
extern "C" __global__ void conv_alone(const float *x, const float *w, float *y, int *reads, int C, int H, int W) {
    int p = blockIdx.y * blockDim.y + threadIdx.y, q = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.z, k = 0;
    if (p >= H - 2 || q >= W - 2) return;
    float total = 0;
    for (; k < 9 * C; k++) total += w[o * 9 * C + k] * x[(k / 9 * H + p + k / 3 % 3) * W + q + k % 3];
    y[(o * (H - 2) + p) * (W - 2) + q] = total;
    reads[(o * gridDim.y * blockDim.y + p) * gridDim.x * blockDim.x + q] = k;
}

extern "C" __global__ void conv_tile(const float *x, const float *w, float *y, int *reads, int C, int H, int W) {
    __shared__ float tile[18][18];  // of all threads of this block
    int T = blockDim.x, ty = threadIdx.y, tx = threadIdx.x, o = blockIdx.z;
    int p = blockIdx.y * T + ty, q = blockIdx.x * T + tx, count = 0;
    float total = 0;
    for (int c = 0; c < C; c++) {
        for (int i = ty; i < T + 2; i += T)
            for (int j = tx; j < T + 2; j += T)
                if (p - ty + i < H && q - tx + j < W) tile[i][j] = x[(c * H + p - ty + i) * W + q - tx + j], count++;
        __syncthreads();
        for (int k = 0; k < 9; k++) total += w[(o * C + c) * 9 + k] * tile[ty + k / 3][tx + k % 3];
        __syncthreads();
    }
    if (p < H - 2 && q < W - 2) y[(o * (H - 2) + p) * (W - 2) + q] = total;
    reads[(o * gridDim.y * T + p) * gridDim.x * T + q] = count;
}
"""

# Without a GPU this is compiled as C++ (cuda_c.py): each thread is one of the CPU, std::barrier is its __syncthreads,
# and blocks come one by one. That shows whether it is right and what it reads, but not how long a GPU would take.

kernels, place = cuda_c.build(CUDA)
print(f"CUDA C on the {place}" if kernels else "No GPU and no C++ compiler here: the threads are Python's alone")
x, w, sides, counted = x[0, :2, :32, :32], w[:4, :2], (2, 4, 8, 16), {}
right = plain.conv2d(x[None], w, None, (30, 30), (1, 1), (0, 0), (1, 1), 1)[0]
for T in sides:
    blocks = -(-30 // T)  # ⌈30/T⌉ in each direction
    arrays = x, w, np.zeros((4, 30, 30), np.float32), np.zeros((4, blocks * T, blocks * T), np.int32)
    results = {"in Python": cuda_c.in_python(thread, (4, blocks, blocks), (T, T), (T + 2, T + 2), arrays)}
    for name in ("conv_alone", "conv_tile") if kernels else ():
        results[name] = cuda_c.launch(CUDA, name, (blocks, blocks, 4), (T, T), arrays, *x.shape)
    for name, (_, _, y, reads) in results.items():
        assert np.abs(y - right).max() < 1e-5 * np.abs(right).max(), f"{name} is wrong"
        counted.setdefault(name, []).append(reads.sum() / (len(x) * y.size))
tiled = [sum(min(T + 2, 32 - corner) for corner in range(0, 30, T)) ** 2 / 30 ** 2 for T in sides]
for name, counts in counted.items():
    print(f"{name:10s} reads for each result and channel, T = 2, 4, 8, 16:", *(f"{count:.2f}" for count in counts))
    assert np.allclose(counts, 9 if name == "conv_alone" else tiled)

# The figure, from the left, if the machine is free: columns cost time where they come near the size of the last cache,
# which all cores share (dotted: batches whose columns fill one). Two threads lose where there is little to do, and gain
# where there is more. Tiles save reads, large ones more. A block of 8 × 8 threads fetches each pixel of its tile once
# (one for each thread, then what is beyond the orange line), and uses it as often as its number says.

figure = Figure(figsize=(17, 4.2), layout="constrained")
cache, threads, reads, tile = figure.subplots(1, 4)
cache.plot(sizes, times[:2].T, "o-", label=list(jobs)[:2])
threads.loglog(sizes, times.T, "o-", label=list(jobs))
cache.set(xscale="log", ylim=(0, 1.25 * times[:2].max()), title="a cache")
threads.set(title="threads, and two rooms", yticks=[50, 100, 200, 400, 800], yticklabels=[50, 100, 200, 400, 800])
for path in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[23]/size")):
    full = int(path.read_text().strip("K\n")) * 1024 / (32 * 32 * 9 * 12 * 4)
    cache.axvline(full, color="k", ls=":")
    cache.text(full, 2, f" L{path.parent.name[-1]}")
reads.plot(sides, np.transpose([tiled, [9] * 4]), "k", lw=1, label=["by arithmetic", "_"])
for (name, counts), marker in zip(counted.items(), "os+"):
    reads.plot(sides, counts, marker, ms=9, label=name)
reads.set(xlabel="side T of a block", ylabel="reads for each result and channel", title="blocks", xticks=sides, ylim=0)
used = np.minimum(np.minimum(np.arange(1, 11), np.arange(10, 0, -1)), 3)
tile.imshow(np.outer(used, used), "Blues", vmin=0, vmax=18)
for i, k in np.ndindex(10, 10):
    tile.text(k, i, used[i] * used[k], ha="center", va="center")
tile.plot([-0.5, 7.5, 7.5], [7.5, 7.5, -0.5], "C1", lw=3)
tile.set(title="a tile: 8 × 8 threads, and the halo", xticks=[], yticks=[])
for axes in (cache, threads):
    axes.minorticks_off()
    axes.set(xlim=(0.8, 120), xticks=sizes, xticklabels=sizes, xlabel="pictures in a batch", ylabel="µs per picture")
for axes in (cache, threads, reads):
    axes.legend(fontsize=9)
keep(figure, __file__)

# Try: take the first __syncthreads() away, or the first yield. Keep the columns in one array for all calls (np.copyto):
# how much of the time was fresh memory? Then the exercises: exercises/11_three_rooms.py.
