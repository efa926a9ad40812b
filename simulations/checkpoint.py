"""A run's last complete round on disk: one SQLite file, and client states in a log beside it."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, final

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedcompress.errors import ConfigError
from simulations.closing import Closing

VERSION = 2

MOST_OUTDATED = 2
LEAST_LOG_BYTES = 10_000_000
"""The log is written anew once it is longer than so many times what counts, and this."""
COPIED_BYTES = 1 << 20

# The log of a save that was cut short is longer than `used`: the next save writes over its tail.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS server (one INTEGER PRIMARY KEY CHECK (one = 1), round INTEGER NOT NULL,
    tree TEXT NOT NULL, arrays BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS log (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL,
    used INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS state (node_id INTEGER PRIMARY KEY, start INTEGER NOT NULL,
    length INTEGER NOT NULL);
INSERT OR IGNORE INTO log VALUES (1, 0, 0);
"""


class Checkpoint(Closing):
    """What a killed run needs to go on: the server's values and every client's state.

    A round is saved whole or not at all: whoever kills the process while it writes finds the
    round before when loading. States are appended to a log, which is on the disk before the
    transaction that counts them in; it is written anew when most of it is out of date.

    Parameters
    ----------
    path : Path
        The file; it is made when it is not there.

    Raises
    ------
    ConfigError
        If the file is no checkpoint, a damaged one, one of another version, or in use.
    OSError
        If the disk is full, or the file may not be written; the file itself is in order then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            # A log may be deleted only when the disk holds what says so.
            self._database.execute("PRAGMA synchronous = FULL")
            found = self._database.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, 1, VERSION):
                raise ConfigError(
                    f"checkpoint: {path} has version {found}, expected {VERSION}; "
                    "it was written by another release, start in a new folder"
                )
            self._database.executescript(_SCHEMA)
            with _Transaction(self._database):
                if found == 1:
                    self._take_over_version_1()
                self._database.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            _explain(error, path)

    def save(
        self, round: int, server: Mapping[str, Any], client_states: Mapping[int, bytes]
    ) -> None:
        """Store a round in one transaction.

        Parameters
        ----------
        round : int
            The last complete round.
        server : mapping
            Nested dicts and lists of arrays, numbers, strings, booleans and None.
        client_states : mapping of int to bytes
            States that changed since the last save, by node id; the others stay.

        Raises
        ------
        OSError
            If the disk is full, say; then the round before stays.
        """
        arrays: dict[str, np.ndarray] = {}
        tree = json.dumps(_take_apart(server, arrays, "server"))
        blob = safetensors.numpy.save(arrays)
        try:
            with _Transaction(self._database):
                self._database.execute(
                    "INSERT OR REPLACE INTO server VALUES (1, ?, ?, ?)", (round, tree, blob)
                )
                outdated = self._append(client_states)
            if outdated is not None:
                outdated.unlink(missing_ok=True)
        except sqlite3.Error as error:
            _explain(error, self.path)
        except OSError as error:
            if error.filename is None:
                error.filename = str(self.path)
            raise

    def load(self) -> tuple[int, dict[str, Any], Mapping[int, bytes]] | None:
        """Return (round, server, client states) of the last complete save, None before any.

        The states are read when they are asked for: before the next save, that is.
        """
        try:
            with _Transaction(self._database):
                row = self._database.execute("SELECT round, tree, arrays FROM server").fetchone()
                number, used = self._database.execute("SELECT number, used FROM log").fetchone()
                found = self._database.execute("SELECT node_id, start, length FROM state")
                places = {node_id: (start, length) for node_id, start, length in found}
        except sqlite3.Error as error:
            _explain(error, self.path)
        if row is None:
            return None
        server = _put_together(json.loads(row[1]), safetensors.numpy.load(row[2]))
        path = self._log(number)
        if used and (not path.is_file() or path.stat().st_size < used):
            raise ConfigError(
                f"checkpoint: {path} is cut short or missing; "
                f"remove {self.path} to start this cell over"
            )
        return row[0], server, SavedStates(path, places)

    def _log(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}-states{number}")

    def _append(self, states: Mapping[int, bytes]) -> Path | None:
        """Append states to the log, inside a transaction; return a log that is then outdated."""
        number, used = self._database.execute("SELECT number, used FROM log").fetchone()
        if not states:
            return None
        log = os.open(self._log(number), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.ftruncate(log, used)
            os.lseek(log, used, os.SEEK_SET)
            places = list(_write_all(log, used, states))
            os.fsync(log)
        finally:
            os.close(log)
        self._database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", places)
        used += sum(length for _, _, length in places)
        [live] = self._database.execute("SELECT TOTAL(length) FROM state").fetchone()
        outdated = None
        if used > MOST_OUTDATED * live + LEAST_LOG_BYTES:
            outdated = self._log(number)
            number, used = number + 1, int(live)
            self._write_anew(outdated, self._log(number))
        self._database.execute("UPDATE log SET number = ?, used = ?", (number, used))
        return outdated

    def _write_anew(self, old: Path, new: Path) -> None:
        """Copy the states that count into a new log."""
        found = self._database.execute("SELECT node_id, start, length FROM state ORDER BY start")
        places, end = [], 0
        buffer = memoryview(bytearray(COPIED_BYTES))
        with io.FileIO(old) as source, new.open("wb") as log:
            for node_id, start, length in found:
                _copy(source, start, log.fileno(), length, buffer)
                places.append((node_id, end, length))
                end += length
            os.fsync(log.fileno())
        self._database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", places)

    def _take_over_version_1(self) -> None:
        """Move the states, which stood in a table, to the log."""
        self._append(dict(self._database.execute("SELECT node_id, state FROM client")))
        self._database.execute("DROP TABLE client")

    def close(self) -> None:
        """Close the file."""
        self._database.close()


@final
class SavedStates(Mapping[int, bytes]):
    """Client states of a checkpoint by node id, each read when it is asked for."""

    def __init__(self, path: Path, places: Mapping[int, tuple[int, int]]) -> None:
        self._path = path
        self._places = places

    def __getitem__(self, node_id: int) -> bytes:
        start, length = self._places[node_id]
        if not length:
            return b""
        with self._path.open("rb") as log:
            return os.pread(log.fileno(), length, start)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def drop(path: Path) -> None:
    """Delete a checkpoint's files; harmless where there are none."""
    for file in (path, *path.parent.glob(f"{path.name}-*")):
        file.unlink(missing_ok=True)


