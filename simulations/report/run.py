"""Load a run's folder: finished cells as results, unfinished ones only as a list of names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pandas as pd

from fedcompress.errors import ConfigError
from simulations.report.records import Record, read_object, read_rows
from simulations.report.study import expected_cells, section, study_name


@final
@dataclass(frozen=True)
class UnfinishedCell:
    """A cell that gives no result yet, and why.

    A `damaged` one was finished, but records of it are missing since; its reason says the mend.
    """

    label: str
    seed: int
    rounds_done: int
    reason: str
    damaged: bool = False


@final
@dataclass(frozen=True)
class Run:
    """The records of a run.

    Attributes
    ----------
    folder
        Where the records lie.
    study
        `study.json` as written.
    labels
        The strategies in the study's order.
    seeds_expected
        Seeds per label that the study asks for.
    results
        One row per finished cell: `result.json` with columns `label` and `seed`.
    rounds, clients
        One row per round, and per client and round, of the finished cells only.
    unfinished
        The cells left out of all three frames.
    """

    folder: Path
    study: Mapping[str, object]
    labels: tuple[str, ...]
    seeds_expected: Mapping[str, int]
    results: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame
    unfinished: tuple[UnfinishedCell, ...]

    @property
    def finished(self) -> list[tuple[str, int]]:
        """The (label, seed) of each finished cell, in the study's order."""
        if self.results.empty:
            return []
        return [
            (str(label), int(seed))
            for label, seed in zip(self.results["label"], self.results["seed"], strict=True)
        ]

    @property
    def title(self) -> str:
        """The study's name, or the folder's."""
        return study_name(self.study) or self.folder.resolve().name


def rows_of(frame: pd.DataFrame, label: str, seed: int) -> pd.DataFrame:
    """Return the rows of one cell."""
    if frame.empty:
        return frame
    return frame[(frame["label"] == label) & (frame["seed"] == seed)]


@dataclass(frozen=True)
class _Cell:
    folder: Path
    label: str
    seed: int
    result: Record
    rounds: list[Record]
    clients: list[Record]

    @property
    def rounds_done(self) -> int:
        return max((_whole(row.get("round")) for row in self.rounds), default=0)

    @property
    def finished(self) -> bool:
        return self.result.get("finished") is True

    @property
    def unfinished_because(self) -> str | None:
        if not self.finished:
            return "running or stopped" if self.rounds else "no round recorded yet"
        damage = self._damage()
        return None if damage is None else f"damaged: {damage}; {_run_again(self.folder)}"

    def _damage(self) -> str | None:
        for name in ("rounds.jsonl", "clients.jsonl"):
            # Without any round planned or client asked there is nothing to miss.
            if self.result.get("rounds") and not (self.folder / name).is_file():
                return f"{name} is missing"
        planned = _whole(self.result.get("rounds"))
        if self.rounds_done < planned:
            return f"rounds.jsonl stops at round {self.rounds_done} of {planned}"
        recorded = {row.get("round") for row in self.rounds}
        lost = [number for number in range(1, planned + 1) if number not in recorded]
        if lost:
            return f"rounds.jsonl lacks round {lost[0]}"
        asked = sum(_whole(row.get("clients_sampled")) for row in self.rounds)
        if len(self.clients) < asked:
            return f"clients.jsonl holds {len(self.clients)} of {asked} rows"
        return None


def load_run(folder: str | Path) -> Run:
    """Read the records below `folder`.

    A line cut off at the end of a JSONL file (a killed run) is passed over; a cell without a
    finished `result.json` is listed as unfinished, one whose records stop short of it as damaged.

    Raises
    ------
    ConfigError
        If the folder holds no `study.json`, no strategy, or a file that is not valid JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(
            f"report: no folder {folder}; give the output folder of `fedcompress run`"
        )
    if not (folder / "study.json").is_file():
        raise ConfigError(
            f"report: {folder} has no study.json; give the output folder of `fedcompress run`"
        )
    study = read_object(
        folder / "study.json", "put back a copy of it, or run the study in a new folder"
    )
    paths = sorted(path.parent for path in folder.glob("cells/*/cell.json"))
    cells = [_load_cell(path) for path in paths]
    expected = expected_cells(study)
    labels = list(dict.fromkeys([label for label, _ in expected]))
    labels += [label for label in dict.fromkeys(c.label for c in cells) if label not in labels]
    if not labels:
        raise ConfigError(
            f"report: {folder} holds no strategy and no cell; give the output folder of "
            "`fedcompress run`"
        )
    cells.sort(key=lambda cell: (labels.index(cell.label), cell.seed))
    finished = [cell for cell in cells if cell.unfinished_because is None]
    known = {(cell.label, cell.seed) for cell in cells}
    unfinished = [
        UnfinishedCell(c.label, c.seed, c.rounds_done, c.unfinished_because, damaged=c.finished)
        for c in cells
        if c.unfinished_because is not None
    ]
    missing = [pair for pair in expected if pair not in known]
    unfinished += [UnfinishedCell(label, seed, 0, "not started") for label, seed in missing]
    planned = known | set(expected)
    return Run(
        folder=folder,
        study=study,
        labels=tuple(labels),
        seeds_expected={label: sum(1 for each, _ in planned if each == label) for label in labels},
        results=_frame(finished, lambda cell: [cell.result]),
        rounds=_frame(finished, lambda cell: cell.rounds),
        clients=_frame(finished, lambda cell: cell.clients),
        unfinished=tuple(unfinished),
    )


def _load_cell(folder: Path) -> _Cell:
    mend = _run_again(folder)
    cell = read_object(folder / "cell.json", mend)
    finished = (folder / "result.json").is_file()
    result = read_object(folder / "result.json", mend) if finished else {}
    label = result.get("label") or section(cell, "strategy").get("label") or folder.name
    seed = result.get("seed", cell.get("seed"))
    if not isinstance(seed, int):
        raise ConfigError(
            f"report: {folder / 'cell.json'}: seed must be a whole number, got {seed!r}"
        )
    return _Cell(
        folder=folder,
        label=str(label),
        seed=seed,
        result=result,
        rounds=read_rows(folder / "rounds.jsonl", mend),
        clients=read_rows(folder / "clients.jsonl", mend),
    )


def _frame(cells: list[_Cell], rows: Callable[[_Cell], list[Record]]) -> pd.DataFrame:
    named = [row | {"label": c.label, "seed": c.seed} for c in cells for row in rows(c)]
    return pd.DataFrame(named)


def _run_again(cell_folder: Path) -> str:
    return f"remove {cell_folder} and run the study again"


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
