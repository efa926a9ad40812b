"""Records of a cell: rows appended to JSONL as they are known, results written last and whole."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcompress.errors import ConfigError

Row = Mapping[str, object]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows to a JSONL file and hand them to the operating system.

    Raises
    ------
    OSError
        If the disk is full, say; a line that was cut off is passed over by every reader.
    """
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a JSONL file; a missing file has none.

    Raises
    ------
    ConfigError
        If a whole line is no JSON object.
    """
    if not path.is_file():
        return []
    *lines, _cut_off = path.read_bytes().split(b"\n")
    return [_read_row(path, number, line) for number, line in enumerate(lines, 1) if line]


def _read_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ConfigError(
            f"{path}: line {number} is damaged; remove the folder {path.parent} and run again"
        )
    return row


def keep_rounds(path: Path, last_round: int | None = None) -> None:
    """Cut a JSONL file after the rows of `last_round`, and a half line with them.

    With `last_round` -1 nothing is kept; without it every whole line is.
    """
    rows = read_rows(path)
    kept = [row for row in rows if last_round is None or row["round"] <= last_round]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write one JSON object, whole or not at all."""
    write_whole(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read one JSON object; None where there is no file, or it holds something else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under its name only when all of it is on the disk.

    Raises
    ------
    OSError
        If the disk is full, say; then the file is as it was.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with _named(path), draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let the system's errors name the file: those of writing do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what a clock measured; the rest of a record is the same in every run."""
    return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]
