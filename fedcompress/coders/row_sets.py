"""Kept entries of a matrix whose rows and columns differ in how often they are kept.

In the update of a layer units and inputs that learn are kept often, idle ones never. How many
entries each row keeps is coded by a negative binomial, their columns by a Pólya urn (see
`fedcompress.kernels.positions`); both amount to gamma-distributed rates and send no table.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedcompress.coders.gaps import frozen, random_bits
from fedcompress.coders.symbols import (
    ans_decode,
    ans_encode,
    cost_bits,
    decode_integers,
    encode_integers,
)
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

# Shape of the gamma law of rates: copies in the urn at first, and how many each turn adds.
SHAPES = ((1, 16), (1, 8), (1, 4), (1, 2), (3, 4), (1, 1), (3, 2), (2, 1), (4, 1), (16, 1))
_ALPHA = np.array([first / step for first, step in SHAPES])
_HISTOGRAM, _NEGATIVE_BINOMIAL = 0, 1
_MOST_IN_ROW = 4095
_MOST_IN_COLUMN = 1 << 14
_WORTH = 0.97  # share of the bits of gaps below which the time is well spent
_OVERHEAD_BITS = 200
_TABLE_BITS = 6  # what a histogram spends on each value it may hold
_SHORTENED = 35  # bits that are cut off any weights: the first is 2**64, and 30 bits are kept


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions by row and column, and about how many bits they take."""

    bits: float
    counts: np.ndarray  # of each row
    turns: np.ndarray  # of each column
    columns: np.ndarray  # of each position
    spread: int  # index of the shape of the rates of rows
    urn: int  # and of columns


