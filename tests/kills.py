"""Kill a training at random moments, resume it each time, and hold the end against a training that nobody killed.

    python tests/kills.py 100            # that many kills; a seed may follow

A small training saves itself after every step, so that many of the kills (SIGKILL) come while a file is written. After
each, whatever lies there under its own name must be whole. In the end checkpoint and averaged weights must be the bits
of the training that ran through, and no file may be left that does not belong there.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

import npdiffusion  # first: it chooses NumPy's BLAS kernels
import numpy as np

from npdiffusion import Tensor, functional as F
from npdiffusion.checkpoint import load_file
from npdiffusion.models import Classifier, load_model
from npdiffusion.training import Training

FILES = ["checkpoint.safetensors", "log.csv", "loss.png", "model.safetensors"]


def train(out, steps, save_minutes=0.0):
    """Train for so many steps, or go on from what is at ``out``."""
    npdiffusion.manual_seed(3)
    images = np.random.default_rng(0).standard_normal((30, 1, 8, 8), dtype=np.float32)
    model = Classifier(num_classes=3, channels=(8, 8), dropout=0.3)
    run = Training(model, len(images), {"seed": 3}, steps=steps, batch_size=8, lr=1e-2)

    def loss(index):
        noise = run.rng.standard_normal(images[index].shape, dtype=np.float32)
        return F.cross_entropy(model(Tensor(images[index] + 0.1 * noise)), index % 3)

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        run.fit(loss, out, resume=(out / FILES[0]).exists(), save_minutes=save_minutes)


def kills(count, seed=0, steps_for_each=2):
    """Run the test in a temporary directory; AssertionError says what is wrong, else the returned figures.

    In a process of its own: forks share the lock of a tqdm that was there before them, and a killed one keeps it.
    """
    rng, steps, begin = random.Random(seed), 2 + steps_for_each * count, time.monotonic()
    found = {"kills": 0, "finished lives": 0, "kills amid a write": 0, "left-overs at most": 0}
    with tempfile.TemporaryDirectory() as folder:
        out, whole, left = Path(folder) / "killed", Path(folder) / "whole", set()
        fork = multiprocessing.get_context("fork")
        while found["kills"] < count:
            life = fork.Process(target=train, args=(out, steps))
            life.start()
            life.join(rng.uniform(0, 0.5))
            life.kill()
            life.join()
            if life.exitcode == 0:  # it came to the end before its time: so begins another
                assert_whole(out, steps)
                found["finished lives"] += 1
                steps += steps_for_each * count
                for path in out.iterdir():
                    path.unlink()
                continue
            found["kills"] += 1
            before, left = left, {path.name for path in out.glob("*.tmp")}
            found["kills amid a write"] += bool(left - before)
            found["left-overs at most"] = max(found["left-overs at most"], len(left))
            assert_whole(out)
        train(out, steps)
        train(whole, steps, save_minutes=1e9)
        assert sorted(path.name for path in out.iterdir()) == FILES, "files are left over"
        for name in ("checkpoint.safetensors", "model.safetensors"):
            (a, meta), (b, meta_b) = load_file(out / name), load_file(whole / name)
            assert a.keys() == b.keys()
            for key in a.keys() - {"log"}:  # it holds seconds
                assert a[key].tobytes() == b[key].tobytes(), f"{name}: {key} differs"
            for key in meta.keys() - {"seconds"}:
                assert meta[key] == meta_b[key], f"{name}: {key} differs"
    return {**found, "steps": steps, "seconds": round(time.monotonic() - begin)}


def assert_whole(out, step=None):
    """What lies there under its own name can be read."""
    for name, read in (("checkpoint.safetensors", load_file), ("model.safetensors", load_model)):
        if (out / name).exists():
            held = read(out / name)
            assert step is None or name != FILES[0] or held[1]["step"] == step
    if (out / "loss.png").exists():
        assert (out / "loss.png").read_bytes().endswith(b"IEND\xaeB`\x82")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    args = parser.parse_args()
    print(kills(args.kills, args.seed))