def _write_all(log: int, end: int, states: Mapping[int, bytes]) -> Iterator[tuple[int, int, int]]:
    """Append states to a file; yield (node id, start, length) of each."""
    for node_id, state in states.items():
        _write(log, memoryview(state))
        yield node_id, end, len(state)
        end += len(state)


def _copy(source: io.FileIO, start: int, target: int, length: int, buffer: memoryview) -> None:
    """Append a part of a file to another; `sendfile` takes twice as long between file systems."""
    source.seek(start)
    while length:
        count = source.readinto(buffer[:length])
        if not count:
            raise OSError(errno.EIO, "a file of client states is shorter than it was")
        _write(target, buffer[:count])
        length -= count


def _write(target: int, data: memoryview) -> None:
    while data:
        data = data[os.write(target, data) :]


# SQLite's codes for trouble of the disk, which leaves a checkpoint as good as it was.
_DISK_TROUBLE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.ENOSPC,
}


def _explain(error: sqlite3.Error, path: Path) -> NoReturn:
    """Raise what tells a full disk, whose checkpoint must stay, from a file that must go."""
    # The lowest byte is the kind of error, the others its detail; errors of the module have none.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise ConfigError(
            f"checkpoint: {path} is in use by another process; wait until that has ended"
        ) from error
    number = _DISK_TROUBLE.get(code)
    if number is None:
        raise ConfigError(
            f"checkpoint: cannot use {path}, which is damaged or no checkpoint ({error}); "
            "remove it to start this cell over"
        ) from error
    # A full disk has no room either for the files that SQLite opens beside its own; but it says
    # the same where the folder is missing or may not be written.
    if not path.parent.is_dir():
        number = errno.ENOENT
    elif number != errno.EIO and not os.access(path.parent, os.W_OK):
        number = errno.EACCES
    raise OSError(number, str(error), str(path)) from error


