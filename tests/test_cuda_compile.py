"""Every CUDA kernel compiles for the GPUs of 2020 and 2022 (A100, H100): NVRTC needs no GPU, only its pip package."""

from pathlib import Path

import pytest

from cuda_on_cpu import KERNEL
from npdiffusion.kernels.cupy import build, tile

nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="cupy is not installed")
SOURCES = {path.stem: build.source(path.stem) for path in Path(build.__file__).parent.glob("*.cu")}
TILED = "conv", "product"
VARIANTS = [(family, real, lanes) for family in SOURCES if family not in TILED for real in ("float", "double")
            for lanes in ([{"LANES": 1}, {"LANES": 32}] if family == "attention" else [{}])]
VARIANTS += [(family, real, {"TF32": tf32, "WARPS_DOWN": down, "WARPS_ACROSS": across}) for family in TILED
             for real, tf32 in (("float", 0), ("float", 1), ("double", 0)) for down, across in sorted(tile.WARPS)]


@pytest.fixture(scope="module", autouse=True)
def library():
    try:
        nvrtc.getVersion()
    except Exception as error:  # cupy's own kinds
        pytest.skip(f"NVRTC is not installed (pip install nvidia-cuda-nvrtc-cu12): {error}")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("family, real, defines", VARIANTS, ids=lambda v: str(v).replace("'", "").replace(" ", ""))
def test_compiles(family, real, defines, arch):
    options = build.options(real, defines) + (f"-arch={arch}", "-ftz=true")  # as CuPy compiles
    program = nvrtc.createProgram(SOURCES[family], f"{family}.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    cubin = nvrtc.getCUBIN(program)
    assert "warning" not in nvrtc.getProgramLog(program)
    for name, _ in KERNEL.findall(SOURCES[family]):
        assert f".text.{name}\0".encode() in cubin  # the machine code's section
