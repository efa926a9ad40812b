"""A check of a parameter against a half-open range."""

import math

from fedcompress.errors import ConfigError


def check_range(
    owner: str, parameter: str, value: object, low: float, high: float = math.inf
) -> None:
    """Raise `ConfigError` unless ``value`` is a number in [low, high)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value < high:  # type: ignore[operator]
        wanted = f"in [{low:g}, {high:g})" if high < math.inf else f"a finite number >= {low:g}"
        raise ConfigError(f"{owner}: {parameter} must be {wanted}, got {value!r}")
