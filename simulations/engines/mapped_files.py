"""Files that a process writes over and reads again, mapped so that this takes one copy less."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from simulations.engines.channel import Part

_LEAST_BYTES = 1 << 16  # below this a system call is as quick
_MOST_FILES = 1024
# With all pages at once, where the system does that: one after another they take twice as long
# as the copy that a mapping spares.
SHARED_WITH_PAGES = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


@dataclass(frozen=True, eq=False)
class _Mapped:
    inode: int
    memory: mmap.mmap
    contents: np.ndarray


@final
class MappedFiles:
    """Mappings of the files that this process wrote over last.

    A file that is new is not mapped: its pages come at a cost of their own, and it may never be
    written again. One that stands there in the same size has all its pages, so that writing to
    them cannot fail for want of room.

    Parameters
    ----------
    most_bytes : int
        Of the files that are mapped at once. They take no memory beyond the files' own.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._mapped: OrderedDict[str, _Mapped] = OrderedDict()

    def write(self, path: str, pieces: Sequence[Part]) -> bool:
        """Write a whole file over one of exactly this size; False where none is there."""
        size = sum(map(len, pieces))
        if size < _LEAST_BYTES:
            return False
        mapped = self._find(path, size)
        if mapped is None:
            return False
        at = 0
        for piece in pieces:
            mapped.memory[at : at + len(piece)] = piece
            at += len(piece)
        return True

    def read(self, path: str) -> np.ndarray | None:
        """Give the bytes (uint8) of a file that is mapped; they change when it is written over."""
        if path not in self._mapped:
            return None
        mapped = self._find(path)
        return None if mapped is None else mapped.contents

    def _find(self, path: str, size: int | None = None) -> _Mapped | None:
        """Give the mapping of a file as it is now; with a size, make one if it has that."""
        inode, found = _inode_and_size(path)
        mapped = self._mapped.get(path)
        if mapped is not None and (mapped.inode, mapped.contents.size) == (inode, found):
            self._mapped.move_to_end(path)
            return mapped if size is None or size == found else None
        if mapped is not None:
            self._drop(path)
        if size is None or size != found:
            return None
        file = os.open(path, os.O_RDWR)
        try:
            memory = mmap.mmap(file, size, flags=SHARED_WITH_PAGES)
        finally:
            os.close(file)
        mapped = _Mapped(inode, memory, np.frombuffer(memory, np.uint8))
        self._mapped[path] = mapped
        self._bytes += size
        while self._bytes > self._most_bytes or len(self._mapped) > _MOST_FILES:
            self._drop(next(iter(self._mapped)))
        return mapped

    def _drop(self, path: str) -> None:
        # What still reads the contents holds the memory.
        self._bytes -= self._mapped.pop(path).contents.size


def _inode_and_size(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)  # noqa: PTH116 - a Path takes thrice as long
    except FileNotFoundError:
        return -1, -1
    return about.st_ino, about.st_size
