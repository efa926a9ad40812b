"""Symbols under one of several static tables each: interleaved range asymmetric numeral systems.

Duda (2013); the interleaving of states over one stream of words is Giesen's (2014). Four rows of
a matrix run in step, each with a state of its own, so that a processor can work on all four at
once; rows left over run one by one. Every entry names its table: which one is known before it is
decoded. Where the symbols are levels of a trellis, the tables come in pairs, one for each
quantizer, and which of the two is used follows from the parities of the levels before in the row.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

PRECISION = 12  # frequencies of a table add up to 2**PRECISION
TOTAL = 1 << PRECISION
_LOWEST = 1 << 16  # states stay in [2**16, 2**32)
LANES = 4


@kernel
def encode(
    tables: np.ndarray,
    symbols: np.ndarray,
    frequencies: np.ndarray,
    starts: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """Code rows of symbols, the last one first, into the end of ``words`` (uint16).

    Parameters
    ----------
    tables, symbols : ndarray
        uint8, shape (rows, columns): table and symbol of each entry.
    frequencies, starts : ndarray
        uint32, shape (tables, alphabet).
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
    x = states[0]
    for row in range(rows - 1, grouped - 1, -1):
        for column in range(columns - 1, -1, -1):
            table, symbol = tables[row, column], symbols[row, column]
            f, b = frequencies[table, symbol], starts[table, symbol]
            if np.uint64(x) >= np.uint64(f) << np.uint64(20):
                position -= 1
                words[position] = np.uint16(x & np.uint32(0xFFFF))
                x = x >> np.uint32(16)
            x = np.uint32((x // f << np.uint32(12)) + x % f + b)
    states[0] = x
    if grouped == 0:
        return position
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    for row in range(grouped - 4, -1, -4):
        for column in range(columns - 1, -1, -1):
            t3, s3 = tables[row + 3, column], symbols[row + 3, column]
            t2, s2 = tables[row + 2, column], symbols[row + 2, column]
            t1, s1 = tables[row + 1, column], symbols[row + 1, column]
            t0, s0 = tables[row, column], symbols[row, column]
            f3, f2, f1, f0 = (
                frequencies[t3, s3],
                frequencies[t2, s2],
                frequencies[t1, s1],
                frequencies[t0, s0],
            )
            words[position - 1] = np.uint16(x3 & np.uint32(0xFFFF))
            if np.uint64(x3) >= np.uint64(f3) << np.uint64(20):
                position -= 1
                x3 = x3 >> np.uint32(16)
            words[position - 1] = np.uint16(x2 & np.uint32(0xFFFF))
            if np.uint64(x2) >= np.uint64(f2) << np.uint64(20):
                position -= 1
                x2 = x2 >> np.uint32(16)
            words[position - 1] = np.uint16(x1 & np.uint32(0xFFFF))
            if np.uint64(x1) >= np.uint64(f1) << np.uint64(20):
                position -= 1
                x1 = x1 >> np.uint32(16)
            words[position - 1] = np.uint16(x0 & np.uint32(0xFFFF))
            if np.uint64(x0) >= np.uint64(f0) << np.uint64(20):
                position -= 1
                x0 = x0 >> np.uint32(16)
            x3 = np.uint32((x3 // f3 << np.uint32(12)) + x3 % f3 + starts[t3, s3])
            x2 = np.uint32((x2 // f2 << np.uint32(12)) + x2 % f2 + starts[t2, s2])
            x1 = np.uint32((x1 // f1 << np.uint32(12)) + x1 % f1 + starts[t1, s1])
            x0 = np.uint32((x0 // f0 << np.uint32(12)) + x0 % f0 + starts[t0, s0])
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
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


@kernel
def decode_dependent(
    classes: np.ndarray,
    pairs: np.ndarray,
    slots: np.ndarray,
    transitions: np.ndarray,
    moves: np.ndarray,
    words: np.ndarray,
    position: int,
    states: np.ndarray,
    symbols: np.ndarray,
) -> int:
    """Read rows of a trellis' levels, as `decode` does.

    Parameters
    ----------
    classes : ndarray
        uint8, shape (rows, columns).
    pairs : ndarray
        uint8, shape (classes, 2): the table of each class and quantizer.
    transitions : ndarray
        int64, shape (trellis states, 3): next state by parity, and the quantizer.
    moves : ndarray
        uint8, shape (alphabet,): the parity that each symbol stands for.
    """
    rows, columns = symbols.shape
    mask = np.uint32(TOTAL - 1)
    grouped = rows // 4 * 4 if states.size == 4 else 0
    end = words.size - 4
    alphabet = moves.size
    # Next pair index, 2 × state + …: one look-up in place of three along the critical path.
    follow = np.empty((transitions.shape[0], alphabet), np.uint8)
    kind = np.empty(transitions.shape[0], np.uint8)
    for s in range(transitions.shape[0]):
        kind[s] = transitions[s, 2]
        for i in range(alphabet):
            follow[s, i] = transitions[s, moves[i]]
    x0 = states[0]
    if grouped:
        x1, x2, x3 = states[1], states[2], states[3]
        for row in range(0, grouped, 4):
            d0, d1, d2, d3 = np.uint8(0), np.uint8(0), np.uint8(0), np.uint8(0)
            for column in range(columns):
                e0 = slots[pairs[classes[row, column], kind[d0]], x0 & mask]
                e1 = slots[pairs[classes[row + 1, column], kind[d1]], x1 & mask]
                e2 = slots[pairs[classes[row + 2, column], kind[d2]], x2 & mask]
                e3 = slots[pairs[classes[row + 3, column], kind[d3]], x3 & mask]
                d0 = follow[d0, e0 >> np.uint32(24)]
                d1 = follow[d1, e1 >> np.uint32(24)]
                d2 = follow[d2, e2 >> np.uint32(24)]
                d3 = follow[d3, e3 >> np.uint32(24)]
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
        d0 = np.uint8(0)
        for column in range(columns):
            e0 = slots[pairs[classes[row, column], kind[d0]], x0 & mask]
            d0 = follow[d0, e0 >> np.uint32(24)]
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
