"""`top_k | quantize | entropy` of a whole update in one go, to the bit what the chain does.

The chain walks from array to array and from stage to stage. A small model has many small arrays,
and walking costs several times what the numbers do; here all arrays lie one behind another, one
call selects and rounds, and what is left unsent stays where it lay.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from fedcompress.block import Block, BlockLayout, block_layout
from fedcompress.coder import Coder
from fedcompress.coders.combinations import combination_size
from fedcompress.coders.entropy import Entropy
from fedcompress.coders.gaps import random_bits
from fedcompress.coders.index_sets import decode_index_set, encode_index_set
from fedcompress.coders.kernel_sets import taps_of
from fedcompress.coders.row_sets import SHAPES, shortened_weights
from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols
from fedcompress.compressor import FlatParts, Part
from fedcompress.errors import PayloadError
from fedcompress.stage import Stage
from fedcompress.stages.quantize import Quantize
from fedcompress.stages.selection import add_at, count_of
from fedcompress.stages.top_k import TopK
from fedcompress.wire import Framed, Section, SectionReader

_WORDS = 1 << 64
_KINDS = ("index", "scale", "symbols")
_ROOM, _ROOM_EACH = 1 << 12, 24  # bytes, and for each entry that is kept, in which codes fit
_MOST_ENTRIES = 1 << 31
_MOST_LEVEL = 1 << 15  # of 16 bits
_LARGEST = float(np.finfo(np.float32).max)
_NONE = np.zeros(0, np.float32)
_NO_TERMS = _NONE, _NONE, _NONE
_MOST_IN_ROW = 511  # entries that a row may keep for its count to have a weight


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the arrays of one layout lie, one behind another, and how many entries of each go."""

    bits: int
    is_stochastic: bool
    layout: BlockLayout
    starts: tuple[int, ...]
    ends: np.ndarray
    kept_starts: tuple[int, ...]
    kept_ends: np.ndarray

    @cached_property
    def known(self) -> "_Known":
        """What is known of the arrays' codes beforehand."""
        return _known(self)

    @property
    def size(self) -> int:
        """Entries of all arrays."""
        return int(self.ends[-1])

    def places(self) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Give name, shape, start and end of each array."""
        layout = self.layout
        return zip(layout.names, layout.shapes, self.starts, layout.stops, strict=True)

    def gather(self, arrays: Mapping[str, Tensor]) -> np.ndarray:
        """Copy arrays one behind another."""
        if isinstance(arrays, Block):
            return arrays.flat.copy()
        flat = np.empty(self.ends[-1], np.float32)
        for name, shape, start, end in self.places():
            flat[start:end].reshape(shape)[...] = arrays[name].numpy()
        return flat

    def add(self, arrays: Mapping[str, Tensor], others: Callable[[str], Tensor]) -> np.ndarray:
        """Put sums of arrays one behind another."""
        flat = np.empty(self.ends[-1], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # `keep` finds what is not finite
            for name, shape, start, end in self.places():
                np.add(arrays[name].numpy(), others(name).numpy(), flat[start:end].reshape(shape))
        return flat

    def keep(
        self,
        flat: np.ndarray,
        rng: np.random.Generator,
        terms: tuple[np.ndarray, np.ndarray, np.ndarray] = _NO_TERMS,
    ) -> "KeptLevels | str":
        """Select and round, and leave in ``flat`` what is not sent.

        With ``terms`` (a, b, c), ``flat`` is first filled with a − b + c. Gives the name of an
        array that is not finite, if there is one; then ``flat`` is spoilt.
        """
        from fedcompress.kernels.kept_all import keep_all

        arrays, count = len(self.layout.names), int(self.kept_ends[-1])
        if self.is_stochastic:
            seeds = rng.integers(0, _WORDS, size=arrays, dtype=np.uint64)
        else:
            seeds = np.zeros(arrays, np.uint64)
        kept, places = np.empty(count, np.int64), np.empty(count, np.int64)
        symbols = np.empty(count, np.int16)
        values, steps = np.empty(count, np.float32), np.empty(arrays, np.float32)
        wrong = keep_all(
            flat,
            *terms,
            self.ends,
            self.kept_ends,
            self.bits,
            self.is_stochastic,
            seeds,
            kept,
            places,
            symbols,
            values,
            steps,
        )
        if wrong >= 0:
            return self.layout.names[wrong]
        return KeptLevels(self, kept, places, symbols, values, steps)

    def read(self, reader: SectionReader) -> FlatParts | None:
        """Read what `KeptLevels.sections` coded; None, and nothing read, where that is not it.

        Whoever reads by the stages then finds what is wrong, if anything is.
        """
        place = reader.place()
        steps, kept, symbols = np.empty(len(self.starts), np.float32), [], []
        try:
            for i, (_, shape, start, end) in enumerate(self.places()):
                count = int(self.kept_ends[i]) - self.kept_starts[i]
                kept.append(decode_index_set(reader.take(_KINDS[0]), end - start, shape))
                scales = np.frombuffer(reader.take(_KINDS[1]), "<f4")
                symbols.append(decode_symbols(reader.take(_KINDS[2]), (count,), 0))
                if kept[-1].size != count or scales.size != 1:
                    raise PayloadError(f"payload: array {i} is not of {count} entries in one step")
                steps[i] = scales[0]
        except (PayloadError, ValueError):
            reader.go_back(place)
            return None
        levels = np.concatenate(symbols)
        most = float(np.abs(steps).max())
        if not most <= _LARGEST or max(int(levels.max()), -int(levels.min())) > _MOST_LEVEL:
            reader.go_back(place)
            return None
        counts = np.diff(self.kept_ends, prepend=0)
        values = levels.astype(np.float32)
        with np.errstate(over="ignore"):
            values *= np.repeat(steps, counts)
        if most > _LARGEST / _MOST_LEVEL:
            np.clip(values, -_LARGEST, _LARGEST, out=values)
        positions = np.concatenate(kept)
        places = positions + np.repeat(self.starts, counts)
        return KeptLevels(self, positions, places, levels, values, steps).parts()


@dataclass(frozen=True, eq=False)
class KeptLevels:
    """What is sent of an update; ``kept`` counts within each array, ``places`` over all."""

    plan: Plan
    kept: np.ndarray
    places: np.ndarray
    symbols: np.ndarray
    values: np.ndarray
    steps: np.ndarray

    def sections(self) -> list[Section | Framed]:
        """Code positions, step and symbols of every array."""
        from fedcompress.kernels.classes import first_odds
        from fedcompress.kernels.kept_code import code_kept

        plan, known = self.plan, self.plan.known
        steps = self.steps.view(np.uint8)
        out, booked = np.empty(_ROOM + _ROOM_EACH * self.kept.size, np.uint8), np.zeros(3, np.int64)
        sections: list[Section | Framed] = []
        first, arrays = 0, len(plan.starts)
        while first < arrays:
            booked[:] = 0
            stopped, size = code_kept(
                first,
                known.about,
                known.costs,
                known.row_weights,
                known.shapes,
                plan.kept_ends,
                self.kept,
                self.symbols,
                steps,
                first_odds(),
                out,
                booked,
            )
            if size:
                by_kind = dict(zip(_KINDS, booked.tolist(), strict=True))
                sections.append(Framed(out[:size].tobytes(), by_kind))
            if stopped < arrays:
                sections += self._sections_of(stopped)
            first = stopped + 1
        return sections

    def _sections_of(self, i: int) -> tuple[Section, Section, Section]:
        """Code one array in any of the ways there are."""
        plan = self.plan
        shape, first, last = plan.layout.shapes[i], plan.kept_starts[i], plan.kept_ends[i]
        positions = encode_index_set(self.kept[first:last], math.prod(shape), shape)
        symbols = encode_symbols(self.symbols[first:last], 0)
        contents = positions, self.steps[i : i + 1].tobytes(), symbols
        index, scale, levels = map(Section, _KINDS, contents)
        return index, scale, levels

    def parts(self) -> FlatParts:
        """Give what decoding gives."""
        places, values = torch.from_numpy(self.places), torch.from_numpy(self.values)
        return FlatParts(self.plan.layout, self._parts, places, values)

    def _parts(self) -> dict[str, Part]:
        plan = self.plan
        return {
            name: _Kept(self.kept[first:last], self.values[first:last], shape)
            for name, shape, first, last in zip(
                plan.layout.names,
                plan.layout.shapes,
                plan.kept_starts,
                plan.kept_ends.tolist(),
                strict=True,
            )
        }


@dataclass(frozen=True, eq=False)
class _Known:
    """What `kernels.kept_code` wants to know of the arrays of a plan."""

    about: np.ndarray
    costs: np.ndarray
    row_weights: np.ndarray
    shapes: np.ndarray


def _known(plan: Plan) -> _Known:
    about, costs = [], []
    tables: list[np.ndarray] = []
    length = 0
    for i, (_, shape, start, end) in enumerate(plan.places()):
        n, count = end - start, int(plan.kept_ends[i]) - plan.kept_starts[i]
        rows = shape[0] if len(shape) > 1 else 1
        is_coded = taps_of(shape) == 0 and n < _MOST_ENTRIES
        few, alphabet = combination_size(n, count), 0
        if is_coded and rows > 1 and few is None and count < n:
            wanted = min(count, n // rows, _MOST_IN_ROW) + 1
            tables.append(shortened_weights(count, rows, wanted))
            alphabet = tables[-1].size // len(SHAPES)
        about.append((n, rows if is_coded else 0, few or 0, length, alphabet))
        costs.append((random_bits(count, n) if count < n else 0.0, math.lgamma(count + 1)))
        length += alphabet * len(SHAPES)
    return _Known(
        np.array(about, np.int64),
        np.array(costs, np.float64),
        np.concatenate([*tables, np.zeros(1, np.int64)]),
        np.array(SHAPES, np.int64),
    )


@dataclass(frozen=True, eq=False)
class _Kept(Part):
    """The kept entries of one array; all are finite, being multiples of a step that are clamped."""

    positions: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        out = torch.zeros(self.shape)
        out.numpy().reshape(-1)[self.positions] = self.values
        return out

    def add_to(self, total: Tensor, weight: float) -> None:
        add_at(total, torch.from_numpy(self.positions), torch.from_numpy(self.values), weight)

    def is_finite(self) -> bool:
        return True


def plan_of(stages: tuple[Stage, ...], coder: Coder, update: Mapping[str, Tensor]) -> Plan | None:
    """Plan the encoding of an update by these stages; None where only the chain can do it."""
    if len(stages) != 2 or type(coder) is not Entropy:
        return None
    select, quantize = stages
    if not isinstance(select, TopK) or not isinstance(quantize, Quantize):
        return None
    if select.block is not None or quantize.bits is None:
        return None
    layout = _layout_of(update)
    if layout is None:
        return None
    return _plan(select.fraction, quantize.bits, quantize.rounding == "stochastic", layout)


def _layout_of(update: Mapping[str, Tensor]) -> BlockLayout | None:
    """Lay out arrays that can lie in a block; None for others."""
    if isinstance(update, Block):
        layout = update.layout
        return layout if layout.dtype == np.float32 and all(map(math.prod, layout.shapes)) else None
    for x in update.values():
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0:
            return None
    shapes = tuple(tuple(x.shape) for x in update.values())
    return block_layout(np.dtype(np.float32), tuple(update), shapes) if shapes else None


@lru_cache(maxsize=64)
def _plan(fraction: float, bits: int, is_stochastic: bool, layout: BlockLayout) -> Plan:
    ends = np.array(layout.stops, np.int64)
    sizes = np.diff(ends, prepend=0)
    counts = np.array([count_of(fraction, int(size)) for size in sizes], np.int64)
    kept_ends = counts.cumsum()
    return Plan(
        bits,
        is_stochastic,
        layout,
        tuple((ends - sizes).tolist()),
        ends,
        tuple((kept_ends - counts).tolist()),
        kept_ends,
    )
