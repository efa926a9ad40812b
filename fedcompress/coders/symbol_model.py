"""What every symbol of a matrix is expected to be: levels, contexts, tables, and their cost."""

from dataclasses import dataclass, replace

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.coders.levels import Levels, levels_of
from fedcompress.coders.tables import Tables, fit, put_tables, take_tables
from fedcompress.errors import PayloadError

# Contexts of the side information.
HEAD, BEYOND, LEVELS, _TABLE, EXTRA, SYMBOLS = 0, 1, 2, 8, 15, 20
NO_REST = np.zeros((0, 0), np.int8)
_MOST_HALF = 120
_ALWAYS_BOTH = 1 << 16  # symbols from which on rows and columns are both worth their levels
_BITS_A_LEVEL = 2.0
_BITS_A_SYMBOL = 3.0  # that a class has to learn, or a table to tell


@dataclass(frozen=True, eq=False)
class Grouping:
    """What parts a class into groups: nothing, the rest of a prediction, or a trellis."""

    rest: np.ndarray | None = None
    transitions: np.ndarray | None = None

    @property
    def groups(self) -> int:
        """Number of groups of a class."""
        if self.rest is not None:
            return 4
        return 1 if self.transitions is None else 2


@dataclass(frozen=True, eq=False)
class Outline:
    """The symbols of a matrix (uint8) and the context of each, which levels and groups give."""

    levels: Levels
    contexts: np.ndarray
    symbols: np.ndarray
    half: int
    groups: int
    beyond: int
    predicted: bool


@dataclass(frozen=True, eq=False)
class Model:
    """A matrix of symbols with a table for each; ``bits`` is what coding it will take, about."""

    bits: float
    outline: Outline
    tables: Tables

    def put(
        self,
        side: AdaptiveEncoder,
        values: np.ndarray,
        row_lags: np.ndarray,
        lags: np.ndarray,
    ) -> None:
        """Add levels, tables and what is beyond them to side information."""
        self.outline.levels.put(side, row_lags, lags, HEAD, LEVELS)
        side.put_few(HEAD, self.outline.half)
        put_tables(side, self.tables, self.outline.half, self.outline.groups, _TABLE)
        side.put_few(HEAD, self.outline.beyond)
        if self.outline.beyond:
            from fedcompress.kernels import classes as kernels

            found = np.empty(self.outline.beyond, np.int64)
            kernels.find_beyond(self.outline.symbols, self.outline.half, found)
            far = values.reshape(-1)[found].astype(np.int64)
            side.put(far - np.sign(far) * self.outline.half, BEYOND)


def outline_of(values: np.ndarray, grouping: Grouping) -> Outline | None:
    """Choose levels for integers (rows, columns); None if all of them are zero."""
    from fedcompress.kernels import classes as kernels

    rows, columns = values.shape
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    largest = kernels.sums(values, by_row, by_column)
    if largest == 0:
        return None
    half = _half(values, int(largest))
    symbols = np.empty(values.shape, np.uint8)
    beyond = kernels.symbols_of(
        values, NO_REST if grouping.rest is None else grouping.rest, half, symbols
    )
    total = int(by_row.sum())
    row_levels = levels_of(by_row, columns)
    column_levels = levels_of(by_column, total / columns)
    one_level = levels_of(np.array([total]), values.size)[0]
    sent = 0 if rows == 1 else 3
    if sent and values.size < _ALWAYS_BOTH:
        bits = kernels.axes_bits(
            symbols, row_levels, column_levels, int(one_level), 2 * half + 3, _BITS_A_SYMBOL
        )
        bits += _BITS_A_LEVEL * np.array([0, rows, columns, rows + columns])
        sent = int(np.argmin(bits))
    levels = Levels(
        row_levels if sent & 1 else np.full(rows, one_level, np.int16),
        column_levels if sent & 2 else np.zeros(columns, np.int16),
        sent,
    )
    contexts = levels.classes()
    if grouping.transitions is not None:
        kernels.groups_of_state(values, grouping.transitions, contexts)
    elif grouping.rest is not None:
        kernels.groups_of_rest(grouping.rest, kernels.rest_groups(), contexts)
    predicted = grouping.rest is not None
    return Outline(levels, contexts, symbols, half, grouping.groups, int(beyond), predicted)


def model_of(outline: Outline) -> Model:
    """Fit tables to the symbols of an outline."""
    from fedcompress.kernels import classes as kernels

    counts = np.zeros((2, kernels.CLASSES * outline.groups, 2 * outline.half + 3), np.uint32)
    kernels.count(outline.contexts, outline.symbols, counts)
    found = counts[0] + counts[1]
    tables, bits = fit(found, outline.groups)
    sent, (rows, columns) = outline.levels.sent, outline.symbols.shape
    bits += _BITS_A_LEVEL * (rows * (sent & 1) + columns * (sent >> 1)) + 12.0 * outline.beyond
    model = Model(bits, outline, tables)
    if sent and not outline.predicted:
        return _without_levels(outline, found, bits) or model
    return model


def _without_levels(outline: Outline, found: np.ndarray, limit: float) -> Model | None:
    """Put all symbols into one class, if that takes fewer bits than ``limit``."""
    from fedcompress.kernels import classes as kernels

    groups, (rows, columns) = outline.groups, outline.symbols.shape
    first = (1 - kernels.FIRST) * groups  # contexts of level 0
    counts = np.zeros_like(found)
    counts[first : first + groups] = found.reshape(-1, groups, found.shape[1]).sum(0)
    tables, bits = fit(counts, groups)
    bits += 12.0 * outline.beyond
    if bits >= limit:
        return None
    levels = Levels(np.zeros(rows, np.int16), np.zeros(columns, np.int16), 0)
    contexts = (outline.contexts % np.uint8(groups) + np.uint8(first)).astype(np.uint8)
    return Model(bits, replace(outline, levels=levels, contexts=contexts), tables)


def take_half(side: AdaptiveDecoder) -> int:
    """Read the largest magnitude in the tables."""
    half = side.take_one(HEAD)
    if not 0 <= half <= _MOST_HALF:
        raise PayloadError("payload: an alphabet out of range; the bytes are damaged")
    return half


def take_model(
    side: AdaptiveDecoder, half: int, groups: int, size: int
) -> tuple[Tables, np.ndarray]:
    """Read tables, and the values beyond them (int64) in the order of their places."""
    from fedcompress.kernels.classes import CLASSES

    tables = take_tables(side, groups * CLASSES, half, groups, _TABLE)
    count = side.take_one(HEAD)
    if not 0 <= count <= size:
        raise PayloadError("payload: more symbols than there are places; the bytes are damaged")
    far = side.take(count, BEYOND)
    far += np.sign(far) * half
    if int(np.abs(far).max(initial=0)) >= 1 << 31:
        raise PayloadError("payload: a symbol beyond 31 bits; the bytes are damaged")
    return tables, far


def _half(values: np.ndarray, largest: int) -> int:
    """Choose the magnitude up to which symbols have a place in the tables."""
    if largest <= 16:
        return largest
    sample = values.reshape(-1)[:: max(1, values.size >> 16)]
    counts = np.bincount(
        np.minimum(np.abs(sample.astype(np.int32)), _MOST_HALF + 1), minlength=_MOST_HALF + 2
    )
    beyond = counts[::-1].cumsum()[::-1]  # of at least this magnitude
    allowed = sample.size // 8192
    half = int(np.argmax(beyond <= allowed)) - 1 if beyond[-1] <= allowed else _MOST_HALF
    return min(max(half, 16), largest, _MOST_HALF)
