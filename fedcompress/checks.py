"""Checks of settings, each with an error that names the thing, the value and the mend."""

import math
from difflib import get_close_matches

from fedcompress.errors import SpecError


def check_fraction(owner: str, setting: str, value: object) -> float:
    """Give ``value`` as a float; raise `SpecError` unless it is a number in (0, 1]."""
    number = _number(value)
    if not 0 < number <= 1:
        mend = f"; did you mean {number / 100:g}?" if 1 < number <= 100 else ""
        raise SpecError(f"{owner}: {setting} must be in (0, 1], got {_brief(value)}{mend}")
    return number


def check_positive(owner: str, setting: str, value: object) -> float:
    """Give ``value`` as a float; raise `SpecError` unless it is finite and above zero."""
    number = _number(value)
    if not 0 < number < math.inf:
        raise SpecError(f"{owner}: {setting} must be a finite number above 0, got {_brief(value)}")
    return number


def check_integer(owner: str, setting: str, value: object, low: int, high: int) -> None:
    """Raise `SpecError` unless ``value`` is an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise SpecError(
            f"{owner}: {setting} must be an integer from {low} to {high}, got {value!r}"
        )


def check_choice(owner: str, setting: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `SpecError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise SpecError(f"{owner}: {setting} must be {listed}, got {value!r}")


def near(name: str, known: list[str]) -> str:
    """Suggest the known names nearest to ``name``, or list them all."""
    close = get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(sorted(known))


def _number(value: object) -> float:
    """Convert a number; anything else, and what no float can hold, gives NaN or infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
