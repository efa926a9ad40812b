"""Client states that workers of another machine keep, so that they need not be sent there again.

The driver stays the store of record: what a machine keeps is a copy, known by a number that no
other state of the run ever has. A copy that is gone, for want of room or with its machine, is asked
for; one that was replaced, or never committed, is never asked for again and deleted.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from simulations.engines.state_files import MEMORY, delete_unheld, has_memory, has_room
from simulations.engines.whole_files import read_file, write_file

PREFIX = "fedcompress-held-"


class HeldStates:
    """What the driver knows of the copies on other machines.

    A few numbers for each client that took part there.

    Attributes
    ----------
    run : str
        By which workers know that they work for one driver.
    """

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self._number = 0
        self._held: dict[int, tuple[str, int]] = {}
        self._given: dict[int, str] = {}
        self._outdated: dict[str, list[int]] = defaultdict(list)

    def new_number(self, node: str) -> int:
        """Give the number by which a machine may keep a client's next state."""
        self._number += 1
        self._given[self._number] = node
        return self._number

    def number(self, node_id: int, node: str) -> int | None:
        """Return the number of a client's state on a machine, None if it has none or another."""
        where, number = self._held.get(node_id, ("", 0))
        return number if where == node else None

    def commit(self, node_id: int, number: int | None) -> None:
        """A client has a new state: a machine keeps it by `number`, or none does."""
        if node_id in self._held:
            where, before = self._held.pop(node_id)
            self._outdated[where].append(before)
        if number is not None:
            self._held[node_id] = self._given.pop(number), number

    def end_round(self) -> None:
        """Let copies of states that were not committed be deleted."""
        for number, node in self._given.items():
            self._outdated[node].append(number)
        self._given.clear()

    def take_outdated(self, node: str) -> list[int]:
        """Take the numbers that a machine is to delete."""
        return self._outdated.pop(node, [])

    def clear(self) -> None:
        """Forget every client: its states are others from now on."""
        for node_id in list(self._held):
            self.commit(node_id, None)
        self.end_round()


class KeptStates:
    """The copies of one machine, in a folder that its workers of one run share.

    It is held by a lock that they share; a folder that nobody holds is deleted by the next run's.

    Parameters
    ----------
    run : str
        Names the folder.
    """

    def __init__(self, run: str) -> None:
        is_memory = has_memory()
        self._parent = MEMORY if is_memory else Path(tempfile.gettempdir())
        self._folder = self._parent / f"{PREFIX}{run}"
        delete_unheld(set(self._parent.glob(PREFIX + "*")) - {self._folder})
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = (self._folder / "lock").open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def keep(self, number: int, state: bytes) -> None:
        """Keep a state if there is room; without, it will be asked for."""
        path = self._folder / str(number)
        try:
            if has_room(self._parent):
                write_file(str(path), state)
        except OSError:
            path.unlink(missing_ok=True)

    def read(self, number: int) -> bytes | None:
        """Return a state, None if it is not here."""
        try:
            return read_file(str(self._folder / str(number)))
        except OSError:
            return None

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete states; harmless where they are gone."""
        for number in numbers:
            (self._folder / str(number)).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the folder; the last worker deletes it."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self._folder, ignore_errors=True)
        except OSError:
            pass  # others are at work
        self._lock.close()
