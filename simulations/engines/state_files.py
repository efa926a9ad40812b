"""Client states as files on the driver's machine: in memory up to a limit, else on disk.

A worker of the same machine reads and writes them itself, so a state of 800 kB costs a fraction
of a millisecond and the driver nothing. A file becomes a client's state only when the driver
commits it together with the client's reply; a killed worker leaves a file that nobody looks at.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from fedcompress.errors import ConfigError

_PIECES_AT_ONCE = 1000  # systems take 1024
PREFIX = "fedcompress-states-"
MEMORY = Path("/dev/shm")
# Ray's object store lies in the same memory: stop well before it is full.
KEEP_FREE = 0.3


class StateFiles:
    """The states of one grid's clients, one file each, committed by name.

    Only clients that have a state take room: a file, and some hundred bytes here. Files of states
    that were replaced are given out again, since writing over their pages takes less than half
    the time of new ones.

    Parameters
    ----------
    state_bytes : int, optional
        Most bytes of states in memory, the rest lie on the disk; default a quarter of what the
        memory's file system holds. Past that, clients whose state is there keep it there.
    """

    def __init__(self, state_bytes: int | None = None) -> None:
        if state_bytes is not None and state_bytes < 0:
            raise ConfigError(f"state_bytes: must be at least 0, got {state_bytes}")
        self._disk, self._disk_lock = own_folder(Path(tempfile.gettempdir()), PREFIX)
        self._memory, self._memory_lock = self._disk, self._disk_lock
        if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and has_room(MEMORY):
            self._memory, self._memory_lock = own_folder(MEMORY, PREFIX)
        self._limit = _size_of(MEMORY) // 4 if state_bytes is None else state_bytes
        self._files: dict[int, int] = {}  # number of each client's file; odd ones lie on the disk
        self._spare: tuple[list[int], list[int]] = ([], [])  # in memory, on the disk
        self._given: set[int] = set()
        self._replaced: list[int] = []
        self._count = 0
        self._largest = 0
        self.memory_bytes = 0
        """Bytes of the files in memory, those to be written over among them."""

    @property
    def holds_any(self) -> bool:
        """Whether any client has a state."""
        return bool(self._files)

    def path(self, node_id: int) -> str | None:
        """Return the file that holds a client's state now, None if the client has none."""
        number = self._files.get(node_id)
        return None if number is None else self._path(number)

    def new_path(self, node_id: int) -> str:
        """Return a file for a state that may be committed later; write to it by `write_file`.

        Nothing else has that name until it is committed, replaced and given out once more.
        """
        del node_id
        reserved = (len(self._given) + 1) * self._largest
        in_memory = self.memory_bytes + reserved < self._limit and has_room(self._memory)
        if self._spare[0]:
            number = self._spare[0].pop()
            self.memory_bytes -= self._bytes(number)
        elif self._spare[1] and not in_memory:
            number = self._spare[1].pop()
        else:
            number = 2 * self._count + (0 if in_memory else 1)
            self._count += 1
        self._given.add(number)
        return self._path(number)

    def commit(self, node_id: int, path: str) -> None:
        """Make a written file the client's state; the one before stays until the round ends."""
        number = int(path.rpartition("/")[2])
        self._given.discard(number)
        size = self._bytes(number)
        self._largest = max(self._largest, size)
        self.memory_bytes += 0 if number % 2 else size
        before = self._files.get(node_id)
        self._files[node_id] = number
        if before is not None:
            self._replaced.append(before)

    def end_round(self) -> None:
        """Let files of replaced states be given out again, now that no call may read them.

        What `new_path` gave and nobody committed is deleted; those names are never given again,
        for a worker that was killed may not have noticed yet.
        """
        for number in self._given:
            with suppress(FileNotFoundError):
                os.unlink(self._path(number))  # noqa: PTH108 - a Path of each takes thrice as long
        self._given.clear()
        for number in self._replaced:
            self._spare[number % 2].append(number)
        self._replaced.clear()

    def read(self, node_id: int) -> bytes:
        """Return a client's state; empty if the client has none."""
        path = self.path(node_id)
        return b"" if path is None else read_file(path)

    def write(self, node_id: int, state: bytes) -> None:
        """Store and commit a state that arrived as bytes."""
        path = self.new_path(node_id)
        try:
            write_file(path, state)
        except OSError:
            number = int(path.rpartition("/")[2])
            if number % 2:
                raise
            Path(path).unlink(missing_ok=True)
            self._given.discard(number)
            path = self._path(2 * self._count + 1)
            self._count += 1
            write_file(path, state)
        self.commit(node_id, path)

    def clear(self) -> None:
        """Forget every state."""
        self.end_round()
        for number in (*self._files.values(), *self._spare[0], *self._spare[1]):
            Path(self._path(number)).unlink(missing_ok=True)
        self._files.clear()
        self._spare = ([], [])
        self._largest = self.memory_bytes = 0

    def close(self) -> None:
        """Delete the folders."""
        self._files.clear()
        self._spare = ([], [])
        for folder, lock in ((self._memory, self._memory_lock), (self._disk, self._disk_lock)):
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    def _path(self, number: int) -> str:
        return f"{self._disk if number % 2 else self._memory}/{number}"

    def _bytes(self, number: int) -> int:
        return Path(self._path(number)).stat().st_size


def write_file(path: str, data: bytes | Sequence[bytes]) -> None:
    """Write a whole file, over the pages of what stood there: a new file takes twice as long.

    What comes in pieces is not joined first.
    """
    pieces = [data] if isinstance(data, bytes) else data
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            _write_pieces(file, pieces[first : first + _PIECES_AT_ONCE])
        os.ftruncate(file, sum(map(len, pieces)))
    finally:
        os.close(file)


def _write_pieces(file: int, pieces: Sequence[bytes]) -> None:
    views = [memoryview(piece) for piece in pieces if piece]
    while views:
        written = os.writev(file, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def read_file(path: str) -> bytes:
    """Read a whole file at once."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, os.fstat(file).st_size)
    finally:
        os.close(file)


def has_room(folder: Path) -> bool:
    """Whether the file system of a folder is far from full."""
    space = os.statvfs(folder)
    return space.f_bavail > KEEP_FREE * space.f_blocks


def _size_of(folder: Path) -> int:
    space = os.statvfs(folder if folder.is_dir() else tempfile.gettempdir())
    return space.f_blocks * space.f_frsize


def own_folder(parent: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """Make a folder that is held by a lock, and delete those whose process was killed."""
    delete_unheld(parent.glob(prefix + "*"))
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = (folder / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def delete_unheld(folders: Iterable[Path]) -> None:
    """Delete folders whose lock nobody holds."""
    for stale in folders:
        try:
            with (stale / "lock").open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
        except OSError:
            continue  # in use, just made, or another user's
