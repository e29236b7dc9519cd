"""Long work on a large array, noted row by row, so that it goes on where it was stopped."""

import json
import zlib
from pathlib import Path

import numpy as np

from . import distributed
from .files import atomic_write


class Journal:
    """A file that says which blocks of rows of an array (…, H, W) are finished.

        journal = Journal("mask.npy.journal", mask, {"tile": 256})
        for start, stop in journal.unfinished([(0, 512), (512, 1024)]):
            mask[..., start:stop, :] = ...
            journal.add(start, stop)
        journal.remove()

    Its first line says what ``work`` it is, as JSON; each line below is a block and the CRC-32 of its content. A block
    which the array no longer holds, because it was made anew, is therefore not finished, and a line half written spoils
    nothing. The array, if it has ``flush``, is flushed before a block is noted.

    All ranks have the same journal: they make it, ask for the unfinished blocks and remove it together, and add each
    its own. With path None nothing is noted. Raises ValueError if the file is that of other work.
    """

    def __init__(self, path, array, work):
        self.path, self.array = path and Path(path), array
        header = json.dumps(work, default=int)

        def text():
            if not self.path.exists():
                with atomic_write(path) as file:
                    file.write(header.encode())
            return self.path.read_text(errors="replace")

        found, *self.noted = distributed.broadcast(text).split("\n") if path else [header]
        if found != header:
            raise ValueError(f"{path} is the journal of other work: expected {header}, got {found[:200]}; to go on "
                             "with that, give the same arguments as then; to begin anew, remove the file")

    def unfinished(self, blocks):
        """Those of the blocks (start, stop) that are still to be done; the same for all ranks."""
        return distributed.broadcast(lambda: [block for block in blocks if not self.noted  # then nothing is read
                                              or self._note(*block) not in self.noted])

    def add(self, start, stop):
        """Note that rows start … stop - 1 are finished."""
        if hasattr(self.array, "flush"):
            self.array.flush()
        if self.path:
            with open(self.path, "a") as file:  # a line of its own, whatever became of the last one
                file.write(f"\n{self._note(start, stop)}")

    def remove(self):
        """All is done: wait for the other ranks, and remove the file."""
        distributed.barrier()
        if self.path and distributed.get_rank() == 0:
            self.path.unlink()

    def _note(self, start, stop):
        """The line for a block as it is in the array."""
        return f"{start}:{stop} {zlib.crc32(np.ascontiguousarray(self.array[..., start:stop, :])):08x}"
