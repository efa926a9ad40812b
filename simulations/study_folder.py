"""The folder of a study: whose it is, that one run writes in it, and its cells."""

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.cell_folder import CellFolder, has_usable_round
from simulations.data import FederatedData
from simulations.provenance import commit, provenance, versions
from simulations.records import read_json, write_json
from simulations.study import Study

logger = logging.getLogger(__name__)

# What may differ between two runs of one study: where it runs never changes a result.
_APART = ("engine", "checkpoint_seconds", "network", "data.data_dir")


@final
class StudyFolder:
    """A folder that holds the records of one study.

    Parameters
    ----------
    path : Path
        The folder; made by `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def cell(self, cell: Cell) -> CellFolder:
        """Give the folder of one of the study's cells."""
        return CellFolder(self.path, cell)

    @contextmanager
    def claim(self, study: Study, data: FederatedData) -> Iterator[None]:
        """Take the folder for a study while it runs, and write down where results come from.

        Raises
        ------
        ConfigError
            If it holds another study or other files, the data have changed since, or another
            run is writing in it.
        """
        self.check(study)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            known = self._known()
            if known is None:
                self._drop_cells_of_another(study, data)
                about = {"study": study.model_dump(mode="json"), **provenance(data)}
                write_json(self.path / "study.json", about)
            elif known["data"]["fingerprint"] != data.fingerprint:
                raise ConfigError(
                    f"{self.path}: the data {data.name!r} have changed since this study began; "
                    "give another --out"
                )
            else:
                _warn_of_other_code(known)
            yield

    def check(self, study: Study) -> None:
        """Refuse a folder that belongs to something else.

        Raises
        ------
        ConfigError
            Names the first setting that differs, and both values.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; give a folder as --out")
        known = self._known()
        if known is None:
            names = [p.name for p in _entries(self.path) if not p.name.startswith(".")]
            strangers = [name for name in names if name != "study.json"]
            if strangers and self._written() is None:
                raise ConfigError(
                    f"{self.path} holds other files ({sorted(strangers)[0]}) and no study; "
                    "give an empty or new folder as --out"
                )
            return
        self._check_version(study, known)
        # A key that came later means there what it means where nobody sets it.
        differing = _first_difference(
            _settings(_with_defaults(known["study"])), _settings(study.model_dump(mode="json"))
        )
        if differing is not None:
            key, there, here = differing
            raise ConfigError(
                f"{self.path} holds another study: {key} is {there} there and {here} here; "
                "give another --out"
            )

    def _check_version(self, study: Study, known: Mapping[str, Any]) -> None:
        """Refuse to go on with what a version without `training.path` began.

        It trained by other programs and added up in another order, so that rounds of then and of
        now would be two runs in one record.
        """
        if "path" in known["study"].get("training", {}):
            return
        if all(self.cell(cell).result() is not None for cell in study.cells()):
            return  # nothing is trained
        raise ConfigError(
            f"{self.path} was begun by an earlier version (commit {known.get('commit')}), which "
            "trained by another program, before there was training.path; finish it with that "
            "version, or give another --out"
        )

    def _known(self) -> dict[str, Any] | None:
        """Read what `study.json` says; nothing while no round was of use, so that it may change."""
        begun = any(has_usable_round(cell) for cell in _entries(self.path / "cells"))
        return self._written() if begun else None

    def _written(self) -> dict[str, Any] | None:
        known = read_json(self.path / "study.json")
        return known if known and isinstance(known.get("study"), Mapping) else None

    def _drop_cells_of_another(self, study: Study, data: FederatedData) -> None:
        """Remove cells without a usable round, begun before the study or its data changed."""
        there = self._written()
        if there is None:
            return
        settings = _settings(there["study"]), _settings(study.model_dump(mode="json"))
        same_data = there.get("data", {}).get("fingerprint") == data.fingerprint
        if not same_data or _first_difference(*settings) is not None:
            for cell in _entries(self.path / "cells"):
                if cell.is_dir():
                    shutil.rmtree(cell)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another run is writing in this folder; wait for it, or give "
                    "another --out"
                ) from error
            yield


def _warn_of_other_code(known: Mapping[str, Any]) -> None:
    """A run may go on with other code than it began with, but nobody should overlook it."""
    before = {"commit": known.get("commit"), **known.get("versions", {})}
    for name, now in {"commit": commit(), **versions()}.items():
        if before.get(name) != now:
            logger.warning("this run began with %s %s, now it is %s", name, before.get(name), now)


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else []


def _with_defaults(study: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return Study.model_validate(study).model_dump(mode="json")
    except ValidationError:
        return study  # it says something that this version does not know, which shall be named


def _settings(study: Mapping[str, Any]) -> dict[str, object]:
    flat = dict(_leaves(study, ""))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == apart or key.startswith(f"{apart}.") for apart in _APART)
    }


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{place}")
    else:
        yield key, value


def _first_difference(
    there: Mapping[str, object], here: Mapping[str, object]
) -> tuple[str, str, str] | None:
    for key in [*there, *(key for key in here if key not in there)]:
        if key not in there or key not in here or there[key] != here[key]:
            texts = [json.dumps(each[key]) if key in each else "not set" for each in (there, here)]
            return key, texts[0], texts[1]
    return None
