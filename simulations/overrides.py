"""Settings given on the command line: `--set key=value` over the tables of a study file."""

import tomllib
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from fedcompress.checks import near
from fedcompress.errors import ConfigError

Table = dict[str, Any]


def apply_overrides(values: Table, assignments: Sequence[str]) -> Table:
    """Return the study's tables with each `key=value` put in its place.

    Parameters
    ----------
    values : dict
        The tables of a study file; left as they are.
    assignments : sequence of str
        Such as ``"rounds=5"``, ``"training.learning_rate=0.1"``, ``"seeds=[0, 1]"`` or
        ``"strategies.STC.uplink=sign() | entropy()"``, a strategy named by its label or its
        number from 0. A value is read as TOML, and as plain text where it is none.

    Raises
    ------
    ConfigError
        If an assignment has no `=`, or names a strategy that there is not.
    """
    changed = deepcopy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r}: write key=value, such as rounds=5")
        _put(changed, key, _value(text.strip()))
    return changed


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: Table, key: str, value: object) -> None:
    table, rest = values, key
    if key.startswith("strategies."):
        table, rest = _strategy(values, key.removeprefix("strategies."))
    *path, last = rest.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {key}: {part!r} is a value, so nothing can stand below it")
    table[last] = value


def _strategy(values: Table, key: str) -> tuple[Table, str]:
    strategies = values.get("strategies")
    entries: list[Table] = strategies if isinstance(strategies, list) else []
    labels = [str(entry.get("label") or entry.get("method", "")) for entry in entries]
    # Labels may hold dots ("top-k 0.1"): the longest one that fits is meant.
    fitting = [label for label in labels if label and key.startswith(label + ".")]
    if fitting:
        label = max(fitting, key=len)
        return entries[labels.index(label)], key[len(label) + 1 :]
    name, _, rest = key.partition(".")
    if name.isdigit() and int(name) < len(entries) and rest:
        return entries[int(name)], rest
    if not rest:
        raise ConfigError(
            f"--set strategies.{key}: say which key, such as strategies.{name}.uplink"
        )
    raise ConfigError(
        f"--set strategies.{key}: there is no strategy {name!r}; {near(name, labels)}"
    )
