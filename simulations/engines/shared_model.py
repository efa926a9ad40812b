"""What all clients of a round are sent: the arrays' bytes in one file, in memory while it fits.

A worker of the same machine reads what it needs from there, once a round; the driver writes them
once however many workers there are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from simulations.engines.channel import Part
from simulations.engines.state_files import MEMORY, has_memory, own_folder

PREFIX = "fedcompress-model-"
# Written in turn: memory that a file has is written again faster than new memory is found.
_GENERATIONS = 2


class SharedModel:
    """Files of this process that hold a round's arrays, deleted with it.

    Parameters
    ----------
    on_full : callable, optional
        Told when the memory has no room and the disk takes the arrays.
    """

    def __init__(self, on_full: Callable[[OSError], None] | None = None) -> None:
        self._on_full = on_full
        self._folders: list[tuple[Path, IO[bytes]]] = []
        self._written = 0

    def write(self, buffers: Sequence[Part]) -> str:
        """Write buffers one after another; return the file, which holds until the next but one.

        Raises
        ------
        OSError
            If neither memory nor the disk has room.
        """
        if not self._folders:
            parents = [MEMORY] if has_memory() else []
            parents.append(Path(tempfile.gettempdir()))
            self._folders = [own_folder(parent, PREFIX) for parent in parents]
        self._written += 1
        name = str(self._written % _GENERATIONS)
        for folder, _ in self._folders[:-1]:
            try:
                return _write(folder / name, buffers)
            except OSError as error:  # no room there
                (folder / name).unlink(missing_ok=True)
                if self._on_full is not None:
                    self._on_full(error)
        return _write(self._folders[-1][0] / name, buffers)

    def close(self) -> None:
        """Delete the files."""
        for folder, lock in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
        self._folders.clear()


def _write(path: Path, buffers: Sequence[Part]) -> str:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
        for buffer in buffers:
            left = memoryview(buffer)
            while left:
                left = left[file.write(left) :]
        file.truncate()
    return str(path)


def read_arrays(
    path: str, lengths: Sequence[int], blocks: Sequence[int] = ()
) -> list[bytes | np.ndarray]:
    """Read buffers back; those at the places of blocks as arrays (uint8) of new memory.

    Raises
    ------
    OSError
        If the file does not hold them.
    """
    arrays: list[bytes | np.ndarray] = []
    with Path(path).open("rb") as file:
        for place, length in enumerate(lengths):
            array = np.fromfile(file, np.uint8, length) if place in blocks else file.read(length)
            if len(array) != length:
                raise OSError(f"{path}: shorter than the arrays of the round")
            arrays.append(array)
    return arrays
