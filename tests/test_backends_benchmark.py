"""benchmarks/backends.py runs, and says what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from on_devices import REAL, real_cupy

from npdiffusion import get_num_threads, set_num_threads

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def backends(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = get_num_threads()
    import backends
    yield backends
    set_num_threads(threads)


def check(path, names, batches):
    results = json.loads((path / "r.json").read_text())
    assert [*results["train_step"]] == batches and len(results["sampling"]) == 1 and len(results["kernels"]) > 5
    for part in ("train_step", "sampling", "kernels"):
        for times in results[part].values():
            assert [*times] == [x for x in names if part != "kernels" or x != "captured"] and min(times.values()) > 0
    picture = Image.open(path / "r.png")
    assert picture.width > 500 and len(picture.getcolors(1 << 24)) > 10
    return results


def test_numpy_alone(backends, tmp_path, capsys):
    backends.main(["--small", "--backends", "numpy", "--batches", "1", "2", "--repeats", "1", "--json",
                   str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")])
    assert check(tmp_path, ["numpy"], ["1", "2"])["device"] == "CPU only"
    assert "training step, batch 2" in capsys.readouterr().out


@pytest.mark.slow
def test_numpy_against_cupy(cupy, backends, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backends, "torch", None)
    if cupy is not real_cupy:  # which takes its time
        calls = backends.kernel_calls
        monkeypatch.setattr(backends, "kernel_calls", lambda batch: {
            name: (op, *(a[:, :, :4, :4] if a.ndim == 4 and a.shape[2] > 3 else a for a in arrays))
            for name, (op, *arrays) in calls(batch).items() if "128" not in name})
    backends.main(["--small", "--backends", "numpy", "cupy", "captured", "--batches", "1", "--repeats", "1", "--json",
                   str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")])
    printed = capsys.readouterr().out
    assert "TF32 on" in printed and printed.count("CuPy captured: ") == 2  # of a step and of sampling
    assert check(tmp_path, ["numpy", "cupy", "captured"], ["1"])["tf32"] is True


def test_torch_computes_the_same(backends):
    torch = pytest.importorskip("torch")
    del torch
    libraries, small = [backends.Ours("numpy"), backends.Torch("torch", "cpu")], backends.SMALL
    state = backends.numpy_unet(small).state_dict()
    functions = [x.step(x.network(state, small), *backends.inputs(2, 8)) for x in libraries]
    assert [*backends.compare("step", libraries, functions, 1e-4, False, 1)] == ["numpy", "torch"]
    scheduler = backends.DDIMScheduler()
    scheduler.set_timesteps(3)
    functions = [2 * (x.sample(x.network(state, small), scheduler, (2, 1, 8, 8), backends.np.arange(2)),)
                 for x in libraries]
    backends.compare("sampling", libraries, functions, 1e-3, False, 1)


def test_a_difference_is_told(backends):
    ours = backends.Ours("numpy")
    functions = [(lambda: [backends.np.ones(3)], None), (lambda: [backends.np.array([1, 1, 1.01])], None)]
    with pytest.raises(AssertionError, match="differs from numpy by 1.0e-02"):
        backends.compare("this", [ours, ours], functions, 1e-3, False, 1)


@pytest.mark.skipif(REAL, reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    result = subprocess.run([sys.executable, BENCHMARKS / "backends.py"], capture_output=True, text=True)
    assert result.returncode == 1 and "device 'cuda' needs" in result.stderr and "--backends numpy" in result.stderr
    assert "Traceback" not in result.stderr
