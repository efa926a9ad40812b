"""What every section of a study shares: frozen, unknown keys refused, errors in one line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from fedcompress.errors import ConfigError

Scalar = bool | int | float | str


class Section(BaseModel):
    """A frozen group of settings that refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        # Python takes true for 1: `rounds = true` would train for one round.
        kinds = _scalars(cls.model_fields[str(info.field_name)].annotation)
        items = value if isinstance(value, list | tuple) else [value]
        if (
            kinds & {int, float}
            and not kinds & {bool, str}
            and any(i is True or i is False for i in items)
        ):
            raise ValueError(f"must be a number, got {json.dumps(value, default=str)}")
        return value


def _check_fraction(value: float) -> float:
    if not 0 < value <= 1:
        mend = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"must be in (0, 1], got {value:g}{mend}")
    return value


def _check_share(value: float) -> float:
    if not 0 <= value < 1:
        mend = f"; did you mean {value / 100:g}?" if 1 <= value < 100 else ""
        raise ValueError(f"must be in [0, 1), got {value:g}{mend}")
    return value


def _split(value: object) -> object:
    # A run configuration of Flower has no lists: "200,200" stands for [200, 200].
    # An empty list is "[]" there, since an empty text means that the key is not set.
    if isinstance(value, str):
        inside = value.strip().removeprefix("[").removesuffix("]")
        return [part.strip() for part in inside.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
NotEmpty = Annotated[str, Field(min_length=1)]

Fraction = Annotated[float, AfterValidator(_check_fraction)]
"""A number in (0, 1]."""

Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_split)]
"""Widths of hidden layers: a list, or "200,200" and "[]" where there are no lists."""

Fractions = Annotated[tuple[Fraction, ...], BeforeValidator(_split)]
"""Numbers in (0, 1]: a list, or "1.0,0.5" where there are no lists."""

Share = Annotated[float, AfterValidator(_check_share)]
"""A number in [0, 1)."""

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed; Flower's run configuration carries 64 bits with a sign."""

TextOrUnset = Annotated[str | None, BeforeValidator(lambda text: None if text == "" else text)]
"""A text; an empty one stands for a key that is not set, as in a run configuration."""


def config_error(
    source: str,
    error: ValidationError,
    model: type[BaseModel],
    labels: Mapping[int, str] | None = None,
) -> ConfigError:
    """Turn pydantic's report into one line that names the key, the value and the mend.

    Parameters
    ----------
    source : str
        Where the settings came from, such as a file name.
    error : ValidationError
        Its first fault is told; the others wait their turn.
    model : type of BaseModel
        What was validated; its keys are what an unknown key is compared with.
    labels : mapping of int to str, optional
        Labels of strategies by their place; a key in a strategy is named by its label.
    """
    first = error.errors(include_url=False)[0]
    key = _dotted(first["loc"], labels)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{source}: unknown key {key!r}; {_near_key(first['loc'], key, model)}")
    if first["type"] == "missing":
        return ConfigError(f"{source}: the key {key!r} is missing; give it a value")
    return ConfigError(f"{source}: {_reason(first, key)}")


def _reason(fault: ErrorDetails, key: str) -> str:
    message, value = fault["msg"], fault["input"]
    if fault["type"] == "value_error":  # raised by a validator of ours: it says all there is to say
        said = message.removeprefix("Value error, ")
        if not key or said.startswith("must"):
            return f"{key} {said}".strip()
        # A section that refuses two of its keys together names the key itself, after a dot.
        return f"{key}{said}" if said.startswith(".") else f"{key} is refused: {said}"
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
    return f"{key + ' ' if key else ''}{wanted}, got {value!r}{mend}"


def _dotted(location: Sequence[int | str], labels: Mapping[int, str] | None = None) -> str:
    # A union that is part of a type adds its own name to the path; keys never hold brackets.
    parts = [part for part in location if "[" not in str(part)]
    if labels and len(parts) > 1 and parts[0] == "strategies" and isinstance(parts[1], int):
        parts[1] = labels.get(parts[1], parts[1])
    return ".".join(str(part) for part in parts)


def _near_key(location: Sequence[int | str], key: str, model: type[BaseModel]) -> str:
    known = sorted(set(known_keys(model)))
    plain = _dotted([part for part in location if not isinstance(part, int)])
    last = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = get_close_matches(plain, known, n=1) or [
        last[name] for name in get_close_matches(plain.rpartition(".")[2], list(last), n=1)
    ]
    if close:
        # A strategy's key is written with its label or number, which no known key holds.
        whole, parent = close[0], plain.rpartition(".")[0]
        if whole.startswith(f"{parent}.") and key.endswith(plain.rpartition(".")[2]):
            shown = key.removesuffix(plain.rpartition(".")[2])
            whole = shown + whole.removeprefix(f"{parent}.")
        return f"did you mean {whole!r}?"
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


def _scalars(annotation: object) -> set[type]:
    """Give the scalar types that a field takes, alone, in a tuple or in a union."""
    if isinstance(annotation, type):
        return {annotation} & {bool, int, float, str}
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated):
        return {kind for part in get_args(annotation) for kind in _scalars(part)}
    return set()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Flatten nested tables to dotted keys; None is left out, a list is joined by commas.

    An empty list becomes "[]", because an empty text means that a key is not set.
    """
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ",".join(str(item) for item in value) or "[]"
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
