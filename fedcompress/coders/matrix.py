"""Symbols of a matrix, each at the entropy of its class.

In the update of a layer whole rows and columns are near zero (dead units, idle inputs) and scales
differ from row to row and from column to column. Their mean magnitudes are sent, in half octaves;
a row's and a column's level together put every symbol into a class known before it is decoded.
Classes of like histograms share a table. Levels of a trellis are told apart by quantizer; what
neighbours or a few common directions predict is taken off where that pays; and arrays too small
to be worth tables are coded by histograms that are learnt on the way.
"""

import math

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder
from fedcompress.coders.levels import Levels
from fedcompress.coders.neighbours import Neighbours, fit_neighbours, may_have_neighbours
from fedcompress.coders.symbol_model import (
    BEYOND,
    HEAD,
    LEVELS,
    NO_REST,
    NO_TRELLIS,
    SYMBOLS,
    TABLE,
    Model,
    Outline,
    model_of,
    outline_of,
    put_learnt,
    put_model,
    take_half,
    take_model,
)
from fedcompress.coders.tables import fault_of_matrix, slots_of
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_ZERO, _PLAIN, _NEIGHBOURS = 0, 1, 2
_LEARNT_BELOW = 8192  # symbols
_SHORT = 32768  # symbols below which there is one lane: each one more takes four bytes
_SHORT_TRELLIS = 12_000  # they wait for each other's states, so lanes pay earlier
_SURE_MEAN = 0.02  # of the energy
_SURE_GAIN = 0.1  # share of energy that neighbours take away where we need not compare

_ONE = np.ones(1, np.int64)
_ALL_ZERO = b"\0"  # side information of no bytes, which reads as zeros


def encode_matrix(
    values: np.ndarray, shape: tuple[int, ...], transitions: np.ndarray | None = None
) -> bytes:
    """Code integers of shape (rows, columns), magnitudes below 2**31.

    Parameters
    ----------
    values : ndarray
        int16 or int32.
    shape : tuple of int
        Shape of the array that they are of, which tells which columns may be alike.
    transitions : ndarray, optional
        int64, shape (states, 3): the trellis of which the integers are levels.
    """
    lags = _level_lags(shape)
    machine = NO_TRELLIS if transitions is None else transitions
    if values.size < _LEARNT_BELOW:
        outline = outline_of(values, NO_REST, machine, learnt=True)
        # No byte at all stands for zeros.
        return b"" if outline is None else put_learnt(outline, values, _ONE, lags) or b"\0"
    neighbours, across = None, values
    if transitions is None and values.dtype == np.int16:
        across, neighbours = _neighbours(values, shape)
        if neighbours is not None and neighbours.gain > _SURE_GAIN and _centred(values):
            predicted = _by_neighbours(across, neighbours, lags, np.inf)
            if predicted is not None:
                return predicted
    outline = outline_of(values, NO_REST, machine)
    if outline is None:
        return _ALL_ZERO
    model = model_of(outline)
    if neighbours is not None:
        predicted = _by_neighbours(across, neighbours, lags, model.bits)
        if predicted is not None:
            return predicted
    side = put_model([(HEAD, _PLAIN)], outline, model, values, _ONE, lags)
    return write_varint(len(side)) + side + _words(outline, model)


def decode_matrix(
    data: memoryview,
    rows: int,
    columns: int,
    transitions: np.ndarray | None = None,
    as_entries: bool = False,
) -> np.ndarray:
    """Read a matrix that `encode_matrix` coded: int16, or int32 if need be.

    With ``as_entries``, levels of a trellis may come as float32, what they stand for in its steps.
    """
    if rows * columns < _LEARNT_BELOW:
        return _read_learnt(data, rows, columns, transitions, as_entries)
    length, start = read_varint(data, 0)
    if length > len(data) - start:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    if transitions is not None:
        return _read_dependent(data[start:], length, (rows, columns), transitions, as_entries)
    side = AdaptiveDecoder(data[start : start + length], SYMBOLS)
    words = data[start + length :]
    kind = side.take_one(HEAD)
    if kind == _ZERO and not len(words):
        values = np.zeros((rows, columns), np.int16)
    elif kind == _PLAIN:
        values = _take_plain(side, words, (rows, columns))
    elif kind == _NEIGHBOURS:
        values = _take_neighbours(side, words, (columns, rows))
    else:
        raise PayloadError(f"payload: unknown coding {kind} of symbols; the bytes are damaged")
    side.check_end()
    return values


