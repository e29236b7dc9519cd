"""benchmarks/scaling.py runs, computes what its model says, and leaves no process behind."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COSTS = {"bytes": 1e6, "add_ms": 0.1, "draw_ms": 0.8}  # γ = 1e-10 s/byte; 0.1 ms for the noise of each of 8 pictures


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling
    return scaling


def test_all_reduce_by_hand(scaling):
    # 6 and 4 messages of 10 µs, and 3/4 of 1 MB sent twice at 1 GB/s and added up at 10 GB/s: 1.5 and 0.075 ms
    assert scaling.all_reduce_ms("ring", 4, 1e6, 1e-5, 1e-9, 1e-10) == pytest.approx(0.06 + 1.5 + 0.075)
    assert scaling.all_reduce_ms("tree", 4, 1e6, 1e-5, 1e-9, 1e-10) == pytest.approx(0.04 + 1.5 + 0.075)
    assert scaling.all_reduce_ms("ring", 1, 1e6, 1e-5, 1e-9, 1e-10) == 0


def test_model_by_hand(scaling):
    local = {"1": 3.0, "4": 9.0, "8": 17.0}  # 1 ms and 2 ms a picture
    assert scaling.fit(local) == pytest.approx((1, 2))
    reduce = {"ms": 0.7, "packing_ms": 0.2, "latency_us": 10, "bandwidth_GB_per_s": 2}
    m = scaling.model({"local_ms": local, "costs": COSTS, "allreduce": reduce, "batch": 8, "model_of": 2})
    assert m["strong"]["no communication"] == pytest.approx({1: 17, 2: 9, 4: 5, 8: 3}) and m["error_of_fit"] < 1e-9
    assert m["strong"]["10 Gbit/s, tree"][4] == pytest.approx(5 + 0.2 + 4 * 0.02 + 0.75 * (1.6 + 0.1))
    ring = 2 * 1023 * 0.002 + 1023 / 1024 * (0.16 + 0.1)
    assert m["weak"]["100 Gbit/s, ring"][1024] == pytest.approx(17 + 0.2 + ring)
    assert m["break_even_pictures"]["100 Gbit/s, ring"] == pytest.approx((0.2 + ring - 1) / 2)
    assert m["weak"]["shared memory, tree"][2] == pytest.approx(17 + 0.2 + 2 * 0.01 + 0.5)
    assert m["weak_drawing"][4] == pytest.approx(m["weak"]["100 Gbit/s, tree"][4] + 0.1 * 24)
    assert m["weak_drawing"][1] == m["weak"]["10 Gbit/s, ring"][1] == pytest.approx(17)


def test_an_error_of_a_worker_ends_all(scaling, monkeypatch, capfd):
    monkeypatch.setattr("scaling_workers.torch", None)
    with pytest.raises(SystemExit, match="a worker has ended"), scaling.contenders([1]) as workers:
        assert workers["ours", 1].ask("step", 1)[0] > 0
        workers["ours", 1].ask("nonsense")
    assert "has no attribute 'nonsense'" in capfd.readouterr().err
    assert [process.poll() for process in workers["ours", 1].processes] == [1]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mpi4py"), reason="needs mpi4py and mpich")
def test_smoke(tmp_path):
    command = [sys.executable, BENCHMARKS / "scaling.py", "--ranks", "1", "2", "--batch", "4", "--rounds", "1",
               "--out", tmp_path / "out", "--json", tmp_path / "r.json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "| npdiffusion, 2 ranks" in run.stdout and "Computed: " in run.stdout
    results = json.loads((tmp_path / "r.json").read_text())
    assert [*results["ranks"]] == ["1", "2"] and results["allreduce"]["bytes"] > 1e6
    assert min(results["ranks"]["2"].values()) > 0 and results["weak"]["2"]["efficiency"] > 0
    assert ("step_ratio_to_torch" in results["ranks"]["2"]) == bool(results["torch"]) == bool(results["ddp"])
    for folder in ("out", "."):
        assert Image.open(tmp_path / folder / "scaling.png").width > 1000