def count_rows(indices: np.ndarray, n: int, shape: tuple[int, ...]) -> Rows | None:
    """Count ascending positions out of ``n`` by row and column; None where gaps are as short."""
    if len(shape) < 2 or min(shape[0], n // shape[0]) < 2:
        return None
    from fedcompress.kernels import rows as kernels

    rows, columns = shape[0], n // shape[0]
    counts, turns = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    column = np.empty(indices.size, np.int64)
    most = kernels.count(indices, counts, turns, column)
    if most[0] > _MOST_IN_ROW or most[1] > _MOST_IN_COLUMN:
        return None
    rows_nats = kernels.sequence_nats(counts, most[0], _ALPHA)
    columns_nats = kernels.sequence_nats(turns, most[1], _ALPHA)
    spread, urn = int(rows_nats.argmin()), int(columns_nats.argmin())
    # One set is many sequences of rows and columns: as many as its entries have orders.
    nats = rows_nats[spread] + columns_nats[urn] - math.lgamma(indices.size + 1)
    bits = float(nats) / math.log(2) + _OVERHEAD_BITS
    if bits > _WORTH * random_bits(indices.size, n):
        return None
    first, step = SHAPES[urn]
    if not _fits(columns, first, indices.size, step):
        return None
    return Rows(bits, counts, turns, column, spread, urn)


def encode_rows(rows: Rows) -> bytes:
    """Code positions that `count_rows` counted."""
    from fedcompress.kernels import positions

    first, step = SHAPES[rows.urn]
    words = np.empty(rows.columns.size + 1, np.uint32)
    state, size = positions.encode(
        rows.counts, rows.columns, first + step * rows.turns, step, words
    )
    head = _encode_counts(rows.counts, rows.columns.size, rows.spread)
    return b"".join(
        (
            bytes((rows.urn,)),
            write_varint(len(head)),
            head,
            int(state).to_bytes(8, "little"),
            words[:size].astype("<u4").tobytes(),
        )
    )


def decode_rows(data: memoryview, count: int, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read ``count`` ascending positions out of ``n``."""
    if len(shape) < 2 or not 0 < count < n:
        raise PayloadError(f"payload: {count} positions by row out of {shape}; it is damaged")
    rows, columns = shape[0], n // shape[0]
    urn = data[0] if len(data) else len(SHAPES)
    if urn >= len(SHAPES) or not _fits(columns, SHAPES[urn][0], count, SHAPES[urn][1]):
        raise PayloadError("payload: positions by row in no known coding; the bytes are damaged")
    size, position = read_varint(data, 1)
    counts = _decode_counts(data[position : position + size], count, rows, columns)
    position += size
    if len(data) < position + 8 or (len(data) - position) % 4:
        raise PayloadError("payload: positions are cut short; the bytes are damaged")
    state = int.from_bytes(data[position : position + 8], "little")
    read = np.frombuffer(data[position + 8 :], "<u4")
    words = np.zeros(read.size + count + 1, np.uint32)
    words[: read.size] = read
    from fedcompress.kernels import positions

    first, step = SHAPES[urn]
    column = np.empty(count, np.int64)
    final, left = positions.decode(
        counts, np.uint64(state), words, read.size, np.full(columns, first), step, column
    )
    if int(final) != positions.LOWEST or bool(words[:left].any()):
        raise PayloadError("payload: words behind positions are left over; they are damaged")
    indices = np.repeat(np.arange(rows) * columns, counts) + column
    indices.sort()
    return indices


def _encode_counts(counts: np.ndarray, total: int, spread: int) -> bytes:
    alphabet = int(counts.max()) + 1
    weights = _negative_binomial(total, counts.size, spread, alphabet)
    rows = np.bincount(counts)
    if alphabet > 1 and cost_bits(rows, weights) < cost_bits(rows, rows) + _TABLE_BITS * alphabet:
        head = bytes((_NEGATIVE_BINOMIAL, spread)) + write_varint(alphabet)
        return head + ans_encode(counts, weights)
    return bytes((_HISTOGRAM,)) + encode_integers(counts)


def _decode_counts(data: memoryview, total: int, rows: int, columns: int) -> np.ndarray:
    if len(data) > 1 and data[0] == _HISTOGRAM:
        counts = decode_integers(data[1:], rows)
    elif len(data) > 2 and data[0] == _NEGATIVE_BINOMIAL and data[1] < len(SHAPES):
        alphabet, position = read_varint(data, 2)
        if not 2 <= alphabet <= _MOST_IN_ROW + 1:
            raise PayloadError(f"payload: rows of up to {alphabet} positions; it is damaged")
        weights = _negative_binomial(total, rows, data[1], alphabet)
        counts = ans_decode(data[position:], weights, rows)
    else:
        raise PayloadError("payload: counts of rows in no known coding; the bytes are damaged")
    low, high = int(counts.min()), int(counts.max())
    if low < 0 or high > min(columns, _MOST_IN_ROW) or int(counts.sum()) != total:
        raise PayloadError(f"payload: rows do not hold {total} positions; the bytes are damaged")
    return counts


@lru_cache(maxsize=256)
def _negative_binomial(total: int, rows: int, spread: int, alphabet: int) -> np.ndarray:
    """Weights of the counts of a row; in integers, so that both sides get the same."""
    weights = _long_weights(total, rows, spread, alphabet)
    shift = max(0, max(weights).bit_length() - 30)
    return frozen(np.array([max(1, weight >> shift) for weight in weights], np.int64))


def _long_weights(total: int, rows: int, spread: int, alphabet: int) -> list[int]:
    first, step = SHAPES[spread]
    weights = [1 << 64]
    for i in range(alphabet - 1):
        up, down = (i * step + first) * total, (i + 1) * (total * step + first * rows)
        weights.append(weights[-1] * up // down)
    return weights


@lru_cache(maxsize=64)
def shortened_weights(total: int, rows: int, alphabet: int) -> np.ndarray:
    """Give the weights of a row's counts for every shape (int64), as `kept_code` cuts them to size.

    Counts from which on a weight would not fit in 63 bits are left out: the array's length over
    the number of shapes is how many there are.
    """
    cut = [
        [weight >> _SHORTENED for weight in _long_weights(total, rows, spread, alphabet)]
        for spread in range(len(SHAPES))
    ]
    fit = min(sum(1 for weight in weights if weight < 1 << 63) for weights in cut)
    return frozen(np.array([weights[:fit] for weights in cut], np.int64).reshape(-1))


def _fits(columns: int, first: int, count: int, step: int) -> bool:
    from fedcompress.kernels.positions import LARGEST_URN

    return columns * first + count * step <= LARGEST_URN
