"""A section of 16,384×16,384 pixels, segmented and denoised from disk to disk: how much memory, how much time.

    python benchmarks/section.py                    # ten minutes on 2 cores; 1.6 GB in runs/section, removed at the end
    mpiexec -n 2 python benchmarks/section.py       # the ranks share the work; rank 0 measures itself

Made of the 20 real sections, mirrored at the joints. The network of segment_mitochondria.py finds its mitochondria;
then, pixels taken together two by two as in denoise_micrographs.py, noise is added and removed again. Memory is what
the process has for itself (RssAnon: without the pages of mapped files, which the system takes back when it likes), at
its highest, beyond what it has with packages and networks loaded. Time stands beside that of a section of 1024×1024 in
memory, which is done in between, so that both meet the machine in the same moods.
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
from numpy.lib.format import open_memmap
from tqdm import tqdm

from npdiffusion import distributed
from npdiffusion.data import load_micrographs
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
        self.shape, self.compute = shape, compute

    def __getitem__(self, index):
        return self.compute(index[1].start, index[1].stop)[None]


def private_memory():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def on_disk(path, dtype, shape):
    """A new array in a file. Its space is set aside: a full disk is an error now, not a crash (SIGBUS) later."""
    if distributed.get_rank() == 0:
        Path(f"{path}.journal").unlink(missing_ok=True)
        open_memmap(path, "w+", dtype, shape)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    distributed.barrier()
    return np.load(path, mmap_mode="r+")


def make_section(path, size):
    """The real sections, one below the other, each second one upside down, and mirrored to the right."""
    section = on_disk(path, np.uint8, (size, size))
    pictures = np.concatenate([part.images for part in load_micrographs("sstem")])
    mirrored = np.pad(np.arange(SIDE), (0, size - SIDE), mode="symmetric")
    for n in range(distributed.get_rank(), size // SIDE, distributed.get_world_size()):
        section[n * SIDE:(n + 1) * SIDE] = pictures[n % len(pictures)][::-1 if n % 2 else 1, mirrored]
    section.flush()
    distributed.barrier()
    return section


def measure(predict, image, out, side, **options):
    """Predict ``image`` (1, H, W) into ``out`` (H, W); results as a dict. ``side``: that of a real section in it."""
    stride, pauses, peak, over = options["tile"] - options["overlap"], [], [], threading.Event()
    tiles = int(np.prod([-(-n // stride) for n in out.shape])) // distributed.get_world_size()
    small = image[:, 0:side, :][..., :side]

    def watched(some):
        if bar.n >= len(pauses) * tiles / PAUSES:
            begin = time.perf_counter()
            predict_tiled(predict, small, **options)
            pauses.append(time.perf_counter() - begin)
        bar.update(len(some))
        return predict(some)

    def watch():
        while not over.wait(0.01):
            peak.append(private_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    predict_tiled(predict, small, **options)  # the first time is slower
    start = time.perf_counter()
    with tqdm(total=tiles, unit=" tiles", smoothing=0, disable=distributed.get_rank() > 0) as bar:
        predict_tiled(watched, image, out, **options)
    seconds = time.perf_counter() - start - sum(pauses)
    over.set()
    thread.join()

    far = 2 * stride  # further than the edge of a picture shows
    top = out.shape[0] // 2 // stride * stride - far  # tiles of the piece lie as those of the whole
    piece, inner = slice(top, top + side + 2 * far), slice(top + far, top + far + side)
    with distributed.alone():
        expected = predict_tiled(predict, image[:, piece, :][..., piece], **options)[0, far:far + side, far:far + side]
    large, in_memory = 1e9 * seconds * distributed.get_world_size() / out.size, 1e9 * np.mean(pauses) / side ** 2
    return {"seconds": seconds, "peak_mib": max(peak), "ns_per_pixel": large, "in_memory": in_memory,
            "ratio": large / in_memory, "difference": float(np.abs(out[inner, inner] - expected).max())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16 * SIDE, help="height and width in pixels, a multiple of 1024")
    parser.add_argument("--sigma", type=int, default=50, help="noise to remove, in grey levels")
    parser.add_argument("--out", type=Path, default=Path("runs/section"))
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--threads", type=int, default=npdiffusion.get_num_threads())
    parser.add_argument("--json", help="write the results to this file")
    args = parser.parse_args()
    if args.size < 4 * SIDE or args.size % SIDE:
        parser.error(f"--size must be a multiple of {SIDE}, at least {4 * SIDE}, got {args.size}")
    npdiffusion.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    section = make_section(args.out / "section.npy", args.size)
    grey = sum(np.bincount(section[y:y + 64].ravel(), minlength=256) for y in range(0, args.size, 64)) / section.size
    mean = float(grey @ np.arange(256))
    std = float(grey @ (np.arange(256) - mean) ** 2) ** 0.5

    table = ((np.arange(256) - mean) / std).astype(np.float32)

    def normalized(start, stop):
        return table[section[start:stop]]

    def noisy(start, stop):
        noise = [np.random.default_rng(y).standard_normal(args.size // 2, np.float32) for y in range(start, stop)]
        return denoising.pooled(section[None, 2 * start:2 * stop])[0, 0] + np.array(noise) * (args.sigma / 127.5)

    works = {"segmentation": (segmentation.estimator(pretrained("sstem-mitochondria")), normalized, 1,
                              dict(tile=segmentation.TILE, overlap=segmentation.OVERLAP, batch_size=1)),
             "denoising": (denoising.estimator(pretrained("sstem-ddpm"), args.sigma), noisy, 2,
                           dict(tile=denoising.TILE, overlap=denoising.OVERLAP))}
    loaded, results = private_memory(), {"size": args.size, "threads": args.threads, "ranks": distributed.get_world_size()}
    for name, (predict, compute, pooled, options) in works.items():
        shape = args.size // pooled, args.size // pooled
        out = on_disk(args.out / f"{name}.npy", np.float32, shape)
        results[name] = r = measure(predict, Rows((1, *shape), compute), out, SIDE // pooled, **options)
        r["peak_mib"] -= loaded
        if distributed.get_rank() == 0:
            print(f"{name}: {r['seconds']:.0f} s; {r['ns_per_pixel']:.0f} ns per pixel, {r['in_memory']:.0f} in memory "
                  f"(ratio {r['ratio']:.3f}); peak {r['peak_mib']:.0f} MiB; difference {r['difference']:.1e}", flush=True)
    distributed.barrier()
    if distributed.get_rank() == 0:
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=1))
        for path in () if args.keep else args.out.glob("*.npy"):
            path.unlink()


if __name__ == "__main__":
    main()
