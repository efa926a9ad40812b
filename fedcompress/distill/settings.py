"""Ranges of the settings of distillation."""

from typing import TypeGuard

from fedcompress.errors import ConfigError

_WHOLE = ("steps", "batch_size", "patience", "check_every", "first")
_UP_TO_ONE = ("hard_label_weight", "align")
_BELOW_ONE = ("holdout_fraction", "anchor", "memory")


def check_settings(where: str, **settings: object) -> None:
    """Refuse settings of a distillation that are out of range.

    Parameters
    ----------
    where : str
        Who asks; the error begins with it.
    **settings : object
        Settings by name; those not given are not checked.

    Raises
    ------
    ConfigError
        Names the setting, its value and the range.
    """
    for name, value in settings.items():
        if name in _WHOLE:
            good, wanted = _is_whole(value) and value >= 1, "a whole number >= 1"
        elif name in _BELOW_ONE:
            good, wanted = _is_number(value) and 0 <= value < 1, "in [0, 1)"
        elif name in _UP_TO_ONE:
            good, wanted = _is_number(value) and 0 <= value <= 1, "in [0, 1]"
        else:
            good, wanted = _is_number(value) and 0 < value < float("inf"), "a finite number > 0"
        if not good:
            raise ConfigError(f"{where}: {name} must be {wanted}, got {value!r}")


def check_choice(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless a value is one of those listed."""
    if value not in choices:
        quoted = " or ".join(", ".join(map(repr, choices)).rsplit(", ", 1))
        raise ConfigError(f"{where}: {name} must be {quoted}, got {value!r}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
