"""Symbols under one of several static tables each: interleaved range asymmetric numeral systems.

Duda (2013); the interleaving of states over one stream of words is Giesen's (2014). Four rows of
a matrix run in step, each with a state of its own, so that a processor can work on all four at
once; rows left over run one by one. Every entry names its table: which one is known before it is
decoded.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

PRECISION = 12  # frequencies of a table add up to 2**PRECISION
TOTAL = 1 << PRECISION
_LOWEST = 1 << 16  # states stay in [2**16, 2**32)
LANES = 4
# As unsigned numbers, of which compiled code makes no floats and no negative indexes.
_BITS, _ROOM, _RECIPROCAL = np.uint64(PRECISION), np.uint64(20), np.uint64(44)
_ROW, _SIXTEEN, _TOP = np.uint64(8), np.uint64(16), np.uint64(24)
_WHOLE, _MASK, _WORD = np.uint64(TOTAL), np.uint64(TOTAL - 1), np.uint64(0xFFFF)


@kernel
def codes_of(
    frequencies: np.ndarray, starts: np.ndarray, codes: np.ndarray, reciprocals: np.ndarray
) -> None:
    """Lay tables out for coding, at 256 × table + symbol.

    ``codes`` (uint32) holds the frequency and in its low 12 bits the start, ``reciprocals``
    (uint64) ⌈2**44 / frequency⌉: for a state x below frequency × 2**20, their product is below
    2**64 and its upper 20 bits are exactly x // frequency.
    """
    for t in range(frequencies.shape[0]):
        for s in range(frequencies.shape[1]):
            f = np.int64(frequencies[t, s])
            if f > 0:
                codes[256 * t + s] = np.uint32(f << PRECISION) | starts[t, s]
                reciprocals[256 * t + s] = np.uint64(((1 << 44) + f - 1) // f)


@kernel
def encode(
    contexts: np.ndarray,
    table_of: np.ndarray,
    symbols: np.ndarray,
    codes: np.ndarray,
    reciprocals: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """Code rows of symbols, the last one first, into the end of ``words`` (uint16).

    Parameters
    ----------
    contexts, symbols : ndarray
        uint8, shape (rows, columns): context and symbol of each entry.
    table_of : ndarray
        uint8: the table of each context.
    codes, reciprocals : ndarray
        As `codes_of` lays them out.
    states : ndarray
        uint32, shape (lanes,), 1 or 4 lanes; changed in place.

    Returns
    -------
    int
        Where in ``words`` the code begins.
    """
    rows, columns = symbols.shape
    position = words.size
    grouped = rows // 4 * 4 if states.size == 4 else 0
    x = np.uint64(states[0])
    for row in range(rows - 1, grouped - 1, -1):
        r0 = np.uint64(row)
        for last in range(columns - 1, -1, -1):
            column = np.uint64(last)
            i = (np.uint64(table_of[contexts[r0, column]]) << _ROW) | np.uint64(symbols[r0, column])
            f = np.uint64(codes[i]) >> _BITS
            if x >= f << _ROOM:
                position -= 1
                words[position] = np.uint16(x & _WORD)
                x >>= _SIXTEEN
            x += ((x * reciprocals[i]) >> _RECIPROCAL) * (_WHOLE - f) + (codes[i] & _MASK)
    states[0] = np.uint32(x)
    if grouped == 0:
        return position
    x0, x1 = np.uint64(states[0]), np.uint64(states[1])
    x2, x3 = np.uint64(states[2]), np.uint64(states[3])
    for row in range(grouped - 4, -1, -4):
        r0, r1 = np.uint64(row), np.uint64(row + 1)
        r2, r3 = np.uint64(row + 2), np.uint64(row + 3)
        for last in range(columns - 1, -1, -1):
            column = np.uint64(last)
            i3 = (np.uint64(table_of[contexts[r3, column]]) << _ROW) | np.uint64(
                symbols[r3, column]
            )
            i2 = (np.uint64(table_of[contexts[r2, column]]) << _ROW) | np.uint64(
                symbols[r2, column]
            )
            i1 = (np.uint64(table_of[contexts[r1, column]]) << _ROW) | np.uint64(
                symbols[r1, column]
            )
            i0 = (np.uint64(table_of[contexts[r0, column]]) << _ROW) | np.uint64(
                symbols[r0, column]
            )
            f3 = np.uint64(codes[i3]) >> _BITS
            f2 = np.uint64(codes[i2]) >> _BITS
            f1 = np.uint64(codes[i1]) >> _BITS
            f0 = np.uint64(codes[i0]) >> _BITS
            words[position - 1] = np.uint16(x3 & _WORD)
            if x3 >= f3 << _ROOM:
                position -= 1
                x3 >>= _SIXTEEN
            words[position - 1] = np.uint16(x2 & _WORD)
            if x2 >= f2 << _ROOM:
                position -= 1
                x2 >>= _SIXTEEN
            words[position - 1] = np.uint16(x1 & _WORD)
            if x1 >= f1 << _ROOM:
                position -= 1
                x1 >>= _SIXTEEN
            words[position - 1] = np.uint16(x0 & _WORD)
            if x0 >= f0 << _ROOM:
                position -= 1
                x0 >>= _SIXTEEN
            x3 += ((x3 * reciprocals[i3]) >> _RECIPROCAL) * (_WHOLE - f3) + (codes[i3] & _MASK)
            x2 += ((x2 * reciprocals[i2]) >> _RECIPROCAL) * (_WHOLE - f2) + (codes[i2] & _MASK)
            x1 += ((x1 * reciprocals[i1]) >> _RECIPROCAL) * (_WHOLE - f1) + (codes[i1] & _MASK)
            x0 += ((x0 * reciprocals[i0]) >> _RECIPROCAL) * (_WHOLE - f0) + (codes[i0] & _MASK)
    states[0], states[1] = np.uint32(x0), np.uint32(x1)
    states[2], states[3] = np.uint32(x2), np.uint32(x3)
    return position


@kernel
def decode(
    tables: np.ndarray,
    slots: np.ndarray,
    words: np.ndarray,
    position: int,
    states: np.ndarray,
    symbols: np.ndarray,
) -> int:
    """Read rows of symbols; returns the position behind the last word, −1 if words run out.

    Parameters
    ----------
    tables : ndarray
        uint8, shape (rows, columns).
    slots : ndarray
        uint32, shape (tables, TOTAL): symbol, frequency − 1 (12 bits each) and, in the low
        bits, the slot's place in the symbol's range.
    words : ndarray
        uint16, with at least 4 to spare behind the last.
    symbols : ndarray
        uint8, shape (rows, columns): filled.
    """
    rows, columns = symbols.shape
    mask = np.uint32(TOTAL - 1)
    grouped = rows // 4 * 4 if states.size == 4 else 0
    end = words.size - 4
    x0 = states[0]
    if grouped:
        x1, x2, x3 = states[1], states[2], states[3]
        for row in range(0, grouped, 4):
            for column in range(columns):
                e0 = slots[tables[row, column], x0 & mask]
                e1 = slots[tables[row + 1, column], x1 & mask]
                e2 = slots[tables[row + 2, column], x2 & mask]
                e3 = slots[tables[row + 3, column], x3 & mask]
                x0 = np.uint32(((e0 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                    x0 >> np.uint32(12)
                ) + (e0 & mask)
                x1 = np.uint32(((e1 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                    x1 >> np.uint32(12)
                ) + (e1 & mask)
                x2 = np.uint32(((e2 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                    x2 >> np.uint32(12)
                ) + (e2 & mask)
                x3 = np.uint32(((e3 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                    x3 >> np.uint32(12)
                ) + (e3 & mask)
                symbols[row, column] = np.uint8(e0 >> np.uint32(24))
                symbols[row + 1, column] = np.uint8(e1 >> np.uint32(24))
                symbols[row + 2, column] = np.uint8(e2 >> np.uint32(24))
                symbols[row + 3, column] = np.uint8(e3 >> np.uint32(24))
                if x0 < _LOWEST:
                    x0 = (x0 << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                if x1 < _LOWEST:
                    x1 = (x1 << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                if x2 < _LOWEST:
                    x2 = (x2 << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                if x3 < _LOWEST:
                    x3 = (x3 << np.uint32(16)) | np.uint32(words[position])
                    position += 1
                if position > end:
                    return -1
        states[1], states[2], states[3] = x1, x2, x3
    for row in range(grouped, rows):
        for column in range(columns):
            e0 = slots[tables[row, column], x0 & mask]
            x0 = np.uint32(((e0 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x0 >> np.uint32(12)
            ) + (e0 & mask)
            symbols[row, column] = np.uint8(e0 >> np.uint32(24))
            if x0 < _LOWEST:
                x0 = (x0 << np.uint32(16)) | np.uint32(words[position])
                position += 1
                if position > end:
                    return -1
    states[0] = x0
    return position
