"""Would the tests notice? Small faults planted in the package at random, one at a time, and the tests run on each.

    python tests/mutate.py 40                          # 40 mutants of the whole package, and those that no test noticed
    python tests/mutate.py 40 --seed 1 --of diffusion  # others, and of these files only
    python tests/mutate.py 40 --seed 1 --of diffusion --only 17  # the 17th of those again

By hand, not in CI: a mutant takes from seconds to as long as all tests take, if none notices. It is first shown to the
test files that know its module (TESTS), and then, if they pass, to all. What is printed as survived changes nothing, or
shows a gap. (mutmut and cosmic-ray try every mutant of a module; neither draws a sample, or asks some tests first.)
"""

import argparse
import ast
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT, PACKAGE = Path(__file__).parent.parent, "npdiffusion"
TESTS = {  # how a path begins -> the test files asked first; the first that fits
    "kernels/cupy": "kernel_rooms launches cuda_kernels devices graphs",
    "kernels/": "plain_kernels kernel_rooms forward gradients conv_kernels",
    "functional/_arguments": "bad_inputs forward gradients nn",
    "functional/": "forward gradients bad_inputs tensor against_torch", "nn/": "nn bad_inputs checkpoint",
    "diffusion/likelihood": "quality sampling", "diffusion/baselines": "quality",
    "diffusion/multistep": "multistep sampling", "diffusion/": "schedulers sampling",
    "models/pretrained": "pretrained package nn",
    "models/": "pretrained nn vae noise_level sampling", "data/micrographs": "micrographs segmentation",
    "data/": "data micrographs", "checkpoint": "checkpoint", "files": "checkpoint data", "optim": "optim training",
    "training": "training examples", "tensor": "tensor gradients graphs", "graph": "tensor gradients graphs",
    "threads": "conv_kernels plain_kernels package tensor", "_process": "package", "device": "devices tensor",
    "distributed": "distributed", "_ranks": "distributed",
    "random": "devices sampling", "metrics": "metrics quality", "tiling": "tiling", "journal": "tiling",
    "gradcheck": "gradcheck",
    "cuda_graph": "graphs", "figures": "quality examples"}
SWAPS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
         ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
         ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin",
         "floor": "ceil", "ceil": "floor", "any": "all", "all": "any"}

SYMMETRIC = ("maximum", "minimum", "max", "min", "swapaxes")  # whose arguments may change places


def faults(node):
    """(kind, source) of each small change of one node of a syntax tree."""
    def changed(kind, **fields):
        values = {name: getattr(node, name) for name in node._fields} | fields
        return kind, ast.unparse(type(node)(**values))

    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp)) and type(node.op) in SWAPS:
        yield changed("operator", op=SWAPS[type(node.op)]())
    if isinstance(node, ast.Compare):
        yield changed("comparison", ops=[SWAPS[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.IfExp):
        yield changed("negation", test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        value = node.value
        other = {bool: not value, int: value + 1, float: 2 * value or 1.0}[type(value)]
        yield "constant", repr(other)
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield "name", NAMES[node.id]
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield changed("name", attr=NAMES[node.attr])
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] not in SYMMETRIC:
        if len({ast.dump(a) for a in node.args[:2] if type(a) is not ast.Starred}) == 2:
            yield changed("arguments", args=[node.args[1], node.args[0], *node.args[2:]])
    if isinstance(node, ast.Raise) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement", "pass"


def mutants_of(path):
    """(kind, line, old, new, the file's new bytes) of every mutant of a file."""
    source = path.read_bytes()
    starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]
    tree = ast.parse(source)
    defaults = {id(d) for a in ast.walk(tree) if isinstance(a, ast.arguments) for d in (*a.defaults, *a.kw_defaults)}
    said = {id(n) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for n in ast.walk(f)}  # words of messages
    for node in ast.walk(tree):
        if id(node) in said or not hasattr(node, "lineno"):
            continue
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        if isinstance(node, (ast.If, ast.While)):
            test = node.test
            start, end = starts[test.lineno - 1] + test.col_offset, starts[test.end_lineno - 1] + test.end_col_offset
            changes = [("negation", f"not ({ast.unparse(test)})")]
        else:
            changes = faults(node)
        for kind, new in changes:
            new = f"({new})" if isinstance(node, (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp)) else new
            kind = "default" if id(node) in defaults else kind
            yield kind, node.lineno, source[start:end].decode(), new, source[:start] + new.encode() + source[end:]


def failing(copy, files, timeout):
    """The first test that fails, "timeout", or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", *files]
    try:
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "timeout"
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    return None if result.returncode == 0 else found[1] if found else f"pytest's exit status {result.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", default="", help="how the paths of the files to change begin, in the package")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the mutants to try")
    parser.add_argument("--quick", action="store_true", help="ask only the tests that know the module")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for a run of the tests; longer is caught")
    args = parser.parse_args()
    kinds = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.relative_to(ROOT / PACKAGE).as_posix().startswith(args.of):
            for kind, *mutant in mutants_of(path):
                kinds.setdefault(kind, []).append((path.relative_to(ROOT / PACKAGE), *mutant))
    rng = random.Random(args.seed)
    drawn, left = [], {kind: rng.sample(mutants, len(mutants)) for kind, mutants in kinds.items()}
    while any(left.values()) and len(drawn) < args.count:  # as many of each kind, on average; none twice
        kind = rng.choice(sorted(kind for kind in left if left[kind]))
        drawn.append((kind, *left[kind].pop()))
    survived = tried = 0
    with tempfile.TemporaryDirectory() as copy:
        copy = shutil.copytree(ROOT, Path(copy) / "copy", ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
        for number, (kind, path, line, old, new, source) in enumerate(drawn, 1):
            if args.only and number not in args.only:
                continue
            began, before = time.monotonic(), (copy / PACKAGE / path).read_bytes()
            first = next((names for part, names in TESTS.items() if path.as_posix().startswith(part)), "package")
            (copy / PACKAGE / path).write_bytes(source)
            by = failing(copy, [f"tests/test_{name}.py" for name in first.split()], args.timeout)
            if by is None and not args.quick:
                by = failing(copy, [], args.timeout)
            (copy / PACKAGE / path).write_bytes(before)
            tried, survived = tried + 1, survived + (by is None)
            print(f"{number:3d} {'caught' if by else 'SURVIVED'} {path}:{line} {kind}: {old!r} -> {new!r} "
                  f"[{by or 'no test'}, {time.monotonic() - began:.0f} s]", flush=True)
    print(f"{tried - survived} of {tried} noticed")


if __name__ == "__main__":
    main()
