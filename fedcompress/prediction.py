"""Prediction: both sides remember what was decoded, and only the difference to it is sent.

The encoder predicts an update from its memory and sends the difference; the decoder, which
has made the same memory of the same payloads, adds the prediction back. A payload carries a
checksum of the memory that it builds on, so a decoder of another memory refuses it.
"""

import math
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedcompress.closed_loop import check_loop
from fedcompress.compressor import Compressor, Encoded, Memory, Part, State, under
from fedcompress.errors import (
    LayoutError,
    NotFiniteError,
    PayloadError,
    SpecError,
    StaleMemoryError,
)
from fedcompress.wire import Section, SectionReader

_MEMORY = "memory/"
_INNER = "inner/"
_CHECKSUM_BYTES = 4
_FACTOR_STEPS = 64  # a fitted factor is sent as one byte, in steps of 1/64, from 0 to almost 4


class Predictive(Compressor):
    """The abstract predictive compressor: ``x − factor · memory`` goes through another one.

    With x̂ the decoded update, memory ← (1 − rate) · memory + rate · x̂ on both sides. State:
    the memory, in float32 or wider, zero at first.
    """

    compressor: Compressor

    @property
    @abstractmethod
    def factor(self) -> float | None:
        """What the memory is multiplied by to predict the update; None fits and sends it."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """How much of the memory each decoded update replaces, in (0, 1]."""

    def check_inside(self, may_expand: bool = False) -> None:
        """Raise `SpecError` if the compressor inside predicts or feeds back by itself."""
        check_loop(self.name, self.compressor, may_expand)
        if self.compressor.recalls:
            raise SpecError(
                f"{self.name}: the compressor inside predicts already; leave one of them out"
            )

    @property
    def recalls(self) -> bool:
        """Always."""
        return True

    def inside(self) -> Sequence[Compressor]:
        """Give the compressor that sends the difference."""
        return (self.compressor,)

    def init_state(self, like: Mapping[str, Tensor]) -> State:
        """Start with a memory of zero."""
        inner = self.compressor.init_state(like)
        return {
            **{_MEMORY + name: x for name, x in _memories(like, {}).items()},
            **{_INNER + name: x for name, x in inner.items()},
        }

    def after_absence(self, state: State, rounds: int) -> State:
        """Keep the memory, which the other side keeps too."""
        inner = self.compressor.after_absence(under(state, _INNER), rounds)
        return {**state, **{_INNER + name: x for name, x in inner.items()}}

    def encode_sections(
        self,
        update: Mapping[str, Tensor],
        state: State,
        rng: np.random.Generator,
        want_decoded: bool,
    ) -> Encoded:
        """Send update − prediction."""
        memories = {name: self._recall(name, x, state) for name, x in _predicted(update)}
        factors: dict[str, float] = {}
        difference = dict(update)
        for name, memory in memories.items():
            factors[name] = self._factor(name, update[name], memory)
            predicted = _times(memory, factors[name])
            x = update[name]
            difference[name] = _bounded(x.to(memory.dtype) - predicted, x.dtype)
        inner_state = under(state, _INNER)
        inner = self.compressor.encode_sections(difference, inner_state, rng, want_decoded=True)
        if inner.decoded is None:
            raise TypeError(f"{self.compressor.name}: gave no decoded update when asked for it")
        decoded = dict(inner.decoded)
        new_state = {_INNER + name: x for name, x in inner.state.items()}
        for name, memory in memories.items():
            decoded[name] = _add(memory, decoded[name], factors[name])
            new_state[_MEMORY + name] = _learn(memory, decoded[name], self.rate)
        sections = list(inner.sections)
        if memories:
            fitted = () if self.factor is not None else factors.values()
            steps = bytes(round(factor * _FACTOR_STEPS) for factor in fitted)
            sections.insert(0, Section("memory", _checksum(memories) + steps))
        return Encoded(sections, new_state, decoded if want_decoded else None)

    def read_sections(
        self, reader: SectionReader, like: Mapping[str, Tensor]
    ) -> Mapping[str, Part]:
        """Read the difference; the memory that it builds on must be the reader's, or zero."""
        memories = _memories(like, reader.memory)
        factors: list[float] = []
        if memories:
            data = bytes(reader.take("memory"))
            factors = self._read_factors(data[_CHECKSUM_BYTES:], len(memories))
            expected = data[:_CHECKSUM_BYTES]
            if _checksum(memories) != expected:
                memories = _memories(like, {})
                if _checksum(memories) != expected:
                    raise StaleMemoryError(
                        f"{self.name}: the payload builds on other numbers than this side "
                        "remembers; the sender starts anew"
                    )
        parts = dict(self.compressor.read_sections(reader, like))
        for (name, memory), factor in zip(memories.items(), factors, strict=True):
            parts[name] = _Predicted(parts[name], memory, factor, self.rate)
        return parts

    def _recall(self, name: str, x: Tensor, state: State) -> Tensor:
        memory = state.get(_MEMORY + name)
        if memory is None or memory.shape != x.shape:
            raise LayoutError(
                f"{self.name}: the state holds no memory of array {name!r} of shape "
                f"{tuple(x.shape)}; make the state with init() on the same arrays"
            )
        return memory.to(x.device)

    def _factor(self, name: str, x: Tensor, memory: Tensor) -> float:
        if not _is_finite(x):
            raise NotFiniteError(
                f"array {name!r}: holds NaN or infinity, which {self.name} cannot remember; "
                "leave this client out, or lower its learning rate"
            )
        return _fit(x, memory) if self.factor is None else self.factor

    def _read_factors(self, data: bytes, count: int) -> list[float]:
        if len(data) != (count if self.factor is None else 0):
            raise PayloadError(
                f"{self.name}: {len(data)} bytes of factors for {count} arrays; they are damaged"
            )
        return [k / _FACTOR_STEPS for k in data] if self.factor is None else [self.factor] * count


