"""What the package promises about itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={**os.environ, **environment}).stdout.strip()


def test_import_needs_no_other_framework():
    code = "import sys, npdiffusion; print([m for m in ('torch', 'cupy', 'diffusers', 'scipy') if m in sys.modules])"
    assert run(code) == "[]"


def test_only_the_backend_knows_other_array_libraries():
    other = re.compile(r"^\s*(import|from) (cupy|torch)\b", re.MULTILINE)
    for path in (ROOT / "npdiffusion").rglob("*.py"):
        assert path.name == "backend.py" or not other.search(path.read_text()), path


def test_your_choice_of_blas_kernels_stands():
    code = "import npdiffusion, os; print(os.environ.get('OPENBLAS_CORETYPE'))"
    assert run(code, OPENBLAS_CORETYPE="Nehalem") == "Nehalem"
    without = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    late = "import os; os.environ.pop('OPENBLAS_CORETYPE', None); import numpy; " + code
    assert subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=True, cwd=ROOT,
                          env=without).stdout.strip() == "None"  # too late for it


def test_shipped_weights_are_small_and_have_a_card():
    weights = list((ROOT / "npdiffusion" / "weights").glob("*.safetensors"))
    assert weights and sum(path.stat().st_size for path in weights) <= 8e6
    assert all(path.with_suffix(".md").is_file() for path in weights)


def test_readme_starts_with_the_two_commands():
    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    assert "pip install .\npython examples/quickstart.py" in blocks[0] and "python -m pytest" in blocks[1]
    exec(compile(next(b for b in blocks if b.startswith("python\n"))[len("python\n"):], "README", "exec"), {})
