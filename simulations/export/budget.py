"""The mildest recipe whose file is within a budget."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedcompress.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1 << 20}
_LEAST = 256
T = TypeVar("T")


def read_bytes_text(text: str) -> int:
    """Read a size such as ``100kB``, ``1.5 MB`` or ``40000``; 1 kB is 1000 bytes.

    Raises
    ------
    ConfigError
        If it is no size, or too small for any file.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        raise ConfigError(f"export: --budget {text!r} is no size; write 100kB, 1.5MB or 40000")
    size = int(float(found[1]) * unit)
    if size < _LEAST:
        raise ConfigError(
            f"export: --budget {text!r} is {size} bytes; at least {_LEAST} are needed"
        )
    return size


def meet_budget(rungs: Sequence[T], measure: Callable[[T], int], most_bytes: int) -> int:
    """Find the first rung of a ladder whose file is within a budget.

    Parameters
    ----------
    rungs : sequence
        Recipes, the files of later ones no larger.
    measure : callable
        Gives the bytes of a recipe's file.
    most_bytes : int
        The budget.

    Returns
    -------
    int
        Place in `rungs`.

    Raises
    ------
    ConfigError
        Names the least size, if even the last is larger.
    """
    if measure(rungs[0]) <= most_bytes:
        return 0
    least = measure(rungs[-1])
    if least > most_bytes:
        raise ConfigError(over_budget(least, most_bytes))
    low, high = 0, len(rungs) - 1  # the first is too large, the last is not
    while high - low > 1:
        middle = (low + high) // 2
        if measure(rungs[middle]) <= most_bytes:
            high = middle
        else:
            low = middle
    return high


def over_budget(least: int, most_bytes: int) -> str:
    """Say that a budget cannot be met."""
    return (
        f"export: --budget is {most_bytes:,} bytes, and the least that this model takes in this "
        f"format is {least:,}; give a larger budget, or another format"
    )
