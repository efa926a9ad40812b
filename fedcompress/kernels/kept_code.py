"""Positions and symbols of the kept entries of a whole update, coded in one call.

To the byte what `index_sets.encode_index_set` and `symbol_arrays.encode_symbols` write, for what
most arrays of a small model hold; an array that holds anything else is left to them. A small model
has many small arrays, and to code them from the interpreter takes three times what the coding does.
"""

import numpy as np

from fedcompress.kernels.bits import pack
from fedcompress.kernels.classes import CLASSES, FIRST, levels_of
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.learnt import code
from fedcompress.kernels.middle import spread_about
from fedcompress.kernels.outline import MOST_HALF, MOST_LEVEL
from fedcompress.kernels.positions import encode as encode_columns
from fedcompress.kernels.rows import count as count_rows
from fedcompress.kernels.rows import sequence_nats

# Of the codings that these modules of `coders` number; a test compares the bytes.
_FEW_POSITIONS = 32
_BY_ROW = 33  # less the size of the array
_MOST_IN_ROW = 4095
_MOST_IN_COLUMN = 1 << 14
_LARGEST_URN = 1 << 24
_NEGATIVE_BINOMIAL, _GEOMETRIC = 1, 1
_DENSE = 12
_OVERHEAD_BITS = 200
_ROWS_WORTH = 0.97
_TABLE_BITS = 6
_MODELLED_BITS = 3
_LONG = 1 << 14
_SLACK = 16
_LN2 = 0.6931471805599453
_ONE = np.uint64(1 << 32)

_FEW, _WIDE, _ROWS = 3, 4, 2
_FEW_SYMBOLS = 16
_LONGEST_ROW = 4096
_MOST_GAPS = 4096
_HEAD, _LEVELS, _TABLE, _SYMBOLS = 0, 2, 8, 20
_SPREAD, _OFF = 24.0, 0.75
_WIDEST = 1 << 12

_PRECISION = 24
_TOTAL = 1 << _PRECISION
_FULL, _WORD = np.uint64(64 - _PRECISION), np.uint64(32)
_LOW_WORD = np.uint64(0xFFFFFFFF)

# What is known of an array beforehand, by column of ``about``.
SIZE, ROWS, FEW_BYTES, WEIGHTS_AT, ALPHABET = 0, 1, 2, 3, 4
FREE_BITS, ORDERS_NATS = 0, 1  # and of ``costs``
INDEX, SCALE, SYMBOLS = 0, 1, 2  # and of what is booked


@kernel
def code_kept(
    first: int,
    about: np.ndarray,
    costs: np.ndarray,
    row_weights: np.ndarray,
    shapes: np.ndarray,
    kept_ends: np.ndarray,
    kept: np.ndarray,
    symbols: np.ndarray,
    steps: np.ndarray,
    first_odds: np.ndarray,
    out: np.ndarray,
    booked: np.ndarray,
) -> tuple[int, int]:
    """Code arrays from the ``first`` on, up to one that it cannot.

    Parameters
    ----------
    first : int
        The array to begin with.
    about : ndarray
        int64, shape (arrays, 5): entries; rows, 1 for a vector and 0 for what this does not code;
        the bytes of a combination, 0 where its number is too large; where its weights begin in
        ``row_weights``, and of how many counts of a row there are any.
    costs : ndarray
        float64, shape (arrays, 2): the bits of positions drawn at random, and the nats of how many
        orders they have.
    row_weights : ndarray
        int64, the weights of the counts of a row under each of the shapes, one array behind
        another, not yet cut to 30 bits.
    shapes : ndarray
        int64, shape (shapes, 2): of the gamma laws of rates.
    kept_ends, kept, symbols
        As `kept_all.keep_all` takes and fills them.
    steps : ndarray
        uint8, the bytes of the steps, four an array.
    rest_groups, first_odds : ndarray
        Of `kernels.classes`.
    out : ndarray
        uint8, filled with sections, each behind its length.
    booked : ndarray
        int64, to which the bytes of positions, steps and symbols are added.

    Returns
    -------
    array, size : int
        The first array that was not coded, and the bytes in ``out``.
    """
    at = 0
    piece = np.empty(out.size, np.uint8)
    start = kept_ends[first - 1] if first else 0
    for i in range(first, about.shape[0]):
        end = kept_ends[i]
        if about[i, ROWS] == 0:
            return i, at
        positions = kept[start:end]
        size = _put_positions(
            positions, about[i], costs[i], row_weights, shapes, symbols.size, piece
        )
        if size < 0 or at + size + 9 > out.size:
            return i, at
        here = _put_section(piece, size, out, at)
        here = _put_section(steps[4 * i : 4 * i + 4], 4, out, here)
        length = _put_symbols(symbols[start:end], first_odds, piece)
        if length < 0 or here + length + 9 > out.size:
            return i, at
        at = _put_section(piece, length, out, here)
        booked[INDEX] += size
        booked[SCALE] += 4
        booked[SYMBOLS] += length
        start = end
    return about.shape[0], at


