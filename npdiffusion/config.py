"""Configurations as diffusers writes them: JSON files, of which every key is either understood or refused."""

import json
import math
import re
from pathlib import Path

IGNORED = None  # in a table: a key that changes nothing here
KINDS = {int: "a positive integer", float: "a finite number", bool: "true or false"}


def find_file(directory, folder, name):
    """The file of that name in ``directory``, or in its ``folder``, where diffusers' pipelines have it.

    Raises FileNotFoundError, which says how to download what looks like a name on the Hugging Face Hub.
    """
    directory = Path(directory)
    for path in (directory / name, directory / folder / name):
        if path.is_file():
            return path
    if directory.is_dir():
        raise FileNotFoundError(f"{directory} holds neither {name} nor {folder}/{name}, which diffusers writes")
    hub = f"; if that is a name on the Hugging Face Hub: hf download {directory} --local-dir DIR, and give DIR"
    looks_so = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", directory.as_posix())
    raise FileNotFoundError(f"there is no directory {directory}{hub if looks_so else ''}")


def read_config(path, tables):
    """The class that the JSON file ``path`` names, and its configuration.

    tables: {class: table for ``check_config``}. Raises ValueError for other classes, and as ``check_config``.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
        name = config.get("_class_name")
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no configuration ({error}): download it again") from error
    if name not in list(tables):  # which may be no name at all
        raise ValueError(f"{path}: _class_name is {json.dumps(name)}; supported: {' or '.join(tables)}")
    return name, check_config(path, config, tables[name])


def check_config(source, config, table):
    """``config`` with every key of the table, where those that are absent take its default; lists become tuples.

    table: {key: (default, rule)}, or {key: IGNORED}. A rule is a value, a kind (int, which is to be positive, float,
    bool), a tuple of rules of which one fits, or a list of the one rule that all of a list fit. Keys that begin with _
    are diffusers' notes to itself. Raises ValueError, which names source and key, for unknown keys and wrong values.
    """
    for key in config:
        if key not in table and not key.startswith("_"):
            raise ValueError(f"{source}: the key {key!r} is not known here; leaving it out could be wrong")
    checked = {}
    for key, entry in table.items():
        if entry is not IGNORED:
            default, rule = entry
            checked[key] = value = _plain(config.get(key, default))
            if not _fits(value, rule):
                raise ValueError(f"{source}: {key} is {json.dumps(value, default=repr)}; supported: {_said(rule)}")
    return checked


def _plain(value):
    """Tuples for lists and arrays, Python's numbers for NumPy's, so that JSON can hold them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _fits(value, rule):
    if isinstance(rule, tuple):
        return any(_fits(value, one) for one in rule)
    if isinstance(rule, list):
        return isinstance(value, tuple) and all(_fits(one, rule[0]) for one in value)
    if rule is float:
        return type(value) in (int, float) and abs(value) < math.inf
    if rule in KINDS:
        return type(value) is rule and (rule is bool or value > 0)
    return type(value) is type(rule) and value == rule


def _said(rule):
    if isinstance(rule, (list, tuple)):
        return ("a list of " if isinstance(rule, list) else "") + " or ".join(map(_said, rule))
    return KINDS.get(rule) or json.dumps(rule)
