"""Writing files whole or not at all."""

import os
import re
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    flock = None

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path):
    """Open a binary file that takes its place at ``path`` only once it is complete.

        with atomic_write("runs/model.safetensors") as file:
            file.write(data)

    The bytes go to a temporary file in the same directory (made if need be), which is renamed at the end. Whatever
    goes wrong before that (an exception, Ctrl-C, a full disk), the temporary file is removed and what was at ``path``
    stays as it was. If the process is killed, the next one that writes to ``path`` removes it (not on Windows): it is
    locked while its writer lives. Raises OSError, which names ``path`` and the cause, if the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # through a link, so that the link itself survives
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(path)
        with _new_temporary(path) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            if flock:  # while it is locked
                os.replace(temporary, path)
        if not flock:  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.strerror:
            reason = f"could not be written ({error.strerror}); what was there before is unchanged"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def _new_temporary(path):
    """A new file beside ``path``, locked as long as it is open, which outlives no process."""
    while True:
        file = open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), "xb")
        with suppress(OSError):  # a file system without locks, on which nobody will get it
            flock and flock(file.fileno(), LOCK_EX)
        if os.path.exists(file.name):  # not removed by another writer before it was locked
            return file
        file.close()


def _remove_left_overs(path):
    """The temporary files of writers to ``path`` that are dead: those that can be locked."""
    ours = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.tmp")
    with suppress(OSError):  # the directory cannot be listed
        for entry in os.scandir(path.parent):
            if flock and ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "r+b") as file:
                    flock(file.fileno(), LOCK_EX | LOCK_NB)
                    os.unlink(entry.path)