@kernel
def _put_section(piece: np.ndarray, size: int, out: np.ndarray, at: int) -> int:
    at = _put_varint(size, out, at)
    for i in range(size):
        out[at + i] = piece[i]
    return at + size


@kernel
def _put_varint(value: int, out: np.ndarray, at: int) -> int:
    while value > 0x7F:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@kernel
def _put_signed(value: int, out: np.ndarray, at: int) -> int:
    return _put_varint(2 * value if value >= 0 else -2 * value - 1, out, at)


@kernel
def _bit_length(value: int) -> int:
    bits = 0
    while value >> bits > 0:
        bits += 1
    return bits


@kernel
def _put_positions(
    kept: np.ndarray,
    about: np.ndarray,
    costs: np.ndarray,
    row_weights: np.ndarray,
    shapes: np.ndarray,
    room: int,
    out: np.ndarray,
) -> int:
    """Code the positions of one array; gives the bytes, −1 where this cannot."""
    n, count = about[SIZE], kept.size
    if out.size < 64 + 12 * room:
        return -1
    if count == n:
        return _put_varint(count, out, 0)
    if count <= _FEW_POSITIONS:
        if about[FEW_BYTES] == 0:
            return -1
        return _put_combination(kept, about[FEW_BYTES], out, _put_varint(n + count, out, 0))
    rows = about[ROWS]
    if count * _DENSE >= n:
        return -1
    if rows > 1 and n // rows > 1:
        by_row = _put_rows(kept, about, costs, row_weights, shapes, out)
        if by_row:
            return by_row
    return _put_gaps(kept, n, out, _put_varint(count, out, 0))


@kernel
def _put_combination(kept: np.ndarray, size: int, out: np.ndarray, at: int) -> int:
    number = 0
    for i in range(kept.size):
        combinations = 1
        for j in range(i + 1):  # kept[i] over i + 1
            combinations = combinations * (kept[i] - j) // (j + 1)
        number += combinations
    for i in range(size):
        out[at + i] = (number >> (8 * i)) & 0xFF
    return at + size


@kernel
def _put_rows(
    kept: np.ndarray,
    about: np.ndarray,
    costs: np.ndarray,
    row_weights: np.ndarray,
    shapes: np.ndarray,
    out: np.ndarray,
) -> int:
    """Code positions by row; 0 where gaps are as short, −1 where this cannot."""
    n, rows = about[SIZE], about[ROWS]
    columns = n // rows
    counts, turns = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    column = np.empty(kept.size, np.int64)
    in_row, in_column = count_rows(kept, counts, turns, column)
    if in_row > _MOST_IN_ROW or in_column > _MOST_IN_COLUMN:
        return 0
    alpha = np.empty(shapes.shape[0], np.float64)
    for i in range(alpha.size):
        alpha[i] = shapes[i, 0] / shapes[i, 1]
    rows_nats = sequence_nats(counts, in_row, alpha)
    columns_nats = sequence_nats(turns, in_column, alpha)
    spread, urn = rows_nats.argmin(), columns_nats.argmin()
    nats = rows_nats[spread] + columns_nats[urn] - costs[ORDERS_NATS]
    if nats / _LN2 + _OVERHEAD_BITS > _ROWS_WORTH * costs[FREE_BITS]:
        return 0
    once, step = shapes[urn, 0], shapes[urn, 1]
    if columns * once + kept.size * step > _LARGEST_URN:
        return 0
    if in_row + 1 > about[ALPHABET]:
        return -1
    head = np.empty(16 + 12 * rows, np.uint8)
    weights_at = about[WEIGHTS_AT] + spread * about[ALPHABET]
    head_size = _put_counts(counts, in_row + 1, spread, row_weights[weights_at:], head)
    if head_size < 0:
        return -1
    for i in range(columns):
        turns[i] = once + step * turns[i]
    words = np.empty(kept.size + 1, np.uint32)
    state, size = encode_columns(counts, column, turns, step, words)
    at = _put_varint(kept.size, out, _put_varint(n + _BY_ROW, out, 0))
    if at + 1 + head_size + 24 + 4 * size > out.size:
        return -1
    out[at] = urn
    at = _put_section(head, head_size, out, at + 1)
    for i in range(8):
        out[at + i] = (state >> np.uint64(8 * i)) & np.uint64(0xFF)
    return _put_words(words, size, out, at + 8)


