"""The mildest recipe whose file is within a budget."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedcompress.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1 << 20}
_LEAST, _MOST = 256, 1e15
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
    size = float(found[1]) * unit
    if not _LEAST <= size < _MOST:
        raise ConfigError(
            f"export: --budget {text!r} is {size:.12g} bytes; it must be from {_LEAST} to {_MOST:g}"
        )
    return int(size)


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


def least_size(size_within: Callable[[int], float], too_little: int, enough: int) -> int:
    """Find the least budget that a codec which takes one can meet.

    Parameters
    ----------
    size_within : callable
        Gives the bytes of the file for a budget; more than the budget where it cannot be met.
    too_little, enough : int
        A budget that cannot be met, and a size that something else reaches.

    Returns
    -------
    int
        At most `enough`.
    """
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        if size_within(middle) <= middle:
            enough = middle
        else:
            too_little = middle
    return enough


def over_budget(least: int, most_bytes: int) -> str:
    """Say that a budget cannot be met."""
    return (
        f"export: --budget is {most_bytes:,} bytes, and the least that this model takes in this "
        f"format is {least:,}; give a larger budget, or another format"
    )
