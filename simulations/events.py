"""What a run tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulations.cell import Cell


@dataclass(frozen=True)
class CellStarted:
    """A cell begins, or goes on after `rounds_done` rounds."""

    cell: Cell
    rounds_done: int


@dataclass(frozen=True)
class RoundDone:
    """A round has ended; `row` is its row of `rounds.jsonl`."""

    cell: Cell
    row: dict[str, Any]


@dataclass(frozen=True)
class CellDone:
    """A cell has a result; `skipped` where it had one already."""

    cell: Cell
    result: dict[str, Any]
    skipped: bool = False


Event = CellStarted | RoundDone | CellDone
Listener = Callable[[Event], None]
