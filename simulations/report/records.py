"""Read the JSON and JSONL files of a run's folder."""

import json
import logging
from pathlib import Path

from fedcompress.errors import ConfigError

logger = logging.getLogger(__name__)

Record = dict[str, object]
"""One JSON object of the records."""


def read_object(path: Path, mend: str) -> Record:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path : Path
        The file.
    mend : str
        What to do about it where it is damaged.

    Raises
    ------
    ConfigError
        If the file does not hold one JSON object.
    """
    return _parse(path.read_bytes(), str(path), mend)


def read_rows(path: Path, mend: str) -> list[Record]:
    """Read a JSONL file; a missing file is empty and a line without its end is passed over.

    Raises
    ------
    ConfigError
        If a whole line is not a JSON object.
    """
    if not path.is_file():
        return []
    *whole, cut_off = path.read_bytes().split(b"\n")
    if cut_off:
        logger.warning("%s: the last line is cut off and was passed over", path)
    return [
        _parse(line, f"{path}, line {number},", mend)
        for number, line in enumerate(whole, 1)
        if line
    ]


def _parse(text: bytes, place: str, mend: str) -> Record:
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        what = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise ConfigError(f"report: {place} is damaged: not valid JSON ({what}); {mend}") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"report: {place} is damaged: expected a JSON object, "
            f"got {type(value).__name__}; {mend}"
        )
    return value
