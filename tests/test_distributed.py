"""Ranks: what mpiexec starts computes what one process computes, and ends together."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from npdiffusion import distributed

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMPI_ALLOW_RUN_AS_ROOT": "1",  # if it is Open MPI
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}

try:
    import mpi4py.MPI  # noqa: F401
except (ImportError, RuntimeError) as error:
    pytest.skip(f"mpi4py and an MPI are needed: pip install 'npdiffusion[mpi]' [{error}]", allow_module_level=True)


def ranks(n, *args, fails=False):
    """(stdout, stderr) of ``rank_programs.py`` under mpiexec, which must end within a minute."""
    command = [sys.executable, HERE / "rank_programs.py", *args]
    done = subprocess.run([MPIEXEC, "-n", str(n), *command] if n > 1 else command, capture_output=True, text=True,
                          timeout=60, env=ENVIRONMENT)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout, done.stderr


def losses(directory):
    return np.loadtxt(directory / "log.csv", delimiter=",", skiprows=1)[:, 2]


def test_a_training_is_the_same_on_any_number_of_ranks(tmp_path):
    """With dropout, uneven shares, a ratio of sums; and one that was stopped on 2 ranks goes on on 3, and on 1."""
    for n in (1, 2, 3):
        ranks(n, "steps", tmp_path / str(n), "-1")
    stopped = tmp_path / "stopped"
    said = ranks(2, "steps", stopped, "20", fails=True)[1]
    assert said.count("stopped at step 21 of 50, as rank 1 was asked to; go on with --resume") == 1
    assert sorted(path.name for path in stopped.iterdir()) == ["checkpoint.safetensors"]
    shutil.copytree(stopped, tmp_path / "alone")
    ranks(3, "steps", stopped, "-1", "--resume")
    ranks(1, "steps", tmp_path / "alone", "-1", "--resume")
    one = losses(tmp_path / "1")
    assert len(one) == 50 and one[-1] < 0.95 * one[0]
    for other in ("2", "3", "stopped", "alone"):
        np.testing.assert_allclose(losses(tmp_path / other), one, atol=2e-5)  # written with 5 digits


def test_sampling_is_the_same_on_any_number_of_ranks(tmp_path):
    found = []
    for n in (1, 2, 3):
        ranks(n, "sampling", tmp_path)
        found.append(np.load(tmp_path / f"{n}.npz"))
    for name in found[0]:
        for other in found[1:]:
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_tiles_into_one_file(tmp_path):
    """Each rank writes its rows; what one of them has left undone others do."""
    said = ranks(3, "tiles", tmp_path, "fail", fails=True)[1]
    assert re.findall("(rank .): Traceback", said) == ["rank 2"] and "No space left on device" in said
    noted = (tmp_path / "out.journal").read_text()
    assert noted.count("\n") >= 2
    ranks(2, "tiles", tmp_path)
    found = np.load(tmp_path / "2.npz")
    np.testing.assert_allclose(found["out"], found["whole"], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.npz", "out"]


def test_a_folder_of_pictures_is_decoded_by_rank_0(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    for i, picture in enumerate(pixels):
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png")
    said = ranks(2, "pictures", tmp_path)[1]
    found, expected = np.load(tmp_path / "2.npz"), pixels.transpose(0, 3, 1, 2) / 127.5 - 1
    assert said.count("30/30") == 1 and len(found["images"]) == 27
    for image, label in zip(found["images"], found["labels"]):
        i, = np.flatnonzero(np.abs(expected - image).max((1, 2, 3)) < 1e-6)
        assert label == i % 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["eager", "graph"])
def test_gpus(tmp_path, way):
    """On the stand-in, a GPU for each rank: losses and pictures as with one."""
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        ranks(n, "gpu", tmp_path / str(n), way)
    one, two = (np.load(tmp_path / f"{n}/{n}.npz") for n in (1, 2))
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(two["drawn"], one["drawn"], atol=5e-3)


@pytest.mark.parametrize("program, message", [
    ("raises", "rank 1: ValueError: this picture is broken"),
    ("dies", ""),
    ("strays", "rank 0: RuntimeError: weights of rank 1 are not those of rank 0 any more"),
    ("cannot_write", "rank 0: IsADirectoryError"),
    ("too_many", "rank 0: ValueError: Training expects at least one example of each batch for each of 2 ranks")])
def test_an_error_ends_all_ranks(tmp_path, program, message):
    """Within seconds, with one message that names the rank, and nothing half-written."""
    started = time.monotonic()
    _, said = ranks(2, program, tmp_path, fails=True)
    assert time.monotonic() - started < 30
    if message:
        rank, _, message = message.partition(": ")
        assert re.findall("(rank .): Traceback", said) == [rank] and f"\n{message}" in said
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_an_error_of_rank_0_is_that_of_all(tmp_path):
    ranks(2, "refuses", tmp_path)
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 1 == len(list(tmp_path.iterdir())) - 1


def test_each_rank_draws_its_share(monkeypatch):
    monkeypatch.setattr(distributed, "world", SimpleNamespace(size=3, rank=1))
    draws = [lambda rng, n: rng.random((n, 2)), lambda rng, n: rng.standard_normal(n, np.float32),
             lambda rng, n: rng.integers(0, 9, n), lambda rng, n: rng.random(size=(n, 1, 3), dtype=np.float32)]
    mine, whole = distributed.Generator(np.random.default_rng(0)), np.random.default_rng(0)
    for draw in draws:
        with distributed.batch_of(10):
            part = draw(mine, 3)
        np.testing.assert_array_equal(part, draw(whole, 10)[1::3])
    assert mine.random() == whole.random() and mine.uniform() == whole.uniform()
    with distributed.batch_of(10):
        for wrong in ((4, 2), 10, (), None):
            with pytest.raises(ValueError, match=r"for each example: expected a shape \(3, ...\)"):
                mine.standard_normal(wrong)
        with pytest.raises(ValueError, match="not by permutation"):
            mine.permutation(3)


@pytest.mark.parametrize("what", ["options", "code"])
def test_ranks_started_differently_are_told(tmp_path, what):
    other = tmp_path / "rank_programs.py"
    other.write_text((HERE / "rank_programs.py").read_text() + "# changed\n" * (what == "code"))
    commands = [[sys.executable, program, "cores", tmp_path] for program in (HERE / "rank_programs.py", other)]
    commands[1] += ["--lr"] * (what == "options")
    done = subprocess.run([MPIEXEC, "-n", "1", *commands[0], ":", "-n", "1", *commands[1]], capture_output=True,
                          text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode and done.stderr.count(f"the ranks have been started differently: {what} of rank 1") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rank_programs.py"]


def test_ranks_share_the_cores(tmp_path):
    """Each has its part, one core where there are too few; rank 0 alone speaks, and says so once."""
    cores = sorted(os.sched_getaffinity(0))
    out, said = ranks(2, "cores", tmp_path)
    assert out == "only once (2, 3)\n" and said.count("2 ranks, threads of each: ") == 1
    lines = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    half = max(1, len(cores) // 2)
    for rank, line in enumerate(lines):
        assert line == f"{rank} {cores[len(cores) * rank // 2:][:half]} {min(8, half)}\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_cannot_find_each_other_are_told(tmp_path, rank):
    """Another MPI's mpiexec, or no mpi4py: each would do all the work. Rank 0 alone says so."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('there is no MPI library')")
    environment = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)}
    for path, message in ((tmp_path, "cannot use mpi4py: there is no MPI library"), (HERE, "another MPI than mpi4py")):
        done = subprocess.run([sys.executable, "-c", "import npdiffusion"], capture_output=True, text=True, timeout=60,
                              cwd=HERE.parent, env={**os.environ, **environment, "PYTHONPATH": str(path)})
        assert done.returncode == 1
        assert (message in done.stderr and "pip install 'npdiffusion[mpi]'" in done.stderr) == (rank == 0)


def test_without_mpiexec_nothing_is_imported():
    code = "import npdiffusion, npdiffusion.training, sys; print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("example", ["train_diffusion", "train_classifier", "train_vae", "train_noise_level",
                                     "segment_mitochondria", "denoise_micrographs", "guided_denoising",
                                     "restore_micrographs"])
def test_examples(example, tmp_path):
    """Two ranks measure what one process does, to the last figure."""
    found = []
    for n in (1, 2):
        command = [sys.executable, HERE.parent / "examples" / f"{example}.py", "--preset", "smoke", "--data",
                   "synthetic", "--out", tmp_path / str(n)]
        subprocess.run([MPIEXEC, "-n", str(n), *command], check=True, capture_output=True, timeout=300,
                       env={**ENVIRONMENT, "NPDIFFUSION_DATA": str(tmp_path)})
        found.append(numbers(json.loads((tmp_path / str(n) / "metrics.json").read_text())))
    one, two = found
    assert len(one) >= 1 and one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def numbers(value, name=""):
    """{path: number} of a JSON value, without times."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items if key != "minutes" for k, v in numbers(part, f"{name}/{key}").items()}
    return {} if isinstance(value, (str, type(None))) else {name: value}
