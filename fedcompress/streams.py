"""Typed streams: what a stage hands to a coder, and what a decoder expects back.

A stream says what its numbers are, so that the coder can choose how to code them. A form
is the same without the numbers: it is known before decoding, from the layout of the global
model and from the streams already decoded, and bounds what a decoder may allocate.
"""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Shape, dtype and device of an array, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """Number of entries."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @staticmethod
    def of(x: Tensor) -> "Layout":
        """Read the layout of ``x``."""
        return Layout(tuple(x.shape), x.dtype, x.device)


class Stream(ABC):
    """Numbers of one kind that a coder turns into bytes."""

    kind: ClassVar[str]


@dataclass(frozen=True, eq=False)
class IndexSet(Stream):
    """A set of ``len(indices)`` distinct positions out of ``n``, ascending (int64).

    ``shape`` is that of the array whose flat positions these are, () where that is not known:
    rows and columns differ in how often they are kept, which a coder may use.
    """

    kind: ClassVar[str] = "index"
    indices: Tensor
    n: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Symbols(Stream):
    """Integers of a small alphabet (any signed integer dtype), shaped as what they stand for.

    ``states`` other than 0 says that they are levels of a trellis of so many states: which of
    two quantizers a level belongs to follows from the parities of the levels before it in its
    row (see `row_width`), so a coder may count the two apart.
    """

    kind: ClassVar[str] = "symbols"
    values: Tensor
    states: int = 0


@dataclass(frozen=True, eq=False)
class Floats(Stream):
    """Floating-point values."""

    kind: ClassVar[str] = "floats"
    values: Tensor


@dataclass(frozen=True, eq=False)
class Scale(Stream):
    """A few floating-point numbers that undoing a stage needs, sent exactly."""

    kind: ClassVar[str] = "scale"
    values: Tensor


@dataclass(frozen=True, eq=False)
class Seed(Stream):
    """An unsigned 64-bit seed from which the decoder draws what the encoder drew."""

    kind: ClassVar[str] = "seed"
    value: int


Streams = Sequence[Stream]


class Form(ABC):
    """What the decoder knows of a stream before it reads it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class IndexForm(Form):
    """At most ``n`` positions out of ``n``, in an array of ``shape`` if that is known."""

    kind: ClassVar[str] = "index"
    n: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class SymbolForm(Form):
    """Exactly as many integers as ``shape`` holds.

    With ``as_entries`` a coder may give what levels of a trellis stand for (float32, in its
    steps) in their place, where it comes upon that on the way.
    """

    kind: ClassVar[str] = "symbols"
    shape: tuple[int, ...]
    states: int = 0
    as_entries: bool = False


@dataclass(frozen=True)
class FloatForm(Form):
    """Exactly as many values of ``dtype`` as ``shape`` holds."""

    kind: ClassVar[str] = "floats"
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class ScaleForm(Form):
    """Exactly ``count`` values of ``dtype``."""

    kind: ClassVar[str] = "scale"
    count: int
    dtype: torch.dtype


@dataclass(frozen=True)
class SeedForm(Form):
    """One unsigned 64-bit integer."""

    kind: ClassVar[str] = "seed"


Forms = Sequence[Form]
