"""Client states as files on the driver's machine: in memory while there is room, else on disk.

A worker of the same machine reads and writes them itself, so a state of 800 kB costs a fraction
of a millisecond and the driver nothing. A file becomes a client's state only when the driver
commits it together with the client's reply; a killed worker leaves a file that nobody looks at.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "fedcompress-states-"
MEMORY = Path("/dev/shm")
# Ray's object store lies in the same memory: stop well before it is full.
KEEP_FREE = 0.3


class StateFiles:
    """The states of one grid's clients, one file each, committed by name."""

    def __init__(self) -> None:
        self._disk, self._disk_lock = own_folder(Path(tempfile.gettempdir()), PREFIX)
        self._memory, self._memory_lock = self._disk, self._disk_lock
        if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and _has_room(MEMORY):
            self._memory, self._memory_lock = own_folder(MEMORY, PREFIX)
        self._paths: dict[int, str] = {}
        self._written = 0

    def path(self, node_id: int) -> str | None:
        """Return the file that holds a client's state now, None if the client has none."""
        return self._paths.get(node_id)

    def new_path(self, node_id: int) -> str:
        """Return a name that was never used, for a state that may be committed later."""
        self._written += 1
        folder = self._memory if _has_room(self._memory) else self._disk
        return str(folder / f"{node_id}.{self._written}")

    def commit(self, node_id: int, path: str) -> None:
        """Make a written file the client's state, and delete the one before."""
        before = self._paths.get(node_id)
        self._paths[node_id] = path
        if before is not None:
            Path(before).unlink(missing_ok=True)

    def read(self, node_id: int) -> bytes:
        """Return a client's state; empty if the client has none."""
        path = self._paths.get(node_id)
        return b"" if path is None else Path(path).read_bytes()

    def write(self, node_id: int, state: bytes) -> None:
        """Store and commit a state that arrived as bytes."""
        path = self.new_path(node_id)
        try:
            Path(path).write_bytes(state)
        except OSError:
            Path(path).unlink(missing_ok=True)
            path = str(self._disk / Path(path).name)
            Path(path).write_bytes(state)
        self.commit(node_id, path)

    def clear(self) -> None:
        """Forget every state."""
        for path in self._paths.values():
            Path(path).unlink(missing_ok=True)
        self._paths.clear()

    def close(self) -> None:
        """Delete the folders."""
        self._paths.clear()
        for folder, lock in ((self._memory, self._memory_lock), (self._disk, self._disk_lock)):
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _has_room(folder: Path) -> bool:
    space = os.statvfs(folder)
    return space.f_bavail > KEEP_FREE * space.f_blocks


def own_folder(parent: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """Make a folder that is held by a lock, and delete those whose process was killed."""
    for stale in parent.glob(prefix + "*"):
        try:
            with (stale / "lock").open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale, ignore_errors=True)
        except OSError:
            continue  # in use, just made, or another user's
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = (folder / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock
