"""What the package promises about itself."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "npdiffusion"


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={**os.environ, **environment}).stdout.strip()


# Imports


def name_of(path):
    """npdiffusion.kernels.plain for npdiffusion/kernels/plain/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name, everywhere=False):
    """What a module imports, by its full name: at its top level, or everywhere in it."""
    tree = ast.parse(MODULES[name].read_text())
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                assert alias.name != "*", f"{name} imports *"
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def test_no_circle_of_imports():
    """Among the modules, by what their text imports at the top."""
    above, done = [], set()

    def visit(name):
        assert name not in above, " -> ".join([*above[above.index(name):], name])
        if name not in done:
            above.append(name)
            for other in imports(name):
                if other in MODULES and other != "npdiffusion":
                    visit(other)
            done.add(above.pop())

    for name in MODULES:
        visit(name)


def test_doors():
    """Only device.py imports cupy, and nothing of the package; front rooms go through the seam, not into a room."""
    for name in MODULES:
        for other in imports(name, everywhere=True):
            assert not re.match(r"(torch|diffusers|scipy)\b", other), f"{name} imports {other}"
            assert other != "cupy" or name == "npdiffusion.device", f"{name} imports cupy"
            assert name != "npdiffusion.device" or not other.startswith("npdiffusion"), f"device.py imports {other}"
            if not name.startswith("npdiffusion.kernels"):
                assert not re.match(r"npdiffusion\.kernels\.\w", other), f"{name} imports {other}: ask kernels(array)"
            if name.startswith("npdiffusion.kernels.plain"):
                assert other in ("numpy", "math") or other.startswith(name[:25]), f"{name} imports {other}"


def test_import_needs_numpy_alone():
    code = ("import sys, {}; print([m for m in sys.modules if m.partition('.')[0] in ('torch', 'cupy', 'PIL', 'tqdm', "
            "'matplotlib', 'safetensors', 'threadpoolctl') or m == 'urllib.request'])")
    for module in ("npdiffusion", "npdiffusion.tensor"):
        assert run(code.format(module)) == "[]"


def test_rooms_are_opened_when_they_are_asked_for():
    names = "nd.models.UNet, nd.data.MNIST, nd.diffusion.denoise, nd.metrics.psnr, nd.checkpoint.save_file"
    said = run(f"import npdiffusion as nd; print(*(x.__name__ for x in ({names})))")
    assert said == "UNet MNIST denoise psnr save_file"
    import npdiffusion
    with pytest.raises(AttributeError, match="no attribute 'model'"):
        npdiffusion.model


# The process


@pytest.mark.parametrize("name, value", [("OPENBLAS_CORETYPE", "Nehalem"), ("OPENBLAS_THREAD_TIMEOUT", "10")])
def test_blas_is_set_up_for_this_process_only(name, value):
    code = f"import npdiffusion, os; print(os.environ.get({name!r}))"
    assert run(code, **{name: value}) == value  # your choice stands
    environment = {k: v for k, v in os.environ.items() if k != name}
    for first in ("", "import numpy; "):
        result = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=True,
                                cwd=ROOT, env=environment)
        assert result.stdout.strip() == "None"  # nothing for child processes to inherit


@pytest.mark.parametrize("keep", [False, True])
def test_the_process_may_be_left_alone(keep):
    code = f"""
import ctypes, os, sys, types
seen, CDLL = [], ctypes.CDLL

class Environment(dict):
    def __setitem__(self, name, value):
        seen.append(name)
        super().__setitem__(name, value)

class Library(CDLL):
    def __getattr__(self, name):
        seen.append(name)
        return super().__getattr__(name)

os.environ, ctypes.CDLL = Environment(os.environ), Library
sys.modules["npdiffusion"] = types.ModuleType("npdiffusion")
sys.modules["npdiffusion"].__path__ = [{str(PACKAGE)!r}]
import npdiffusion._process as process
print(seen, process.AVX512 <= process.processor_flags())
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    environment["NPDIFFUSION_KEEP_PROCESS"] = "1" if keep else "0"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env=environment).stdout
    if keep:
        assert said.startswith("[]")
    else:
        assert ("mallopt" in said) == (sys.platform == "linux")
        assert ("OPENBLAS_CORETYPE" in said) == said.strip().endswith("True")
        assert "OPENBLAS_THREAD_TIMEOUT" in said


# What is shipped


def test_shipped_weights_are_small_and_have_a_card():
    weights = [*(PACKAGE / "weights").glob("*.safetensors"), *(ROOT / "examples" / "weights").glob("*.safetensors")]
    assert len(weights) == 5 and sum(path.stat().st_size for path in weights) <= 8e6
    assert all(path.with_suffix(".md").is_file() for path in weights)


def test_the_package_is_mit_throughout():
    """Networks trained on data of another licence stay in examples/weights."""
    assert not list(PACKAGE.rglob("sstem-*"))
    for path in (PACKAGE / "weights").glob("*.md"):
        assert "NC-SA" not in path.read_text()


def test_networks_of_another_licence_are_found_from_a_checkout():
    code = "from npdiffusion.models import pretrained; print(type(pretrained('sstem-mitochondria')).__name__)"
    assert run(code) == "UNet"
    script = ("import importlib; p = importlib.import_module('npdiffusion.models.pretrained'); "
              "p.WEIGHTS = [w for w in p.WEIGHTS if 'examples' not in str(w)]\n"
              "try: p.pretrained('sstem-ddpm')\nexcept ValueError as error: print(error)")
    assert "examples/weights/sstem-ddpm.safetensors in the project's repository" in run(script)


def test_readme_starts_with_the_two_commands():
    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    assert "pip install .\npython examples/quickstart.py" in blocks[0] and "python -m pytest" in blocks[1]
    exec(compile(next(b for b in blocks if b.startswith("python\n"))[len("python\n"):], "README", "exec"), {})
