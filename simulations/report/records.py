"""Read the JSON and JSONL files of a run's folder."""

import json
import logging
from pathlib import Path

from fedcompress.errors import ConfigError

logger = logging.getLogger(__name__)

Record = dict[str, object]
"""One JSON object of the records."""


def read_object(path: Path) -> Record:
    """Read a file that holds one JSON object.

    Raises
    ------
    ConfigError
        If the file does not hold one JSON object.
    """
    return _parse(path.read_text("utf-8"), str(path))


def read_rows(path: Path) -> list[Record]:
    """Read a JSONL file; a missing file is empty and a line without its end is passed over.

    Raises
    ------
    ConfigError
        If a whole line is not a JSON object.
    """
    if not path.is_file():
        return []
    *whole, cut_off = path.read_text("utf-8").split("\n")
    if cut_off:
        logger.warning("%s: the last line is cut off and was passed over", path)
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(whole, 1) if line]


def _parse(text: str, place: str) -> Record:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"report: {place} is not valid JSON ({error.msg}); remove that cell and run it again"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"report: {place} must hold a JSON object, got {type(value).__name__}")
    return value