@dataclass(frozen=True, eq=False)
class _Predicted(Part):
    """A decoded difference, and the memory that it was taken to."""

    difference: Part
    before: Tensor
    factor: float
    rate: float

    def dense(self) -> Tensor:
        return self._dense

    def add_to(self, total: Tensor, weight: float) -> None:
        total.add_(self._dense, alpha=weight)

    def is_finite(self) -> bool:
        return self.difference.is_finite() and _is_finite(self._dense)

    def memory(self) -> Tensor:
        return _learn(self.before, self._dense, self.rate)

    @cached_property
    def _dense(self) -> Tensor:
        return _add(self.before, self.difference.dense(), self.factor)


def _fit(x: Tensor, memory: Tensor) -> float:
    """Give the factor by which the memory predicts ``x`` best, as the wire writes it."""
    memory, x = memory.reshape(-1), x.to(memory.dtype).reshape(-1)
    power = float(torch.dot(memory, memory))
    best = float(torch.dot(x, memory)) / power if power > 0 else 0.0
    if not math.isfinite(best):
        return 0.0  # squares beyond what a float holds
    return min(max(round(best * _FACTOR_STEPS), 0), 255) / _FACTOR_STEPS


# Each operation by itself: a fused one rounds otherwise on some machines, and both sides must
# come to the same bits.
def _times(memory: Tensor, factor: float) -> Tensor:
    return memory if factor == 1 else memory * factor


def _add(memory: Tensor, difference: Tensor, factor: float) -> Tensor:
    return _bounded(_times(memory, factor) + difference.to(memory.dtype), difference.dtype)


def _learn(memory: Tensor, decoded: Tensor, rate: float) -> Tensor:
    x = decoded.to(memory.dtype)
    return x.clone() if rate == 1 else (memory * (1 - rate)).add_(x * rate)


def _predicted(arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, x) for name, x in arrays.items() if x.is_floating_point() and x.numel())


def _memories(like: Mapping[str, Tensor], memory: Memory) -> dict[str, Tensor]:
    """Give the memory of each array that is predicted, zero where there is none."""
    memories: dict[str, Tensor] = {}
    for name, x in _predicted(like):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        kept = memory.get(name)
        if kept is None or kept.shape != x.shape or kept.dtype != dtype:
            kept = torch.zeros_like(x, dtype=dtype)
        memories[name] = kept.to(x.device)
    return memories


def _checksum(memories: Mapping[str, Tensor]) -> bytes:
    value = 0
    for x in memories.values():
        raw = np.ascontiguousarray(x.cpu().numpy()).reshape(-1).view(np.uint8)
        value = zlib.crc32(raw.data, value)
    return value.to_bytes(_CHECKSUM_BYTES, "little")


def _bounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert ``x``, in place where it may; finite numbers whose sum overflowed are clamped."""
    limit = torch.finfo(dtype).max
    return x.clamp_(-limit, limit).to(dtype)


def _is_finite(x: Tensor) -> bool:
    # A finite sum needs no second look; a sum may also overflow though every entry is finite.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
