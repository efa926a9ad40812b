"""Checks of settings, each with an error that names the thing, the value and the mend."""

import math
from difflib import get_close_matches

from fedcompress.errors import SpecError


def check_fraction(owner: str, setting: str, value: object) -> None:
    """Raise `SpecError` unless ``value`` is a number in (0, 1]."""
    if not _is_number(value) or not 0 < float(value) <= 1:  # type: ignore[arg-type]
        mend = ""
        if _is_number(value) and 1 < float(value) <= 100:  # type: ignore[arg-type]
            mend = f"; did you mean {float(value) / 100:g}?"  # type: ignore[arg-type]
        raise SpecError(f"{owner}: {setting} must be in (0, 1], got {value!r}{mend}")


def check_positive(owner: str, setting: str, value: object) -> None:
    """Raise `SpecError` unless ``value`` is a finite number above zero."""
    if not _is_number(value) or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise SpecError(f"{owner}: {setting} must be a finite number above 0, got {value!r}")


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


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not (isinstance(value, float) and math.isnan(value))
    )
