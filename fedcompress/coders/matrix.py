"""Symbols of a matrix, each at the entropy of its class.

In the update of a layer whole rows and columns are near zero (dead units, idle inputs) and scales
differ from row to row and from column to column. Their mean magnitudes are sent, in half octaves;
a row's and a column's level together put every symbol into a class known before it is decoded.
Classes of like histograms share a table. Large layers may have a low-rank prediction besides (see
`fedcompress.coders.prediction`), levels of a trellis are told apart by quantizer, and arrays too
small to be worth tables are coded by histograms that are learnt on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedcompress.coders import levels as level_side
from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.coders.tables import Tables, fit, put_tables, take_tables
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_ZERO, _LEARNT, _TABLES = 0, 1, 2
_LEARNT_BELOW = 8192  # symbols
_ONE_LANE_BELOW = 32768
_MOST_HALF = 120
_NO_REST = np.zeros((0, 0), np.int8)

# Contexts of the side information.
_HEAD, _BEYOND, _ROWS, _COLUMNS, _TABLE, _SYMBOLS = 0, 1, 2, 5, 8, 16


@dataclass(frozen=True)
class _Axes:
    """Which levels are sent."""

    rows: bool
    columns: bool


def encode_matrix(
    values: np.ndarray, lags: Sequence[int] = (1,), transitions: np.ndarray | None = None
) -> bytes:
    """Code integers of shape (rows, columns), magnitudes below 2**31.

    Parameters
    ----------
    values : ndarray
        int16 or int32.
    lags : sequence of int
        Distances at which columns may be alike, such as the taps of a kernel.
    transitions : ndarray, optional
        int64, shape (states, 3): the trellis of which the integers are levels.
    """
    from fedcompress.kernels import classes as kernels

    rows, columns = values.shape
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    largest = kernels.sums(values, by_row, by_column)
    side = AdaptiveEncoder()
    if largest == 0:
        side.put(_ZERO, _HEAD)
        return _with_length(side.bytes())
    learnt = values.size < _LEARNT_BELOW
    half = _half(values, largest)
    groups = 1 if transitions is None else 2
    best: tuple[float, _Axes, np.ndarray, Tables | None] | None = None
    symbols = np.empty(values.shape, np.uint8)
    beyond = kernels.symbols_of(values, _NO_REST, half, symbols)
    row_levels = level_side.levels_of(by_row / columns)
    column_levels = level_side.levels_of(by_column / (by_column.sum() / columns))
    for axes in _candidates(rows, columns, learnt):
        contexts = _contexts(row_levels, column_levels, axes, values.shape)
        if transitions is not None:
            kernels.groups_of_state(values, transitions, contexts)
        counts = np.zeros((2, kernels.CLASSES * groups, 2 * half + 3), np.uint32)
        kernels.count(contexts, symbols, counts)
        tables, bits = fit(counts.sum(0), groups)
        bits += 2.0 * (rows * axes.rows + columns * axes.columns)
        if best is None or bits < best[0]:
            best = bits, axes, contexts, tables
    assert best is not None
    _, axes, contexts, tables = best
    side.put([_LEARNT if learnt else _TABLES, axes.rows + 2 * axes.columns, half], _HEAD)
    if axes.rows:
        level_side.put_levels(side, row_levels, (1,), _ROWS)
    if axes.columns:
        level_side.put_levels(side, column_levels, tuple(lags), _COLUMNS)
    if learnt:
        side.put(values, _SYMBOLS + contexts.reshape(-1).astype(np.int64))
        return _with_length(side.bytes())
    assert tables is not None
    put_tables(side, tables, half, groups, _TABLE)
    if beyond:
        _put_beyond(side, values, symbols, half, beyond)
    return _with_length(side.bytes()) + _words(contexts, symbols, tables)


def decode_matrix(
    data: memoryview, rows: int, columns: int, transitions: np.ndarray | None = None
) -> np.ndarray:
    """Read a matrix (int16, or int32 if need be) that `encode_matrix` coded."""
    from fedcompress.kernels import classes as kernels

    length, start = read_varint(data, 0)
    if length > len(data) - start:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    groups = 1 if transitions is None else 2
    side = AdaptiveDecoder(data[start : start + length], _SYMBOLS + groups * kernels.CLASSES)
    words = data[start + length :]
    kind = side.take_one(_HEAD)
    if kind == _ZERO and not len(words):
        side.check_end()
        return np.zeros((rows, columns), np.int16)
    if kind not in (_LEARNT, _TABLES):
        raise PayloadError(f"payload: unknown coding {kind} of symbols; the bytes are damaged")
    sent, half = side.take(2, _HEAD).tolist()
    if not 0 <= sent <= 3 or not 0 <= half <= _MOST_HALF:
        raise PayloadError("payload: an alphabet out of range; the bytes are damaged")
    axes = _Axes(bool(sent & 1), bool(sent & 2))
    none = np.zeros(0, np.int16)
    row_levels = level_side.take_levels(side, rows, _ROWS) if axes.rows else none
    column_levels = level_side.take_levels(side, columns, _COLUMNS) if axes.columns else none
    contexts = _contexts(row_levels, column_levels, axes, (rows, columns))
    if kind == _LEARNT:
        if len(words) or rows * columns >= _LEARNT_BELOW:
            raise PayloadError("payload: bytes left over behind symbols; they are damaged")
        values = _take_learnt(side, contexts, transitions)
        side.check_end()
        return values
    tables = take_tables(side, groups * kernels.CLASSES, half, groups, _TABLE)
    symbols = _read_words(words, contexts, tables, half, transitions)
    values = np.empty(symbols.shape, np.int16)
    kernels.values_of(symbols, _NO_REST, half, values)
    values = _take_beyond(side, values, symbols, half)
    side.check_end()
    return values


def _half(values: np.ndarray, largest: int) -> int:
    """Choose the magnitude up to which symbols have a place in the tables."""
    if largest <= 16:
        return int(largest)
    sample = np.abs(values.reshape(-1)[:: max(1, values.size >> 18)].astype(np.int32))
    counts = np.bincount(np.minimum(sample, _MOST_HALF + 1), minlength=_MOST_HALF + 2)
    beyond = counts[::-1].cumsum()[::-1]  # at least so large
    allowed = sample.size // 8192
    half = int(np.flatnonzero(beyond <= allowed)[0]) - 1 if beyond[-1] <= allowed else _MOST_HALF
    return min(max(half, 16), int(largest), _MOST_HALF)


def _candidates(rows: int, columns: int, learnt: bool) -> list[_Axes]:
    if rows == 1:
        return [_Axes(False, False)]
    if not learnt and rows * columns >= 1 << 17:
        return [_Axes(True, True)]
    return [_Axes(r, c) for r in (False, True) for c in (False, True)]


def _contexts(
    row_levels: np.ndarray, column_levels: np.ndarray, axes: _Axes, shape: tuple[int, int]
) -> np.ndarray:
    from fedcompress.kernels import classes as kernels

    contexts = np.empty(shape, np.uint8)
    kernels.classes(
        row_levels if axes.rows else np.zeros(shape[0], np.int16),
        column_levels if axes.columns else np.zeros(shape[1], np.int16),
        contexts,
    )
    return contexts


def _put_beyond(
    side: AdaptiveEncoder, values: np.ndarray, symbols: np.ndarray, half: int, count: int
) -> None:
    from fedcompress.kernels import classes as kernels

    found = np.empty(count, np.int64)
    kernels.find_beyond(symbols, half, found)
    far = values.reshape(-1)[found].astype(np.int64)
    side.put(far - np.sign(far) * half, _BEYOND)


def _take_beyond(
    side: AdaptiveDecoder, values: np.ndarray, symbols: np.ndarray, half: int
) -> np.ndarray:
    from fedcompress.kernels import classes as kernels

    found = np.empty(max(64, symbols.size // 64), np.int64)
    count = kernels.find_beyond(symbols, half, found)
    if count > found.size:
        found = np.empty(count, np.int64)
        kernels.find_beyond(symbols, half, found)
    if count == 0:
        return values
    far = side.take(count, _BEYOND)
    far += np.sign(far) * half
    largest = int(np.abs(far).max())
    if largest >= 1 << 31:
        raise PayloadError("payload: a symbol beyond 31 bits; the bytes are damaged")
    if largest >= 1 << 15:
        values = values.astype(np.int32)
    values.reshape(-1)[found[:count]] = far
    return values


def _take_learnt(
    side: AdaptiveDecoder, contexts: np.ndarray, transitions: np.ndarray | None
) -> np.ndarray:
    if transitions is None:
        values = side.take(contexts.size, _SYMBOLS + contexts.reshape(-1).astype(np.int64))
    else:
        values = side.take_trellis(contexts, _SYMBOLS, transitions)
    if int(np.abs(values).max(initial=0)) >= 1 << 31:
        raise PayloadError("payload: a symbol beyond 31 bits; the bytes are damaged")
    dtype = np.int16 if int(np.abs(values).max(initial=0)) < 1 << 15 else np.int32
    return values.astype(dtype).reshape(contexts.shape)


def _words(contexts: np.ndarray, symbols: np.ndarray, tables: Tables) -> bytes:
    from fedcompress.kernels import rans
    from fedcompress.kernels.tables import frequencies_of

    frequencies = np.zeros(tables.levels.shape, np.uint32)
    starts = np.zeros(tables.levels.shape, np.uint32)
    if not frequencies_of(tables.levels, frequencies, starts):
        raise AssertionError("a fitted table is empty")
    states = np.full(_lanes(symbols.size), 1 << 16, np.uint32)
    words = np.empty(symbols.size + 1, np.uint16)
    start = rans.encode(
        contexts,
        symbols,
        frequencies[tables.of_context],
        starts[tables.of_context],
        states,
        words,
    )
    return states.astype("<u4").tobytes() + words[start:].astype("<u2", copy=False).tobytes()


def _read_words(
    data: memoryview,
    contexts: np.ndarray,
    tables: Tables,
    half: int,
    transitions: np.ndarray | None,
) -> np.ndarray:
    from fedcompress.kernels import rans
    from fedcompress.kernels.tables import frequencies_of, slots_of

    lanes = _lanes(contexts.size)
    if len(data) < 4 * lanes or len(data) % 2:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    states = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint32)
    words = np.zeros((len(data) - 4 * lanes) // 2 + 4, np.uint16)
    words[:-4] = np.frombuffer(data[4 * lanes :], "<u2")
    frequencies = np.zeros(tables.levels.shape, np.uint32)
    if not frequencies_of(tables.levels, frequencies, np.zeros_like(frequencies)):
        raise PayloadError("payload: an empty table of symbols; the bytes are damaged")
    slots = np.empty((len(frequencies), rans.TOTAL), np.uint32)
    slots_of(frequencies, slots)
    symbols = np.empty(contexts.shape, np.uint8)
    of_context = tables.of_context.astype(np.uint8)
    if transitions is None:
        end = rans.decode(of_context[contexts], slots, words, 0, states, symbols)
    else:
        parity = np.empty(2 * half + 3, np.uint8)
        parity[: 2 * half + 1] = np.arange(-half, half + 1) & 1
        parity[-2:] = 0, 1
        end = rans.decode_dependent(
            contexts, of_context.reshape(-1, 2), slots, transitions, parity, words, 0, states, symbols
        )
    if end != words.size - 4 or not np.all(states == 1 << 16):
        raise PayloadError("payload: coded symbols do not end where they should; damaged bytes")
    return symbols


def _lanes(size: int) -> int:
    return 1 if size < _ONE_LANE_BELOW else 4


def _with_length(side: bytes) -> bytes:
    return write_varint(len(side)) + side