@kernel
def _put_words(words: np.ndarray, size: int, out: np.ndarray, at: int) -> int:
    for i in range(size):
        for j in range(4):
            out[at + j] = (words[i] >> np.uint32(8 * j)) & np.uint32(0xFF)
        at += 4
    return at


@kernel
def _put_counts(
    counts: np.ndarray, alphabet: int, spread: int, long_weights: np.ndarray, out: np.ndarray
) -> int:
    """Code how many entries each row keeps; −1 where a histogram may be as short."""
    largest = 0
    for i in range(alphabet):
        largest = max(largest, long_weights[i])
    shift = max(0, _bit_length(largest) - 30)
    weights = np.empty(alphabet, np.int64)
    for i in range(alphabet):
        weights[i] = max(1, long_weights[i] >> shift)
    rows = np.zeros(alphabet, np.int64)
    for value in counts:
        rows[value] += 1
    if alphabet < 2 or _cost_bits(rows, weights) >= _cost_bits(rows, rows) + _TABLE_BITS * alphabet:
        return -1
    out[0], out[1] = _NEGATIVE_BINOMIAL, spread
    return _put_symbols_under(counts, weights, out, _put_varint(alphabet, out, 2))


@kernel
def _cost_bits(counts: np.ndarray, weights: np.ndarray) -> float:
    total = 0
    for weight in weights:
        total += weight
    bits = 0.0
    for i in range(counts.size):
        if counts[i]:
            bits -= counts[i] * np.log2(weights[i] / total)
    return bits


@kernel
def _put_symbols_under(symbols: np.ndarray, weights: np.ndarray, out: np.ndarray, at: int) -> int:
    """Code symbols by asymmetric numeral systems, as constriction does under these weights.

    Its model rounds shares to 24 bits with one part for each symbol to begin with; its coder has a
    state of 64 bits and words of 32 (Bamler, 2022).
    """
    total = 0
    for weight in weights:
        total += weight
    norm = 0.0
    for weight in weights:
        norm += weight / total
    scale = (_TOTAL - weights.size) / norm
    left = np.empty(weights.size + 1, np.uint64)
    share = 0.0
    for i in range(weights.size):
        left[i] = np.uint64(share * scale) + np.uint64(i)
        share += weights[i] / total
    left[weights.size] = _TOTAL
    words = np.empty(symbols.size + 2, np.uint32)
    size = 0
    state = np.uint64(0)
    for i in range(symbols.size - 1, -1, -1):
        start = left[symbols[i]]
        width = left[symbols[i] + 1] - start
        if state >> _FULL >= width:
            words[size] = state & _LOW_WORD
            size += 1
            state >>= _WORD
        quotient = state // width
        state = (quotient << np.uint64(_PRECISION)) | (start + state - quotient * width)
    while state:
        words[size] = state & _LOW_WORD
        size += 1
        state >>= _WORD
    return _put_words(words, size, out, at)