def _neighbours(values: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, Neighbours | None]:
    """Give the columns as rows, and a prediction of them if there may be one."""
    if not may_have_neighbours(values.shape[1], shape):
        return values, None
    from fedcompress.kernels.classes import transposed

    across = transposed(values)
    return across, fit_neighbours(across, shape)


def _centred(values: np.ndarray) -> bool:
    """Whether it is not their common mean that neighbours predict of each other."""
    sample = values.reshape(-1)[:: max(1, values.size >> 14)].astype(np.float64)
    return float(sample.mean()) ** 2 <= _SURE_MEAN * float((sample * sample).mean())


def _by_neighbours(
    across: np.ndarray, neighbours: Neighbours, lags: np.ndarray, bits: float
) -> bytes | None:
    """Code with a prediction from neighbouring columns, if that takes fewer bits."""
    from fedcompress.kernels import along

    left, rest = np.empty_like(across), np.empty(across.shape, np.int8)
    along.residual(across, neighbours.lags, neighbours.weights, left, rest)
    outline = outline_of(left, rest, NO_TRELLIS)
    if outline is None:
        return None
    model = model_of(outline, predicted=True)
    if model.bits + 4 * neighbours.weights.size > bits:
        return None
    head = [(HEAD, _NEIGHBOURS), *neighbours.said()]
    side = put_model(head, outline, model, left, lags, _ONE)
    return write_varint(len(side)) + side + _words(outline, model, along=True)


def _take_neighbours(side: AdaptiveDecoder, data: memoryview, shape: tuple[int, int]) -> np.ndarray:
    from fedcompress.kernels import along
    from fedcompress.kernels.classes import rest_groups, transposed

    neighbours = Neighbours.take(side, shape[0])
    levels = Levels.take(side, shape, HEAD, LEVELS)
    half = take_half(side)
    tables, far = take_model(side, half, 4, shape[0] * shape[1])
    states, words = _split(data, 4)
    by_group = tables.of_context.reshape(-1, 4)
    values = np.empty(shape, np.int16)
    end = along.decode(
        levels.classes(),
        neighbours.lags,
        neighbours.weights,
        np.take_along_axis(by_group, rest_groups(), 1),
        slots_of(tables),
        half,
        far,
        words,
        states,
        values,
    )
    _check_end(end, words, states)
    return transposed(values)


def _take_plain(side: AdaptiveDecoder, data: memoryview, shape: tuple[int, int]) -> np.ndarray:
    from fedcompress.kernels import classes as kernels
    from fedcompress.kernels import rans

    levels = Levels.take(side, shape, HEAD, LEVELS)
    half = take_half(side)
    tables, far = take_model(side, half, 1, shape[0] * shape[1])
    states, words = _split(data, _lanes(shape[0] * shape[1], False))
    symbols = np.empty(shape, np.uint8)
    contexts = levels.classes()
    kernels.look_up(tables.of_context, contexts)
    end = rans.decode(contexts, slots_of(tables), words, 0, states, symbols)
    _check_end(end, words, states)
    values = np.empty(shape, np.int16)
    if kernels.values_of(symbols, half, values) != far.size:
        raise PayloadError("payload: symbols beyond the tables do not match; damaged bytes")
    if far.size:
        found = np.empty(far.size, np.int64)
        kernels.find_beyond(symbols, half, found)
        if int(np.abs(far).max()) >= 1 << 15:
            values = values.astype(np.int32)
        values.reshape(-1)[found] = far
    return values