class _Transaction:
    """All of the statements inside, or none of them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT" if error is None else "ROLLBACK")


# ------------------------------------------------------------------ what a strategy carries over
def strategy_state(strategy: Strategy) -> dict[str, Any]:
    """Take what a strategy carries from round to round, for `Checkpoint.save`.

    A strategy with `state_dict()` says it itself. Of another, every attribute that is a number,
    string, array, ArrayRecord or a list or dict of those is taken: momentum and second moments of
    Flower's adaptive strategies, the clipping norm of its differential privacy. A strategy
    inside (`.strategy`) is taken too, and those of groups of clients (`.rules`).
    """
    if hasattr(strategy, "state_dict"):
        own = strategy.state_dict()
    else:
        own = {
            name: value
            for name, value in vars(strategy).items()
            if name != "strategy" and _is_plain(value)
        }
    inner = getattr(strategy, "strategy", None)
    state = {"own": own, "inner": strategy_state(inner) if isinstance(inner, Strategy) else None}
    rules = _rules_of(strategy)
    return {**state, "rules": {k: strategy_state(x) for k, x in rules.items()}} if rules else state


def load_strategy_state(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Give a strategy, built anew with the same settings, what `strategy_state` took.

    Raises
    ------
    ConfigError
        If the state is one of another kind of strategy.
    """
    own, inner = state["own"], getattr(strategy, "strategy", None)
    if (state["inner"] is not None) != isinstance(inner, Strategy):
        raise ConfigError(
            f"checkpoint: the stored strategy wraps another, or none, unlike this "
            f"{type(strategy).__name__}; resume with the settings that wrote it"
        )
    if hasattr(strategy, "load_state_dict"):
        strategy.load_state_dict(own)
    else:
        if unknown := sorted(own.keys() - vars(strategy).keys()):
            raise ConfigError(
                f"checkpoint: {type(strategy).__name__} has no {', '.join(unknown)}; "
                "resume with the settings that wrote it"
            )
        for name, value in own.items():
            setattr(strategy, name, value)
    if isinstance(inner, Strategy):
        load_strategy_state(inner, state["inner"])
    rules, stored = _rules_of(strategy), state.get("rules", {})
    if rules.keys() != stored.keys():
        raise ConfigError(
            f"checkpoint: the stored strategy has the groups {', '.join(stored) or 'none'}, this "
            f"one {', '.join(rules) or 'none'}; resume with the settings that wrote it"
        )
    for group, rule in rules.items():
        load_strategy_state(rule, stored[group])


def _rules_of(strategy: Strategy) -> dict[str, Strategy]:
    rules = getattr(strategy, "rules", None)
    return dict(rules) if isinstance(rules, Mapping) else {}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    plain = bool | int | float | str | bytes | np.ndarray | np.generic | ArrayRecord
    return value is None or isinstance(value, plain)


# ------------------------------------------------------------------ values as JSON and arrays
# Only what JSON has stands as itself; every other value is an object of one key, its kind.
def _take_apart(value: object, arrays: dict[str, np.ndarray], where: str) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _take_apart(value.item(), arrays, where)
    if isinstance(value, list):
        return [_take_apart(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
    kind: str
    inside: object
    if isinstance(value, np.ndarray):
        kind, inside = "array", _keep(value, arrays)
    elif isinstance(value, ArrayRecord):
        kind, inside = "record", _take_apart(list(map(_fields, value.items())), arrays, where)
    elif isinstance(value, bytes):
        kind, inside = "bytes", value.hex()
    elif isinstance(value, tuple):
        kind, inside = "tuple", _take_apart(list(value), arrays, where)
    elif isinstance(value, Mapping):
        # Pairs, since JSON would turn integer keys (node ids) into strings.
        kind, inside = (
            "dict",
            [
                [_take_apart(key, arrays, where), _take_apart(item, arrays, f"{where}[{key!r}]")]
                for key, item in value.items()
            ],
        )
    else:
        raise ConfigError(
            f"checkpoint: cannot store {where}, a {type(value).__name__}; "
            "give arrays, numbers, strings, lists or dicts"
        )
    return {kind: inside}


def _keep(array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    name = str(len(arrays))
    # safetensors would write a strided array's memory as it lies.
    arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    return name


def _fields(item: tuple[str, Array]) -> list[object]:
    key, array = item
    data = np.frombuffer(array.data, np.uint8)
    return [key, array.dtype, list(array.shape), array.stype, data]


def _put_together(value: object, arrays: Mapping[str, np.ndarray]) -> Any:  # noqa: ANN401 - as saved
    if isinstance(value, list):
        return [_put_together(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, inside)] = value.items()
    if kind == "array":
        return arrays[inside]
    if kind == "bytes":
        return bytes.fromhex(inside)
    items = [_put_together(item, arrays) for item in inside]
    if kind == "record":
        return _record(items)
    return tuple(items) if kind == "tuple" else dict(items)


def _record(items: list[list[Any]]) -> ArrayRecord:
    record = ArrayRecord()
    for key, dtype, shape, stype, data in items:
        record[key] = Array(dtype, tuple(shape), stype, data.tobytes())
    return record