@kernel
def _put_gaps(kept: np.ndarray, n: int, out: np.ndarray, at: int) -> int:
    """Code gaps between positions; −1 where a histogram of them may be as short."""
    count = kept.size
    low_bits = max(0, _bit_length(n // count) - 1 - _MODELLED_BITS)
    low, high = np.empty(count, np.int64), np.empty(count, np.int64)
    last, largest = -1, 0
    for i in range(count):
        gap = kept[i] - last - 1
        last = kept[i]
        low[i] = gap & ((1 << low_bits) - 1)
        high[i] = gap >> low_bits
        largest = max(largest, high[i])
    if not 0 < largest < _MOST_GAPS:
        return -1
    counts = np.zeros(largest + 1, np.int64)
    for value in high:
        counts[value] += 1
    weights = np.empty(largest + 1, np.int64)
    ratio = _ONE * np.uint64(n - count) // np.uint64(n)
    for _ in range(low_bits):
        ratio = _times(ratio, ratio)
    weight = _ONE
    for i in range(largest + 1):
        weights[i] = weight >> np.uint64(8)
        weights[i] = max(1, weights[i])
        weight = _times(weight, ratio)
    first = 0
    while counts[first] == 0:
        first += 1
    span = largest - first
    if span == 0 or count >= _LONG:
        return -1
    table = (_TABLE_BITS * (span + 1) + 7) // 8
    modelled = _cost_bits(counts, counts) / 8 + table - _SLACK
    packed = (count * _bit_length(span) + 7) // 8
    if _cost_bits(counts, weights) / 8 + 4 >= min(modelled, packed):
        return -1
    if low_bits:
        size = (count * low_bits + 7) // 8
        pack(low, low_bits, out[at : at + size])
        at += size
    out[at] = _GEOMETRIC
    return _put_symbols_under(high, weights, out, _put_varint(largest + 1, out, at + 1))


@kernel
def _times(a: np.uint64, b: np.uint64) -> np.uint64:
    """Multiply two numbers of up to 2**32 in 2**-32ths, of which one is less."""
    return a * b >> _WORD


@kernel
def _put_symbols(symbols: np.ndarray, first_odds: np.ndarray, out: np.ndarray) -> int:
    """Code the symbols of one array; −1 where this cannot."""
    low, high = np.int64(symbols[0]), np.int64(symbols[0])
    for symbol in symbols:
        low, high = min(low, symbol), max(high, symbol)
    if symbols.size <= _FEW_SYMBOLS:
        out[0] = _FEW
        at = 1
        for symbol in symbols:
            at = _put_signed(np.int64(symbol), out, at)
        return at
    if symbols.size > _LONGEST_ROW or max(-low, high) >= _WIDEST:
        return -1
    middle = _middle(symbols, low, high)
    spread = spread_about(symbols, middle)
    if abs(middle) <= _OFF * spread:
        middle, spread = 0, spread_about(symbols, 0)
    shift = 0
    while spread / (1 << shift) > _SPREAD:
        shift += 1
    values = np.empty(symbols.size, np.int64)
    at = 1
    out[0] = _ROWS
    if middle or shift:
        out[0] = _WIDE
        at = _put_signed(middle, out, 1)
        out[at] = shift
        at += 1
    for i in range(symbols.size):
        values[i] = (symbols[i] - middle) >> shift
    if shift:
        lows = np.empty(symbols.size, np.int64)
        for i in range(symbols.size):
            lows[i] = (symbols[i] - middle) & ((1 << shift) - 1)
        size = (symbols.size * shift + 7) // 8
        pack(lows, shift, out[at : at + size])
        at += size
    coded = _put_row(values, first_odds, out[at:])
    return coded if coded < 0 else at + coded


@kernel
def _middle(symbols: np.ndarray, low: int, high: int) -> int:
    """Give the median, cut off towards zero."""
    counts = np.zeros(high - low + 1, np.int64)
    for symbol in symbols:
        counts[symbol - low] += 1
    half = symbols.size // 2
    upper, before = 0, counts[0]
    while before <= half:
        upper += 1
        before += counts[upper]
    if symbols.size % 2:
        return upper + low
    lower, before = 0, counts[0]
    while before <= half - 1:
        lower += 1
        before += counts[lower]
    return np.int64((np.float64(lower + low) + np.float64(upper + low)) / 2)


@kernel
def _put_row(values: np.ndarray, first_odds: np.ndarray, out: np.ndarray) -> int:
    """Code one row of symbols, whose histogram is learnt on the way."""
    columns = values.size
    total, level = np.zeros(1, np.int64), np.empty(1, np.int16)
    largest = 0
    for value in values:
        total[0] += abs(value)
        largest = max(largest, abs(value))
    if largest == 0:
        return 0
    # One row has one level, and so all its symbols are of one class.
    levels_of(total, columns * 1.0, MOST_LEVEL, level)
    contexts = np.empty(columns, np.uint8)
    contexts[:] = max(min(level[0] + 1 - FIRST, CLASSES - 1), 1)
    end = code(
        np.zeros((0, 2), np.int64),
        level,
        np.empty(0, np.int16),
        0,
        np.ones(1, np.int64),
        np.ones(1, np.int64),
        min(largest, MOST_HALF),
        np.zeros((0, 0), np.int64),
        np.zeros(0, np.int64),
        values,
        contexts,
        _SYMBOLS,
        _HEAD,
        _LEVELS,
        _TABLE,
        1,
        first_odds,
        out,
    )
    if end == 0:
        out[0] = 0
        return 1
    return end
