"""What every section of a study shares: frozen, unknown keys refused, errors in one line."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fedcompress.errors import ConfigError

Scalar = bool | int | float | str


class Section(BaseModel):
    """A frozen group of settings that refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_fraction(value: float) -> float:
    if not 0 < value <= 1:
        mend = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"must be in (0, 1], got {value:g}{mend}")
    return value


def _split(value: object) -> object:
    # A run configuration of Flower has no lists: "200,200" stands for [200, 200].
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


Fraction = Annotated[float, AfterValidator(_check_fraction)]
"""A number in (0, 1]."""

Widths = Annotated[tuple[int, ...], BeforeValidator(_split)]
"""Widths of hidden layers: a list, or "200,200" where there are no lists."""


def config_error(source: str, error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """Turn pydantic's report into one line that names the key, the value and the mend.

    Parameters
    ----------
    source : str
        Where the settings came from, such as a file name.
    error : ValidationError
        Its first fault is told; the others wait their turn.
    model : type of BaseModel
        What was validated; its keys are what an unknown key is compared with.
    """
    first = error.errors(include_url=False)[0]
    key = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{source}: unknown key {key!r}; {_near_key(key, model)}")
    if first["type"] == "missing":
        return ConfigError(f"{source}: the key {key!r} is missing; give it a value")
    return ConfigError(f"{source}: {key + ' ' if key else ''}{_reason(first, bool(key))}")


def _reason(fault: ErrorDetails, has_key: bool) -> str:
    message, value = fault["msg"], fault["input"]
    if fault["type"] == "value_error":  # raised by a validator of ours: it says all there is to say
        said = message.removeprefix("Value error, ")
        return said if said.startswith("must") or not has_key else f"is refused: {said}"
    wanted = message[0].lower() + message[1:]
    wanted = wanted.replace("input should be", "must be")
    if fault["type"] in ("model_type", "model_attributes_type"):
        wanted = "must be a table of keys"
    mend = ""
    if fault["type"] == "literal_error" and isinstance(value, str):
        choices = str(fault.get("ctx", {}).get("expected", "")).replace("'", "").split(" or ")
        known = [name.strip() for part in choices for name in part.split(",")]
        close = get_close_matches(value, known, n=1)
        mend = f"; did you mean {close[0]!r}?" if close else ""
    return f"{wanted}, got {value!r}{mend}"


def _dotted(location: Sequence[int | str]) -> str:
    # A union that is part of a type adds its own name to the path; keys never hold brackets.
    return ".".join(str(part) for part in location if "[" not in str(part))


def _near_key(key: str, model: type[BaseModel]) -> str:
    known = sorted(set(known_keys(model)))
    plain = ".".join(part for part in key.split(".") if not part.isdigit())
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = get_close_matches(plain, known, n=1) or [
        last[name] for name in get_close_matches(plain.rpartition(".")[2], list(last), n=1)
    ]
    if close:
        return f"did you mean {close[0]!r}?"
    parent = plain.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == parent] or known
    return "known: " + ", ".join(name.rpartition(".")[2] for name in beside)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Give every key of a model and of the sections in it, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.")


def _sections(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return []


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Flatten nested tables to dotted keys; None is left out, a list is joined by commas."""
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ",".join(str(item) for item in value)
        elif value is not None:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Scalar]) -> dict[str, Any]:
    """Nest dotted keys; an empty string stands for a key that is not set.

    Raises
    ------
    ConfigError
        If one key is both a value and a table.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if value == "":
            continue
        *path, last = key.split(".")
        table = nested
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{key}: {part!r} is a value, so nothing can stand below it")
        table[last] = value
    return nested
