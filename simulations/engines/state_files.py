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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, final

from fedcompress.errors import ConfigError
from simulations.engines.packed_state import StateFolder
from simulations.engines.whole_files import write_file

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
        if has_memory() and has_room(MEMORY):
            self._memory, self._memory_lock = own_folder(MEMORY, PREFIX)
        self._folders = str(self._memory), str(self._disk)  # a Path of each takes thrice as long
        self._limit = _size_of(MEMORY) // 4 if state_bytes is None else state_bytes
        self._files: dict[int, int] = {}  # number of each client's file; odd ones lie on the disk
        self._spare: tuple[list[int], list[int]] = ([], [])  # in memory, on the disk
        self._given: set[int] = set()
        self._replaced: list[int] = []
        self._packed = StateFolder()
        # What many states hold alike lies in files beside theirs: the names of each state's, and
        # how many states hold each file.
        self._shared: dict[int, tuple[str, ...]] = {}
        self._holders: Counter[str] = Counter()
        self._sizes: dict[int, int] = {}  # of files with a state
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
            self.memory_bytes -= self._sizes[number]
        elif self._spare[1] and not in_memory:
            number = self._spare[1].pop()
        else:
            number = 2 * self._count + (0 if in_memory else 1)
            self._count += 1
        self._given.add(number)
        return self._path(number)

    def commit(self, node_id: int, path: str, shared: Sequence[str] = ()) -> None:
        """Make a written file the client's state; the one before stays until the round ends.

        `shared` names the files beside it that it refers to; each goes with the last of its states.
        """
        number = int(path.rpartition("/")[2])
        if shared:
            self._shared[number] = tuple(shared)
            self._hold(number, shared)
        self._given.discard(number)
        self._sizes[number] = size = _bytes_of(path)
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
            self._sizes.pop(number, None)
            with suppress(FileNotFoundError):
                os.unlink(self._path(number))  # noqa: PTH108 - see _folders
        self._given.clear()
        for number in self._replaced:
            self._spare[number % 2].append(number)
            self._let_go(number)
        self._replaced.clear()

    def read(self, node_id: int) -> bytes:
        """Return a client's state as Flower's protobuf message; empty if the client has none."""
        path = self.path(node_id)
        return b"" if path is None else self._packed.read_bytes(path)

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
        for number in list(self._shared):
            self._let_go(number)
        self._files.clear()
        self._sizes.clear()
        self._spare = ([], [])
        self._largest = self.memory_bytes = 0

    def close(self) -> None:
        """Delete the folders."""
        self._files.clear()
        self._spare = ([], [])
        for folder, lock in ((self._memory, self._memory_lock), (self._disk, self._disk_lock)):
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    def _hold(self, number: int, shared: Sequence[str]) -> None:
        for name in shared:
            path = self._beside(number, name)
            if path not in self._holders and number % 2 == 0:
                self.memory_bytes += _bytes_of(path)
            self._holders[path] += 1

    def _let_go(self, number: int) -> None:
        for name in self._shared.pop(number, ()):
            path = self._beside(number, name)
            self._holders[path] -= 1
            if not self._holders[path]:
                del self._holders[path]
                self.memory_bytes -= 0 if number % 2 else _bytes_of(path)
                Path(path).unlink()

    def _path(self, number: int) -> str:
        return self._beside(number, str(number))

    def _beside(self, number: int, name: str) -> str:
        return f"{self._folders[number % 2]}/{name}"


@final
class UnreadStates(Mapping[int, bytes]):
    """Some clients' states by node id, each read when it is asked for."""

    def __init__(self, files: StateFiles, node_ids: Sequence[int]) -> None:
        self._files = files
        self._node_ids = node_ids

    def __getitem__(self, node_id: int) -> bytes:
        return self._files.read(node_id)

    def __iter__(self) -> Iterator[int]:
        return iter(self._node_ids)

    def __len__(self) -> int:
        return len(self._node_ids)


def has_memory() -> bool:
    """Whether there is a file system in memory that this process may write to."""
    return MEMORY.is_dir() and os.access(MEMORY, os.W_OK)


def has_room(folder: Path) -> bool:
    """Whether the file system of a folder is far from full."""
    space = os.statvfs(folder)
    return space.f_bavail > KEEP_FREE * space.f_blocks


def _bytes_of(path: str) -> int:
    return os.stat(path).st_size  # noqa: PTH116 - a Path takes thrice as long


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
