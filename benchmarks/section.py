"""A section of 16,384×16,384 pixels, segmented and denoised from disk to disk: how much memory, how much time.

    python benchmarks/section.py                    # ten minutes on 2 cores; 1.6 GB in runs/section, removed at the end
    mpiexec -n 2 python benchmarks/section.py       # the ranks share the work; rank 0 measures itself

Made of the 20 real sections, mirrored at the joints. The network of segment_mitochondria.py finds its mitochondria;
then, pixels taken together two by two as in denoise_micrographs.py, noise is added and removed again. Memory is what
the process has for itself (RssAnon: without the pages of mapped files, which the system takes back when it likes), at
its highest, beyond what it has with packages and networks loaded. Time stands beside that of a section of 1024×1024 in
memory, which is done in between, so that both meet the machine in the same moods: medians.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np
from tqdm import tqdm

from npdiffusion import distributed
from npdiffusion.data import load_micrographs
from npdiffusion.files import atomic_write
from npdiffusion.models import pretrained
from npdiffusion.tiling import predict_tiled

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import denoise_micrographs as denoising  # noqa: E402
import segment_mitochondria as segmentation  # noqa: E402

SIDE = 1024  # of a real section
PAUSES = 12  # in which one of these is predicted in memory


class Rows:
    """An array (1, H, W) whose rows are computed when they are sliced."""

    def __init__(self, shape, compute):
        self.shape, self.compute = (1, *shape), compute

    def __getitem__(self, index):
        return self.compute(index[1].start, index[1].stop)[None]


def private_memory():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def on_disk(path, dtype, side):
    """A new square array in a file. Its space is set aside: a full disk is an error now, not a crash (SIGBUS) later."""
    if distributed.get_rank() == 0:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, side * side * np.dtype(dtype).itemsize)
    distributed.barrier()
    return np.memmap(path, dtype, "r+", shape=(side, side))


def make_section(path, size):
    """The real sections, one below the other, each second one upside down, and mirrored to the right."""
    section, pictures = on_disk(path, np.uint8, size), np.concatenate([s.images for s in load_micrographs("sstem")])
    mirrored = np.pad(np.arange(SIDE), (0, size - SIDE), mode="symmetric")
    for n in range(distributed.get_rank(), size // SIDE, distributed.get_world_size()):
        section[n * SIDE:(n + 1) * SIDE] = pictures[n % len(pictures)][::-1 if n % 2 else 1, mirrored]
    section.flush()
    distributed.barrier()
    return section


def measure(predict, image, out, side, options):
    """Predict ``image`` (1, H, W) into ``out`` (H, W); results as a dict. ``side``: that of a real section in it."""
    stride, pauses, memory, done = options["tile"] - options["overlap"], [], [], threading.Event()
    rows = -(-len(out) // stride)  # of as many tiles
    every = -(-rows // PAUSES) * rows
    bar = tqdm(total=rows ** 2 // distributed.get_world_size(), unit=" tiles", smoothing=0)

    def watched(tiles):
        if bar.n % every == 0:
            begin = time.perf_counter()
            predict_tiled(predict, small, **options)
            pauses.append((begin, time.perf_counter()))
        bar.update(len(tiles))
        return predict(tiles)

    def watch():
        while not done.wait(0.01):
            memory.append(private_memory())

    small = image[:, 0:side, :][..., :side]
    predict_tiled(predict, small, **options)  # the first time is slower
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    with bar:
        predict_tiled(watched, image, out, **options)
    seconds = time.perf_counter() - start - sum(end - begin for begin, end in pauses)
    done.set()
    between = np.median([begin - end for (_, end), (begin, _) in zip(pauses, pauses[1:])])
    ns = 1e9 * between / every * rows ** 2 / out.size
    ns_in_memory = 1e9 * np.median([end - begin for begin, end in pauses]) / side ** 2

    far = 2 * stride  # further than the edge of a picture shows
    top = len(out) // 2 // stride * stride - far  # so that tiles of the piece lie as those of the whole
    piece, inner = slice(top, top + side + 2 * far), slice(far, far + side)
    with distributed.alone():
        expected = predict_tiled(predict, image[:, piece, :][..., piece], **options)[0, inner, inner]
    return {"seconds": seconds, "peak_mib": max(memory), "ns_per_pixel": ns, "ns_per_pixel_in_memory": ns_in_memory,
            "ratio": ns / ns_in_memory, "difference": float(abs(out[piece, piece][inner, inner] - expected).max())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16 * SIDE, help="a multiple of 1024, at least 4096")
    parser.add_argument("--sigma", type=int, default=50, help="noise to remove, in grey levels")
    parser.add_argument("--out", type=Path, default=Path("runs/section"))
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--threads", type=int, default=npdiffusion.get_num_threads())
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args()
    npdiffusion.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    section = make_section(args.out / f"section-{args.size}.uint8", args.size)
    grey = sum(np.bincount(section[y:y + 64].ravel(), minlength=256) for y in range(0, args.size, 64)) / section.size
    levels = np.arange(256) - grey @ np.arange(256)
    levels = (levels / np.sqrt(grey @ levels ** 2)).astype(np.float32)  # mean 0, standard deviation 1

    def normalized(start, stop):
        return levels[section[start:stop]]

    def noisy(start, stop):
        noise = [np.random.default_rng(y).standard_normal(args.size // 2, np.float32) for y in range(start, stop)]
        return denoising.pooled(section[None, 2 * start:2 * stop])[0, 0] + np.array(noise) * (args.sigma / 127.5)

    works = {"segmentation": (segmentation.estimator(pretrained("sstem-mitochondria")), normalized, 1,
                              dict(tile=segmentation.TILE, overlap=segmentation.OVERLAP, batch_size=1)),
             "denoising": (denoising.estimator(pretrained("sstem-ddpm"), args.sigma), noisy, 2,
                           dict(tile=denoising.TILE, overlap=denoising.OVERLAP))}
    loaded, results = private_memory(), {"size": args.size, "threads": args.threads}
    for name, (predict, compute, pooled, options) in works.items():
        out = on_disk(args.out / f"{name}-{args.size}.float32", np.float32, args.size // pooled)
        results[name] = r = measure(predict, Rows(out.shape, compute), out, SIDE // pooled, options)
        r["peak_mib"] -= loaded
        print(f"{name}: {r['seconds']:.0f} s; {r['ns_per_pixel']:.0f} ns per pixel, in memory "
              f"{r['ns_per_pixel_in_memory']:.0f}, ratio {r['ratio']:.3f}; peak {r['peak_mib']:.0f} MiB; "
              f"difference {r['difference']:.1e}", flush=True)
    if args.json:
        with atomic_write(args.json) as file:
            file.write(json.dumps(results, indent=1).encode())
    distributed.barrier()
    for path in () if args.keep else args.out.glob(f"*-{args.size}.*"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
