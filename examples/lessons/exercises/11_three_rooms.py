"""Exercises of lesson 11: how a GPU counts. Grade them with python examples/lessons/check.py 11"""

import numpy as np


def block_of_pixel(H, W, T):
    """Which block computes each pixel of a picture, and how many threads have nothing to do.

    Blocks of T × T threads, a thread for each pixel, lie side by side until they cover H × W pixels. They are numbered
    row by row, from 0. Those at the lower and the right edge may hang over.

    Returns (numbers, idle): an int array (H, W), and the number of threads without a pixel, an int.
    """


def memory_lines(start, stride):
    """How many pieces of memory a warp, 32 threads that a GPU runs in step, asks for at once.

    Thread t reads element start + t·stride of a float32 array (4 bytes each), whose first byte begins a line. Memory
    comes in whole lines of 128 bytes: what lies in the same line is fetched once for all.

    start, stride: ints. Returns an int, from 1 to 32.
    """


def tree_sum(x):
    """The sum of n numbers in the order in which a block of n threads adds them.

    In each step half of the threads add. Of 8, each thread t < 4 adds number t + 4 to number t, then each t < 2 adds
    number t + 2, then thread 0 adds number 1: log₂ n steps in place of n − 1. Rounding depends on the order, so stay in
    the dtype of x.

    x (n,), float32, n a power of two. Returns a number.
    """


def attainable(T, K, peak, bandwidth):
    """The roofline (Williams et al. 2009): the most FLOP/s that a convolution with tiles can reach.

    A block of T × T threads computes T × T pixels of one output channel. For each input channel it fetches the pixels
    of its tile, 4 bytes each, for windows of K × K taps. (The weights stay in a cache and cost nothing.) Each thread
    multiplies and adds once for each tap: two FLOPs. The memory gives bandwidth bytes/s, the processor at most peak
    FLOP/s, and the slower one decides.

    T = 1 is a thread that fetches for itself. Returns FLOP/s, a number.
    """
