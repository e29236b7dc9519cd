"""What the exercises of lesson 11 should return."""

import numpy as np


def block_of_pixel():
    """Blocks are laid down and numbered one after the other, each of their threads looked at."""
    for H, W, T in [(1, 1, 1), (2, 2, 2), (1, 2, 1), (2, 1, 1), (2, 4, 2), (1, 1, 2), (2, 3, 2), (3, 5, 2), (7, 4, 3)]:
        numbers, number, idle = np.full((H, W), -1), 0, 0
        for top in range(0, H, T):
            for left in range(0, W, T):
                for p in range(top, top + T):
                    for q in range(left, left + T):
                        if p < H and q < W:
                            numbers[p, q] = number
                        else:
                            idle += 1
                number += 1
        yield (H, W, T), (numbers, idle)


def memory_lines():
    """All bytes that the threads read, one by one, and the lines that these lie in."""
    for start, stride in [(0, 0), (0, 1), (1, 1), (0, 2), (31, 2), (5, 3), (0, 32), (0, 33), (100, 7), (8, 1000)]:
        seen = set()
        for t in range(32):
            for byte in range(4):
                seen.add((4 * (start + t * stride) + byte) // 128)
        yield (start, stride), len(seen)


def tree_sum():
    """Threads and steps as a kernel would write them; large numbers show in which order they were added."""
    for numbers in [[3], [3, 4], [1e8, 1, -1e8, 1], [1, 1e8, 1, -1e8], [1e8, -1e8, 1, 1],
                    [1e8, 1, 1, 1, -1e8, 1, 1, 1], [5, 1e8, -1e8, 4, 3, -1e8, 1e8, 2],
                    [1e8, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, -1e8]]:
        x = np.array(numbers, np.float32)
        shared, step = x.copy(), len(x) // 2
        while step:
            for thread in range(step):
                shared[thread] += shared[thread + step]
            step //= 2
        yield (x,), float(shared[0])


def attainable():
    """A tile's reads and a block's operations are counted one by one; the slower of both takes the time of a block."""
    for T, K, peak, bandwidth in [(1, 1, 1e3, 8.0), (1, 3, 1e3, 8.0), (2, 1, 1e3, 8.0), (2, 3, 1e3, 8.0),
                                  (2, 3, 8.5, 8.0), (8, 3, 6e13, 4e12), (16, 5, 6e13, 4e12), (16, 9, 6e13, 4e12)]:
        pixels, operations = set(), 0
        for p, q, i, j in np.ndindex(T, T, K, K):
            pixels.add((p + i, q + j))
            operations += 2
        yield (T, K, peak, bandwidth), operations / max(4 * len(pixels) / bandwidth, operations / peak)
