"""Runs the CUDA C kernels on the CPU, for tests on machines without a GPU.

``compile(source, options)`` turns a .cu text into a library with the header cuda_on_cpu/cuda_on_cpu.h, which says
how threads and barriers are imitated; its ``launch`` takes NumPy arrays where a kernel takes pointers. It is
stricter than a GPU: every argument must have exactly the parameter's C type (on a GPU, a Python int where an int
is expected is read as garbage or passes by luck), arrays must fill their memory densely (but for kernels that are told
strides), and a kernel that writes outside an array is caught. What it reads outside is NaN. Structs may hold addresses;
what lies there is guarded in the same way if ``launch`` is told whose memory it is.

Needs a C++ compiler: $CXX, g++, clang++, or ``pip install ziglang``.
"""

import ctypes
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

__all__ = ["addresses", "compile", "compiler"]

HEADER = Path(__file__).parent / "cuda_on_cpu" / "cuda_on_cpu.h"
BUILD = HEADER.parent / "__pycache__"
KERNEL = re.compile(r'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)')
TYPES = {"bool": "?", "int": "i4", "unsigned": "u4", "long long": "i8", "unsigned long long": "u8", "float": "f4",
         "double": "f8", "unsigned char": "u1"}
STRIDED = "product_"  # how the names of kernels begin that take arrays of any strides to read
PARAMETERS = 4096  # bytes of all parameters
ZONE = 8192  # bytes around each array that no kernel may write to
LIMITS = (2**31 - 1, 65535, 65535), (1024, 1024, 64)  # blocks and threads along x, y, z


@cache
def compiler():
    """The command of a C++ compiler, or None."""
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "c++"] if importlib.util.find_spec("ziglang") else None


def compile(source, options=()):
    """The kernels of a CUDA C source, compiled as C++; of the options, -D… count. Skips the test without a compiler."""
    if compiler() is None:
        pytest.skip("no C++ compiler (set CXX, or pip install ziglang)")
    return _compile(source, tuple(o for o in options if o.startswith("-D")))


@cache
def _compile(source, defines):
    kernels = {name: [_parameter(p) for p in parameters.split(",")]
               for name, parameters in KERNEL.findall(re.sub(r"//.*", "", source))}
    text = f'#include "{HEADER}"\n#line 1 "kernels.cu"\n{source}\n'
    for name, types in kernels.items():
        arguments = ", ".join(f"*({t}*)a[{i}]" for i, t in enumerate(types))
        text += (f'extern "C" int run_{name}(const int *grid, const int *block, void **a) '
                 f"{{ return cuda_on_cpu::run(grid, block, [=] {{ {name}({arguments}); }}); }}\n"
                 f'extern "C" const long long sizes_{name}[] = {{ {", ".join(f"sizeof({t})" for t in types)} }};\n')
    command = [*compiler(), "-x", "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE",
               "-Wno-unknown-pragmas", *defines]
    key = hashlib.sha256("\0".join([text, HEADER.read_text(), *command]).encode()).hexdigest()[:24]
    library = BUILD / f"{key}.so"
    if not library.exists():
        BUILD.mkdir(exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}")
        result = subprocess.run([*command, "-", "-o", part], input=text, text=True, capture_output=True)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{result.stderr}")
        part.replace(library)
    real = next((d.removeprefix("-Dreal=") for d in defines if d.startswith("-Dreal=")), None)
    return Kernels(ctypes.CDLL(str(library)), kernels, real)


def _parameter(text):
    """The type of a parameter like ``const real *__restrict__ x``: "const real *"."""
    type, _, name = text.replace("__restrict__", " ").strip().rpartition(" ")
    return f"{' '.join(type.replace('*', ' ').split())}{' *' if '*' in type + name else ''}"