def _read_dependent(
    data: memoryview,
    start: int,
    shape: tuple[int, int],
    transitions: np.ndarray,
    as_entries: bool,
) -> np.ndarray:
    """Read levels of a trellis, whose side information ends at ``start``."""
    from fedcompress.kernels import dependent

    entries = np.empty(shape, np.float32)
    fault, levels = dependent.read(
        np.frombuffer(data, np.uint8),
        start,
        _lanes(entries.size, True),
        transitions,
        HEAD,
        BEYOND,
        LEVELS,
        TABLE,
        SYMBOLS,
        not as_entries,
        entries,
    )
    if fault:
        raise PayloadError(f"payload: {fault_of_matrix(fault)}")
    return entries if levels.size == 0 else _narrowed(levels.reshape(shape))


def _read_learnt(
    data: memoryview, rows: int, columns: int, transitions: np.ndarray | None, as_entries: bool
) -> np.ndarray:
    if len(data) == 0:
        return np.zeros((rows, columns), np.float32 if as_entries else np.int16)
    from fedcompress.kernels.classes import first_odds
    from fedcompress.kernels.learnt import read_matrix

    as_entries = as_entries and transitions is not None
    machine = NO_TRELLIS if transitions is None else transitions
    values = np.empty(rows * columns, np.int64)
    entries = np.empty(values.size if as_entries else 0, np.float32)
    largest = read_matrix(
        np.frombuffer(data, np.uint8),
        machine,
        first_odds(),
        HEAD,
        LEVELS,
        SYMBOLS,
        rows,
        columns,
        values,
        entries,
    )
    if not 0 <= largest < 1 << 31:
        raise PayloadError("payload: small symbols out of range or left over; damaged bytes")
    if as_entries:
        return entries.reshape(rows, columns)
    return values.astype(np.int16 if largest < 1 << 15 else np.int32).reshape(rows, columns)


def _narrowed(levels: np.ndarray) -> np.ndarray:
    short = int(levels.max()) < 1 << 15 and int(levels.min()) > -(1 << 15)
    return levels.astype(np.int16) if short else levels


def _words(outline: Outline, model: Model, along: bool = False) -> bytes:
    from fedcompress.kernels import along as along_kernels
    from fedcompress.kernels import rans
    from fedcompress.kernels.tables import codes_for

    codes = np.empty(256 * len(model.levels), np.uint32)
    reciprocals = np.empty(256 * len(model.levels), np.uint64)
    if not codes_for(model.levels, codes, reciprocals):
        raise AssertionError("a fitted table is empty")
    states = np.full(
        4 if along else _lanes(outline.symbols.size, outline.groups == 2), 1 << 16, np.uint32
    )
    words = np.empty(outline.symbols.size + 1, np.uint16)
    encode = along_kernels.encode if along else rans.encode
    start = encode(
        outline.contexts, model.table_of, outline.symbols, codes, reciprocals, states, words
    )
    return states.astype("<u4").tobytes() + words[start:].astype("<u2", copy=False).tobytes()


def _split(data: memoryview, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Give states, and words with room behind them."""
    if len(data) < 4 * lanes or len(data) % 2:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    states = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint32)
    words = np.zeros((len(data) - 4 * lanes) // 2 + 4, np.uint16)
    words[:-4] = np.frombuffer(data[4 * lanes :], "<u2")
    return states, words


def _check_end(end: int, words: np.ndarray, states: np.ndarray) -> None:
    if end != words.size - 4 or not np.all(states == 1 << 16):
        raise PayloadError("payload: symbols do not end where they should; the bytes are damaged")


def _level_lags(shape: tuple[int, ...]) -> np.ndarray:
    taps = math.prod(shape[2:])
    return np.array([1, taps], np.int64) if taps > 1 else _ONE


def _lanes(size: int, trellis: bool) -> int:
    return 1 if size < (_SHORT_TRELLIS if trellis else _SHORT) else 4
