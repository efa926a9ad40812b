"""What a run tells whoever watches it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from simulations.cell import Cell
from simulations.timeline import RoundTimeline


@dataclass(frozen=True)
class CellStarted:
    """A cell begins, or goes on after `rounds_done` rounds."""

    cell: Cell
    rounds_done: int


@dataclass(frozen=True)
class ClientsDone:
    """Within a round `done` of `asked` clients have answered; told a few times a second."""

    cell: Cell
    done: int
    asked: int


@dataclass(frozen=True)
class RoundDone:
    """A round has ended; `row` is its row of `rounds.jsonl`, `timeline` where its time went.

    Round 0, the test before training, has no timeline.
    """

    cell: Cell
    row: dict[str, Any]
    timeline: RoundTimeline | None = None


@dataclass(frozen=True)
class CellDone:
    """A cell has a result; `skipped` where it had one already."""

    cell: Cell
    result: dict[str, Any]
    skipped: bool = False


Event = CellStarted | ClientsDone | RoundDone | CellDone
Listener = Callable[[Event], None]

_TOLD_EVERY_SECONDS = 0.1


@final
class ClientsWatch:
    """Tells of answers as an engine's `on_reply`, but not more often than anybody can look."""

    def __init__(self, cell: Cell, tell: Listener) -> None:
        self._cell = cell
        self._tell = tell
        self._told = time.monotonic()

    def __call__(self, done: int, asked: int) -> None:
        """Take note of an answer."""
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_SECONDS:
            self._told = now
            self._tell(ClientsDone(self._cell, done, asked))