class Kernels:
    """The kernels of one source."""

    def __init__(self, library, kernels, real):
        self.library, self.kernels, self.types = library, kernels, TYPES | {"real": TYPES.get(real)}

    def launch(self, name, grid, block, args, shared_mem=0, memory_at=None):
        """Run the kernel; blocks after each other. Raises for what a GPU would refuse, or would silently do wrong.

        memory_at(address): the array in whose memory an address lies that a struct holds; None leaves them as they are.
        """
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        for sizes, limits, what in zip((grid, block), LIMITS, ("blocks", "threads")):
            if not all(isinstance(n, int) and 1 <= n <= most for n, most in zip(sizes, limits)):
                raise ValueError(f"{name}: {what} {sizes} outside of 1 to {limits}")
        if np.prod(block) > 1024:
            raise ValueError(f"{name}: {block} are more than 1024 threads in a block")
        types = self.kernels[name]
        if len(args) != len(types):
            raise TypeError(f"{name} takes {len(types)} arguments, got {len(args)}")
        sizes = (ctypes.c_longlong * len(types)).in_dll(self.library, f"sizes_{name}")
        if sum(sizes) > PARAMETERS:
            raise ValueError(f"{name}: parameters of {sum(sizes)} bytes, more than {PARAMETERS}")
        guarded, pointers = {}, []
        for i, (type, size, arg) in enumerate(zip(types, sizes, args)):
            where = f"{name}, argument {i} ({type})"
            pointers.append(self._pointer(where, type.removesuffix(" *"), arg, guarded) if type.endswith("*")
                            else self._value(where, type, size, arg, guarded, memory_at))
        values = (ctypes.c_void_p * len(types))(*(p.ctypes.data for p in pointers))
        triple = ctypes.c_int * 3
        if getattr(self.library, f"run_{name}")(triple(*grid), triple(*block), values):
            raise RuntimeError(f"{name}: some threads wait at a barrier that others never reach")
        for where, memory, buffer, start, _ in guarded.values():
            if not ((buffer[:start] == 255).all() and (buffer[start + len(memory):] == 255).all()):
                raise RuntimeError(f"{where}: written outside of the array")
            memory[:] = buffer[start:start + len(memory)]

    def _value(self, where, type, size, arg, guarded, memory_at):
        """A scalar or a struct, as an array that holds its bytes."""
        expected = self.types.get(type)
        if expected is None:  # a struct
            if not isinstance(arg, np.void) or arg.dtype.names is None or arg.nbytes != size:
                raise TypeError(f"{where}: expected a scalar of a structured dtype of {size} bytes, got {arg!r}")
            value = np.array(arg).copy()  # without, it would be the scalar's own memory
            for field in addresses(value) if memory_at else ():
                for i, address in np.ndenumerate(field):
                    if address:
                        memory = memory_at(int(address))
                        start = np.lib.array_utils.byte_bounds(memory)[0]
                        field[i] = self._guarded(where, memory, False, guarded) + int(address) - start
            return value
        dtype = {bool: "?", int: "i8", float: "f8"}.get(arg.__class__) or getattr(arg, "dtype", None)
        if isinstance(arg, np.ndarray) or dtype != np.dtype(expected):
            raise TypeError(f"{where}: got {arg!r} ({arg.__class__.__name__})")
        return np.array(arg, dtype)

    def _pointer(self, where, type, arg, guarded):
        """The address of a guarded copy of the array. None is NULL."""
        if arg is None:
            return np.zeros(1, "u8")
        read_only = type.startswith("const ")
        if not isinstance(arg, np.ndarray) or arg.dtype != np.dtype(self.types[type.removeprefix("const ")]):
            raise TypeError(f"{where}: got {getattr(arg, 'dtype', arg)!r}")
        low, high = np.lib.array_utils.byte_bounds(arg) if arg.size else 2 * (arg.ctypes.data,)
        if not (read_only and where.startswith(STRIDED)) and (high - low != arg.nbytes or low != arg.ctypes.data):
            raise ValueError(f"{where}: the array's memory has gaps: shape {arg.shape}, strides {arg.strides}")
        return np.array([self._guarded(where, arg, read_only, guarded) + arg.ctypes.data - low], np.uint64)

    def _guarded(self, where, array, read_only, guarded):
        """Where a copy of the array's memory begins, between zones of NaN; ``launch`` copies it back."""
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else 2 * (array.ctypes.data,)
        size = high - low
        key = low, size
        if key not in guarded:
            for other, memory, _, _, other_read_only in guarded.values():
                if size and np.may_share_memory(array, memory) and not (read_only and other_read_only):
                    raise ValueError(f"{where}: overlaps with {other}")
            memory = np.frombuffer((ctypes.c_ubyte * size).from_address(low), np.uint8) if size else (
                np.empty(0, np.uint8))
            buffer = np.full(ZONE + 64 + size + ZONE, 255, np.uint8)
            start = ZONE + (low - buffer.ctypes.data - ZONE) % 64  # aligned as the array itself
            buffer[start:start + size] = memory
            guarded[key] = where, memory, buffer, start, read_only
        _, _, buffer, start, _ = guarded[key]
        return buffer.ctypes.data + start


def addresses(struct):
    """The fields of a struct that hold addresses, those of dtype u8: views, if it is an array ()."""
    return [struct[name] for name in struct.dtype.names or () if struct.dtype[name].base == np.dtype("u8")]
