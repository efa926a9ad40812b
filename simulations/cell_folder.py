"""The folder of one cell: records, checkpoint, and the result that is written last of all."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.checkpoint import Checkpoint, drop
from simulations.records import (
    append_rows,
    keep_rounds,
    read_json,
    read_rows,
    write_json,
    write_whole,
)
from simulations.study import slug

Row = dict[str, Any]


@final
@dataclass(frozen=True)
class Saved:
    """Where a cell stood at its last checkpoint.

    Attributes
    ----------
    round_number : int
        Rounds done.
    server : dict
        The server's arrays, strategy and counters.
    client_states : mapping of int to bytes
        States of the clients that have one, by node id.
    """

    round_number: int
    server: dict[str, Any]
    client_states: Mapping[int, bytes]


@final
class CellFolder:
    """Files of one cell below the folder of its study.

    Parameters
    ----------
    study_folder : Path
        Folder of the study.
    cell : Cell
        Names the cell's own folder, ``cells/<label>-seed<k>``.
    """

    def __init__(self, study_folder: Path, cell: Cell) -> None:
        self.cell = cell
        self.path = study_folder / "cells" / f"{slug(cell.label)}-seed{cell.seed}"
        self._rounds = self.path / "rounds.jsonl"
        self._clients = self.path / "clients.jsonl"
        self._faults = self.path / "faults.jsonl"
        self._checkpoint = self.path / "checkpoint.sqlite"

    def result(self) -> Row | None:
        """Give the result, None where the cell is not finished."""
        result = read_json(self.path / "result.json")
        return result if result is not None and result.get("finished") is True else None

    def damage(self) -> str | None:
        """Say what the records of a finished cell lack; None where they are whole."""
        if not self._rounds.is_file():
            return "rounds.jsonl is missing"
        try:
            rounds = [row.get("round") for row in self.rows()]
        except ConfigError:
            return "rounds.jsonl cannot be read"
        wanted = list(range(self.cell.rounds + 1))
        if rounds != wanted:
            whole = len(set(rounds) & set(wanted))
            return f"rounds.jsonl holds {whole} of {len(wanted)} rounds, from 0 on"
        return None

    def first_reason(self) -> str:
        """Give the first reason on record why a client's update was not used."""
        reasons = (row.get("reason") for row in read_rows(self._clients))
        return next((str(reason) for reason in reasons if reason), "none was asked")

    def rounds_done(self) -> int:
        """Count the rounds recorded."""
        return max((row["round"] for row in read_rows(self._rounds)), default=0)

    def open(self, *, resume: bool = True) -> Saved | None:
        """Go to where the cell stood: give its last checkpoint, and cut the records to it.

        A cell without a checkpoint, or that may not `resume`, starts anew with empty records. What
        went wrong stays on record, also in rounds that run again.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "cell.json", self.cell.model_dump(mode="json"))
        saved = None
        if resume and self._checkpoint.is_file():
            with Checkpoint(self._checkpoint) as checkpoint:
                loaded = checkpoint.load()
            saved = None if loaded is None else Saved(*loaded)
        last = -1 if saved is None else saved.round_number
        for path in (self._rounds, self._clients):
            keep_rounds(path, last)
        if self._faults.is_file():
            keep_rounds(self._faults)  # but for a line that was cut off
        if saved is None:
            self.drop_checkpoint()
        return saved

    def rows(self) -> list[Row]:
        """Read the rounds recorded so far."""
        return read_rows(self._rounds)

    def append(self, round_row: Row, client_rows: list[Row]) -> None:
        """Record a round: its clients first, so that a recorded round is whole."""
        append_rows(self._clients, client_rows)
        append_rows(self._rounds, [round_row])

    def append_fault(self, row: Row) -> None:
        """Record a fault as it happens: the run may end by it."""
        append_rows(self._faults, [row])

    def save(self, round_number: int, server: Row, client_states: Mapping[int, bytes]) -> None:
        """Save where the cell stands, after the records that lead there are on the disk."""
        for path in (self._clients, self._rounds):
            _sync(path)
        with Checkpoint(self._checkpoint) as checkpoint:
            checkpoint.save(round_number, server, client_states)

    def write_model(self, name: str, content: bytes) -> None:
        """Write a model file, whole or not at all."""
        write_whole(self.path / name, content)

    def finish(self, result: Row) -> None:
        """Write the result, which makes the cell finished, and let go of the checkpoint."""
        for path in (self._clients, self._rounds):
            _sync(path)
        write_json(self.path / "result.json", result)
        self.drop_checkpoint()

    def drop_checkpoint(self) -> None:
        """Forget where the cell stood: it starts anew when it is opened next."""
        drop(self._checkpoint)


def has_usable_round(cell_path: Path) -> bool:
    """Whether a cell's folder holds a round whose updates were used, a result, or damage."""
    if (cell_path / "result.json").is_file():
        return True
    try:
        rows = read_rows(cell_path / "rounds.jsonl")
    except ConfigError:
        return True
    return any(is_usable(row) for row in rows)


def is_usable(round_row: Row) -> bool:
    """Whether a row of ``rounds.jsonl`` tells of a round in which some update was used."""
    return bool(round_row.get("round", 0) > 0 and round_row.get("clients_aggregated", 0) > 0)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
