"""Rules that choose arrays by name, size, number of dimensions or dtype.

::

    rule       = condition ("&" condition)*
    condition  = shell pattern of names            *.bias, layer[0-3].*
               | ("size" | "ndim") compare number  size>=10000, ndim=2
               | "dtype" "=" name                  dtype=float16
    compare    = "<" | "<=" | ">" | ">=" | "="
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import Tensor

from fedcompress.checks import near
from fedcompress.errors import SpecError

_CONDITION = re.compile(r"\s*(\w*)\s*(<=|>=|==|=|<|>)\s*(\S*)\s*")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@dataclass(frozen=True)
class _Condition:
    """One comparison, or a pattern of names where `of` is "name"."""

    of: str
    compare: str
    value: str

    def holds(self, name: str, x: Tensor) -> bool:
        if self.of == "name":
            return fnmatchcase(name, self.value)
        if self.of == "dtype":
            return x.dtype == _DTYPES[self.value]
        measured = x.numel() if self.of == "size" else x.dim()
        return _COMPARE[self.compare](measured, int(self.value))

    def __str__(self) -> str:
        return self.value if self.of == "name" else f"{self.of}{self.compare}{self.value}"


def matches(rule: str, name: str, x: Tensor) -> bool:
    """Whether an array meets every condition of a rule that `canonical` gave."""
    return all(condition.holds(name, x) for condition in _conditions("rule", rule))


def canonical(owner: str, rule: str) -> str:
    """Write a rule the one way in which it is compared and fingerprinted.

    Raises
    ------
    SpecError
        If a condition measures something unknown, or compares it to what it cannot be.
    """
    return " & ".join(str(condition) for condition in _conditions(owner, rule))


@lru_cache(maxsize=1024)
def _conditions(owner: str, rule: str) -> tuple[_Condition, ...]:
    parts = rule.split("&")
    if len(parts) == 1 and not _CONDITION.fullmatch(rule):
        return (_Condition("name", "", rule),)
    return tuple(_condition(owner, rule, part.strip()) for part in parts)


def _condition(owner: str, rule: str, text: str) -> _Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        if not text:
            raise SpecError(f"{owner}: {rule!r} lacks a condition beside &; remove the &")
        return _Condition("name", "", text)
    of, compare, value = match.groups()
    compare = "=" if compare == "==" else compare
    where = f"{owner}: {text!r}" if text == rule else f"{owner}: {text!r} in {rule!r}"
    if of == "dtype":
        value = value.removeprefix("torch.")
        if compare != "=" or value not in _DTYPES:
            raise SpecError(f"{where}: a dtype is equal to one; {near(value, list(_DTYPES))}")
    elif of in ("size", "ndim"):
        digits = value.replace("_", "")
        if not re.fullmatch("[0-9]{1,18}", digits):
            raise SpecError(f"{where}: {of} is compared to an integer; write {of}>=2")
        value = str(int(digits))
    else:
        known = near(of, ["size", "ndim", "dtype"]) if of else f"write size{compare}{value}"
        raise SpecError(f"{where}: {of!r} is not measured; {known}")
    return _Condition(of, compare, value)
