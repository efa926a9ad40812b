"""Sums of models in memory that a worker of this machine writes and the driver reads.

Through a socket a model is copied twice, into memory that is new each time, and the worker waits
until the driver has taken it. Here it is copied once, into memory that both have.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, final

from simulations.engines.channel import Part
from simulations.engines.mapped_files import SHARED_WITH_PAGES
from simulations.engines.state_files import MEMORY, has_memory, has_room, own_folder

PREFIX = "fedcompress-sums-"
_MOST_BYTES = 64_000_000
_ALIGNED = 64

Place = list[int]  # where a buffer begins and ends in its file


@final
class SumsFile:
    """A worker's end: one file, written from its beginning in every round.

    Parameters
    ----------
    folder : str
        The driver's; see `SumsFiles`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = str(os.getpid())
        self._memory: mmap.mmap | None = None
        self._end = 0
        self._is_full = False

    def restart(self) -> None:
        """Write from the beginning again: the driver has read all that was written before."""
        self._end = 0

    def write(self, buffers: Sequence[Part]) -> list[Place] | None:
        """Write buffers behind what this round has; None where there is no room for them."""
        places = []
        end = self._end
        for buffer in buffers:
            start = end + -end % _ALIGNED
            end = start + len(buffer)
            places.append([start, end])
        if not self._has_room(end):
            return None
        assert self._memory is not None
        for (start, stop), buffer in zip(places, buffers, strict=True):
            self._memory[start:stop] = buffer
        self._end = end
        return places

    def _has_room(self, end: int) -> bool:
        held = 0 if self._memory is None else len(self._memory)
        if end <= held and self._memory is not None:
            return True
        size = min(max(end, 2 * held, mmap.PAGESIZE), _MOST_BYTES)
        if self._is_full or end > size or not has_room(MEMORY):
            return False
        try:
            self._memory = _grown(f"{self.folder}/{self.name}", size)
        except OSError:  # the memory is full, or the folder is gone
            self._is_full = True
            return False
        return True

    def close(self) -> None:
        """Let go of the memory; the file is the driver's to delete."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _grown(path: str, size: int) -> mmap.mmap:
    """Map a file of at least this size, all of whose pages there are: a full memory says so."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
        return mmap.mmap(file, 0, flags=SHARED_WITH_PAGES)
    finally:
        os.close(file)


@final
class SumsFiles:
    """The driver's end: a folder of the workers' files, deleted with it.

    Attributes
    ----------
    folder : str
        Where workers write; empty where this machine has no memory for files.
    """

    def __init__(self) -> None:
        self.folder = ""
        self._lock: IO[bytes] | None = None
        self._mapped: dict[str, mmap.mmap] = {}
        self._names: dict[int, str] = {}

    def open(self) -> None:
        """Make the folder, if it is not there yet."""
        if self.folder or not has_memory() or not hasattr(os, "posix_fallocate"):
            return
        folder, self._lock = own_folder(MEMORY, PREFIX)
        self.folder = str(folder)

    def read(self, worker: int, name: str, places: Sequence[Place]) -> list[memoryview]:
        """Give what a worker has written, which it overwrites in the next round."""
        before = self._names.get(worker, name)
        if before != name:  # of a process that has died
            self._mapped.pop(before, None)
            with suppress(FileNotFoundError):
                Path(self.folder, before).unlink()
        self._names[worker] = name
        memory = self._mapped.get(name)
        if memory is None or len(memory) < max(stop for _, stop in places):
            with Path(self.folder, name).open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, flags=SHARED_WITH_PAGES, prot=mmap.PROT_READ)
            self._mapped[name] = memory
        whole = memoryview(memory)
        return [whole[start:stop] for start, stop in places]

    def close(self) -> None:
        """Delete the folder; closing twice is harmless."""
        self._mapped.clear()
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._lock, self.folder = None, ""
