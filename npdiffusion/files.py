"""Writing files whole or not at all."""

import os
import secrets
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path):
    """Open a binary file that takes its place at ``path`` only once it is complete.

        with atomic_write("runs/model.safetensors") as file:
            file.write(data)

    The bytes go to a temporary file in the same directory (made if need be), which is renamed at the end. Whatever
    goes wrong before that (an exception, Ctrl-C, a full disk), the temporary file is removed and what was at ``path``
    stays as it was. Raises OSError, which names ``path`` and the cause, if the file cannot be written.
    """
    path = Path(os.path.realpath(path))  # through a link, so that the link itself survives
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary.exists():
            temporary.unlink()
        if isinstance(error, OSError) and error.strerror:
            reason = f"could not be written ({error.strerror}); what was there before is unchanged"
            raise OSError(error.errno, reason, str(path)) from error
        raise
