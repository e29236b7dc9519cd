"""Writing files whole or not at all."""

import glob
import io
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

from ._ranks import world

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows
    flock = None


@contextmanager
def atomic_write(path):
    """Open a binary file that takes its place at ``path`` only once it is complete.

        with atomic_write("runs/model.safetensors") as file:
            file.write(data)

    The bytes go to a temporary file in the same directory (made if need be), which is renamed at the end. Whatever
    goes wrong before that (an exception, Ctrl-C, a full disk), the temporary file is removed and what was at ``path``
    stays as it was. If the process is killed, the next one that writes to ``path`` removes it (not on Windows): it is
    locked while its writer lives. Of several ranks only rank 0 writes. Raises OSError, which names ``path`` and the
    cause, if the file cannot be written.
    """
    if world and world.rank:
        yield io.BytesIO()
        return
    path = Path(os.path.realpath(path))  # through a link, so that the link itself survives
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_temporary(path) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not flock:  # Windows renames no open file
                file.close()
            os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.strerror:
            reason = f"could not be written ({error.strerror}); what was there before is unchanged"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def _new_temporary(path):
    """A new file beside ``path``, locked as long as it is open. Those of dead writers, which can be locked, go."""
    for left in path.parent.glob(glob.escape(f".{path.name}.") + "[0-9a-f]" * 8 + ".tmp") if flock else ():
        with suppress(OSError), open(left, "r+b") as file:
            flock(file, LOCK_EX | LOCK_NB)
            left.unlink()
    while True:
        file = open(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), "xb")
        with suppress(OSError):  # a file system without locks, on which nobody will get it
            flock and flock(file, LOCK_EX)
        if os.path.exists(file.name):  # not removed by another writer before it was locked
            return file
        file.close()
