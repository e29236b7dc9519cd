"""Grade the exercises of the course.

    python examples/lessons/check.py                # how far you are
    python examples/lessons/check.py 3              # your answers to lesson 3, in exercises/
    python examples/lessons/check.py --solutions    # the course's own answers instead

cases/ has, for each function of an exercise, a generator of pairs (arguments, what it should return), smallest inputs
first. What it should return comes from a definition, from plain loops or finite differences, never from the solution.
Of an answer that is wrong the first such pair is shown. Ends with 1 if what was asked for is not all right.
"""

import argparse
import copy
import inspect
import runpy
import sys
import textwrap
import traceback
from pathlib import Path

import npdiffusion
import numpy as np

HERE = Path(__file__).resolve().parent
LESSONS = {int(path.stem[:2]): path for path in sorted(HERE.glob("[0-9]*.py"))}
TOLERANCE = 1e-4  # relative to the largest number that is expected: finite differences and float32 give no more
RIGHT, OPEN = "right", "not written yet"


def grade(path):
    """{function: RIGHT, OPEN, or in what it is wrong} of the answers in a file, named as its lesson is."""
    cases = {name: function for name, function in runpy.run_path(str(HERE / "cases" / path.name)).items()
             if inspect.isgeneratorfunction(function) and not name.startswith("_")}
    try:
        answers = runpy.run_path(str(path))
    except Exception as error:
        return dict.fromkeys(cases, f"{path.name} does not run: {told(error, path)}")
    return {name: judge(answers.get(name), pairs(), path) for name, pairs in cases.items()}


def judge(function, pairs, path):
    """The verdict on one function, given pairs (arguments, expected)."""
    if not inspect.isfunction(function):
        return "there is no function of this name"
    if function.__code__.co_code == unwritten.__code__.co_code:
        return OPEN
    for arguments, expected in pairs:
        given = copy.deepcopy(arguments)
        try:
            answer = function(*given)
        except Exception as error:
            return report(function, arguments, "raises", told(error, path), expected)
        if answer is None:
            return report(function, arguments, "returns", "None: is a return missing?", expected)
        if not close(answer, expected, TOLERANCE):
            verb = "returns"
            if isinstance(expected, tuple) and isinstance(answer, (tuple, list)) and len(answer) == len(expected):
                i = [close(*pair, TOLERANCE) for pair in zip(answer, expected)].index(False)
                verb, answer, expected = f"returns [{i}]", answer[i], expected[i]
            return report(function, arguments, verb, show(answer), expected)
        if not close(given, arguments, 0):
            return report(function, arguments, "changes", "its arguments: work on copies", expected)
    return RIGHT


def unwritten():
    """What a function without a body is compiled to."""


def close(a, b, tolerance):
    """Whether a and b are alike: arrays, numbers and texts, and tuples, lists and dicts of them; other things are."""
    if isinstance(b, (tuple, list)):
        return isinstance(a, (tuple, list)) and len(a) == len(b) and all(map(close, a, b, [tolerance] * len(b)))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(close(a[k], b[k], tolerance) for k in b)
    if isinstance(b, str):
        return a == b
    if not isinstance(b, (np.ndarray, np.generic, int, float, npdiffusion.Tensor)):
        return True
    try:
        a, b = (np.asarray(getattr(x, "detach", lambda: x)(), np.float64) for x in (a, b))
    except (TypeError, ValueError):
        return False
    largest = np.abs(b[np.isfinite(b)]).max(initial=0)
    return a.shape == b.shape and np.allclose(a, b, 0, tolerance * largest + 1e-12, equal_nan=True)


def report(function, arguments, verb, what, expected):
    """The input on which an answer is wrong, what it does and what it should return."""
    lines = [(name, show(value)) for name, value in zip(inspect.signature(function).parameters, arguments)]
    lines += [(verb, what), ("should be", show(expected))]
    width = max(len(name) for name, _ in lines) + 2
    return "wrong, smallest case:\n" + "\n".join(
        f"    {name:{width}s}{textwrap.indent(value, ' ' * (width + 4)).lstrip()}" for name, value in lines)


def show(value):
    """A value as text; functions by their names and what they say of themselves."""
    if isinstance(value, npdiffusion.Tensor):
        value = value.detach().numpy()
    if isinstance(value, (float, np.floating)):
        return f"{value:.7g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, tuple):
        apart = ",\n " if any(isinstance(v, np.ndarray) and v.ndim > 1 for v in value) else ", "
        return "(" + apart.join(textwrap.indent(show(v), " ").lstrip() for v in value) + ",)"[len(value) > 1:]
    if callable(value):
        said = inspect.getdoc(value)
        return getattr(value, "__name__", type(value).__name__) + (f": {said.splitlines()[0]}" if said else "")
    with np.printoptions(precision=6, threshold=60, suppress=True):
        return repr(value) if isinstance(value, str) else str(value)


def told(error, path):
    """An exception, and the line of the answers in which it came."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    lineno = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{type(error).__name__}: {error}" + (f" (line {lineno})" if lineno else "")


def title(lesson):
    """The first line of a lesson's text."""
    return LESSONS[lesson].read_text(encoding="utf-8").split("\n")[0].strip('"')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="?", type=int, choices=LESSONS, help="its number; all if left out")
    parser.add_argument("--solutions", action="store_true", help="grade the solutions instead of your answers")
    args = parser.parse_args()
    folder, wrong = HERE / ("solutions" if args.solutions else "exercises"), 0
    for lesson in [args.lesson] if args.lesson else LESSONS:
        path = folder / LESSONS[lesson].name
        verdicts = grade(path)
        right = sum(verdict == RIGHT for verdict in verdicts.values())
        print(f"{title(lesson):60s} {right} of {len(verdicts)} right")
        wrong += len(verdicts) - right
        if args.lesson or args.solutions and right < len(verdicts):
            for name, verdict in verdicts.items():
                print(f"  {name}: {verdict}")
    if args.lesson and OPEN in verdicts.values():
        print(f"The functions to write are in {path}")
    sys.exit(1 if wrong and (args.lesson or args.solutions) else 0)


if __name__ == "__main__":
    main()
