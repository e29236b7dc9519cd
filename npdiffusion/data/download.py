"""Where data files live on this machine, and how they get there."""

import os
import sys
import warnings
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from tqdm import tqdm

from ..files import atomic_write

TIMEOUT = 15  # seconds without a byte before a mirror is given up
# {data set: {part: SHA-256}}; each file's first line, a comment, says of what
DIGESTS = {p.stem: dict(np.loadtxt(p, str, skiprows=1)[:, ::-1]) for p in Path(__file__).parent.glob("*.sha256")}


class DataNotFoundError(FileNotFoundError):
    """A data set is neither on this machine nor to be had from the network."""


def cache_dir():
    """The user's cache directory for downloads, by the custom of the operating system."""
    own = {"win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "darwin": "~/Library/Caches"}
    base = own.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "npdiffusion"


def find(what, root, names, read, download, advice):
    """``read(place)`` of the first place (a path) that is there and good, else what ``download(place)`` returns.

    what: the data, as messages call it. names: what to look for, in ``root`` alone, or if that is None in
    ``$NPDIFFUSION_DATA`` and the user's cache. download: None if that is not wanted; it is given the last place.
    advice: what a user can do. Raises DataNotFoundError, with everything that went wrong.
    """
    own, problems = os.environ.get("NPDIFFUSION_DATA"), []
    directories = [root] if root is not None else [own, cache_dir()] if own else [cache_dir()]
    places = [Path(directory).expanduser() / name for directory in directories for name in names]
    for place in places:
        if place.exists():
            try:
                return read(place)
            except Exception as error:
                problems.append(f"{place}: {reason(error)}")
                warnings.warn(f"{place} is not used: {reason(error)}", stacklevel=3)
    if download:
        try:
            return download(places[-1])
        except OSError as error:
            problems += str(error).splitlines()
    raise DataNotFoundError(
        f"{what} not found in {' or '.join(dict.fromkeys(str(place.parent) for place in places))}"
        f"{', and could not be downloaded' if download else ''}. {advice}, or set NPDIFFUSION_DATA to a directory that "
        f"has {Path(names[0]).parts[0]} in it, or use drawn pictures: --data synthetic."
        + "".join(f"\n  {line}" for line in problems))


def reason(error):
    """What an error says; those of damaged files may be anything (zlib.error, EOFError ...) and say little."""
    said = str(error) or type(error).__name__
    return said if isinstance(error, (OSError, ValueError)) else f"cut short or damaged ({said})"


def fetch(urls, path, check):
    """Download a file to ``path`` from the first of ``urls`` that delivers it whole; return check's result.

    check: called with the bytes before anything is written; raises if they are wrong.
    Raises ConnectionError with each url's failure if none delivers, OSError if the file cannot be written.
    """
    failures = []
    for url in urls:
        try:
            with urlopen(url, timeout=TIMEOUT) as response:
                size = int(response.headers.get("Content-Length") or 0) or None
                with tqdm.wrapattr(response, "read", total=size, desc=path.name) as counted:
                    data = b"".join(iter(lambda: counted.read(1 << 16), b""))
            result = check(data)
        except Exception as error:
            failures.append(f"{url}: {reason(error)}")
            continue
        with atomic_write(path) as file:
            file.write(data)
        return result
    raise ConnectionError("\n".join(failures))
