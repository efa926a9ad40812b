"""What every symbol of a matrix is expected to be: levels of rows and columns, symbols, contexts.

One call makes all of it, with the histograms of the contexts: calling from the interpreter would
cost as much as the counting of a small matrix.
"""

import numpy as np

from fedcompress.kernels.classes import CLASSES, FIRST, classes, levels_of, sums, symbols_of
from fedcompress.kernels.jit import kernel

MOST_LEVEL = 50
MOST_HALF = 120
HALF, SENT, BEYOND = 0, 1, 2  # what `outline` finds, in an array of int64
_BITS_A_LEVEL = 2.0
_BITS_A_SYMBOL = 3.0  # that a class has to learn, or a table to tell
_ALWAYS_BOTH = 1 << 16  # symbols from which on rows and columns are both worth their levels
_ONE = np.uint32(1)


@kernel
def terms_of(bits_a_symbol: float, terms: np.ndarray) -> None:
    """Give what a symbol seen n times adds to the bits of a histogram, for small n."""
    for n in range(1, terms.size):
        terms[n] = bits_a_symbol - n * np.log2(n)
    terms[0] = 0.0


@kernel
def _half_of(values: np.ndarray, largest: int) -> int:
    """Choose the magnitude up to which symbols have a place in the tables."""
    if largest <= 16:
        return largest
    rows, columns = values.shape
    counts = np.zeros(MOST_HALF + 2, np.int64)
    step = max(1, rows * columns >> 16)
    allowed = (rows * columns + step - 1) // step // 8192
    row = column = 0
    while row < rows:
        magnitude = abs(np.int64(values[row, column]))
        counts[magnitude if magnitude <= MOST_HALF else MOST_HALF + 1] += 1
        column += step
        while column >= columns and row < rows:
            column -= columns
            row += 1
    half = MOST_HALF
    beyond = counts[half + 1]
    if beyond <= allowed:
        while beyond + counts[half] <= allowed:
            beyond += counts[half]
            half -= 1
    return min(max(half, 16), largest, MOST_HALF)


@kernel
def _axes(
    symbols: np.ndarray,
    row_levels: np.ndarray,
    column_levels: np.ndarray,
    one_level: int,
    alphabet: int,
) -> int:
    """Choose which levels to send: of rows (1), columns (2), both (3) or neither.

    By the entropy of each class's histogram, and some bits for each symbol in it.
    """
    rows, columns = symbols.shape
    counts = np.zeros((4, CLASSES, alphabet), np.uint32)
    by_column = np.empty(columns, np.uint8)
    for column in range(columns):
        k = one_level + column_levels[column] + 1 - FIRST
        by_column[column] = max(min(k, CLASSES - 1), 1) if k > -500 else 0
    for row in range(rows):
        level = np.int64(row_levels[row]) + 1 - FIRST
        by_row = np.uint64(max(min(level, CLASSES - 1), 1) if level > -500 else 0)
        for column in range(columns):
            k = level + column_levels[column]
            k = max(min(k, CLASSES - 1), 1) if k > -500 else 0
            s = symbols[row, column]
            counts[1, by_row, s] += _ONE
            counts[2, by_column[column], s] += _ONE
            counts[3, np.uint64(k), s] += _ONE
    one = max(min(one_level + 1 - FIRST, CLASSES - 1), 1)
    for k in range(CLASSES):
        for s in range(alphabet):
            counts[0, one, s] += counts[1, k, s]
    terms = np.empty(min(512, rows * columns // 4 + 1), np.float64)
    terms_of(_BITS_A_SYMBOL, terms)
    chosen = 0
    least = 0.0
    for sent in range(4):
        bits = 0.0
        for k in range(CLASSES):
            total = 0
            for s in range(alphabet):
                total += counts[sent, k, s]
            if total > 0:
                for s in range(alphabet):
                    n = np.int64(counts[sent, k, s])
                    if n < terms.size:
                        bits += terms[np.uint64(n)]
                    else:
                        bits += _BITS_A_SYMBOL - n * np.log2(n)
                bits += total * np.log2(total)
        bits += _BITS_A_LEVEL * (rows * (sent & 1) + columns * (sent >> 1))
        if sent == 0 or bits < least:
            least, chosen = bits, sent
    return chosen


@kernel
def _count(contexts: np.ndarray, symbols: np.ndarray, counts: np.ndarray) -> None:
    """Add to the histogram (uint32, (2, contexts, alphabet)) of symbols by context.

    Two copies, since a count that was just written is slow to read.
    """
    rows, columns = symbols.shape
    for row in range(rows):
        for column in range(0, columns - 1, 2):
            counts[0, contexts[row, column], symbols[row, column]] += _ONE
            counts[1, contexts[row, column + 1], symbols[row, column + 1]] += _ONE
        if columns % 2:
            counts[0, contexts[row, columns - 1], symbols[row, columns - 1]] += _ONE


@kernel
def _group_by_rest(rest: np.ndarray, groups: np.ndarray, contexts: np.ndarray) -> None:
    """Replace classes by contexts, 4 × class + group of the rest's size (in place)."""
    rows, columns = rest.shape
    for row in range(rows):
        for column in range(columns):
            k = contexts[row, column]
            size = np.uint8(abs(np.int64(rest[row, column])))
            contexts[row, column] = (k << 2) + groups[k, size]


@kernel
def _count_by_state(
    symbols: np.ndarray,
    half: int,
    transitions: np.ndarray,
    contexts: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Replace classes by contexts, 2 × class + quantizer, as the trellis runs through a row; count.

    ``transitions`` has a row for each state: the next state after an even and an odd level, and
    the quantizer. Four rows run in step, since within a row each state waits for the last.
    """
    rows, columns = symbols.shape
    low, eight = np.uint64(0xFF), np.uint64(8)
    follow = np.empty(2 * transitions.shape[0], np.uint16)  # by 2 × state + parity
    for s in range(transitions.shape[0]):
        for odd in range(2):
            follow[2 * s + odd] = (
                2 * transitions[s, odd] + 256 * transitions[transitions[s, odd], 2]
            )
    first = np.uint64(256 * transitions[0, 2])
    parity = np.empty(2 * half + 3, np.uint8)
    for s in range(2 * half + 1):
        parity[s] = (s - half) & 1
    parity[2 * half + 1], parity[2 * half + 2] = 0, 1
    grouped = rows // 4 * 4
    for row in range(0, grouped, 4):
        d0, d1, d2, d3 = first, first, first, first
        for column in range(columns):
            s0, s1 = symbols[row, column], symbols[row + 1, column]
            s2, s3 = symbols[row + 2, column], symbols[row + 3, column]
            c0 = np.uint64(2 * contexts[row, column]) + (d0 >> eight)
            c1 = np.uint64(2 * contexts[row + 1, column]) + (d1 >> eight)
            c2 = np.uint64(2 * contexts[row + 2, column]) + (d2 >> eight)
            c3 = np.uint64(2 * contexts[row + 3, column]) + (d3 >> eight)
            contexts[row, column], contexts[row + 1, column] = c0, c1
            contexts[row + 2, column], contexts[row + 3, column] = c2, c3
            counts[0, c0, s0] += _ONE
            counts[1, c1, s1] += _ONE
            counts[0, c2, s2] += _ONE
            counts[1, c3, s3] += _ONE
            d0 = np.uint64(follow[(d0 & low) + np.uint64(parity[s0])])
            d1 = np.uint64(follow[(d1 & low) + np.uint64(parity[s1])])
            d2 = np.uint64(follow[(d2 & low) + np.uint64(parity[s2])])
            d3 = np.uint64(follow[(d3 & low) + np.uint64(parity[s3])])
    for row in range(grouped, rows):
        d0 = first
        for column in range(columns):
            s0 = symbols[row, column]
            c0 = np.uint64(2 * contexts[row, column]) + (d0 >> eight)
            contexts[row, column] = c0
            counts[0, c0, s0] += _ONE
            d0 = np.uint64(follow[(d0 & low) + np.uint64(parity[s0])])


@kernel
def outline(
    values: np.ndarray,
    rest: np.ndarray,
    rest_groups: np.ndarray,
    transitions: np.ndarray,
    learnt: bool,
    row_levels: np.ndarray,
    column_levels: np.ndarray,
    symbols: np.ndarray,
    contexts: np.ndarray,
    found: np.ndarray,
) -> np.ndarray:
    """Choose levels for integers (rows, columns), number their symbols and give them contexts.

    Parameters
    ----------
    values : ndarray
        int16 or int32.
    rest : ndarray
        int8, shape (rows, columns): of a prediction of each; (0, 0) for none.
    rest_groups : ndarray
        uint8, shape (classes, 17).
    transitions : ndarray
        int64, shape (states, 3): the trellis of which the integers are levels; or no states.
    learnt : bool
        Whether histograms are learnt on the way, so that there are no tables to be short.
    row_levels, column_levels : ndarray
        int16: filled.
    symbols, contexts : ndarray
        uint8, shape (rows, columns): filled.
    found : ndarray
        int64: at `HALF` the largest magnitude with a symbol of its own, 0 where all integers are
        zero and nothing else is filled; at `SENT` which levels to send; at `BEYOND` how many
        integers are beyond.

    Returns
    -------
    ndarray
        uint32, shape (2, contexts, alphabet): the histograms, to be added.
    """
    rows, columns = values.shape
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    largest = sums(values, by_row, by_column)
    if largest == 0:
        found[HALF] = 0
        return np.zeros((2, 0, 0), np.uint32)
    half = min(largest, MOST_HALF) if learnt else _half_of(values, largest)
    found[HALF] = half
    found[BEYOND] = symbols_of(values, rest, half, symbols)
    total, one = np.zeros(1, np.int64), np.empty(1, np.int16)
    for row in range(rows):
        total[0] += by_row[row]
    levels_of(total, rows * columns * 1.0, MOST_LEVEL, one)
    levels_of(by_row, columns * 1.0, MOST_LEVEL, row_levels)
    levels_of(by_column, total[0] / columns, MOST_LEVEL, column_levels)
    sent = 0 if rows == 1 else 3
    if sent and rows * columns < _ALWAYS_BOTH:
        sent = _axes(symbols, row_levels, column_levels, np.int64(one[0]), 2 * half + 3)
    found[SENT] = sent
    if not sent & 1:
        for row in range(rows):
            row_levels[row] = one[0]
    if not sent & 2:
        for column in range(columns):
            column_levels[column] = 0
    classes(row_levels, column_levels, contexts)
    groups = 4 if rest.size else 2 if transitions.size else 1
    counts = np.zeros((2, groups * CLASSES, 2 * half + 3), np.uint32)
    if transitions.size:
        _count_by_state(symbols, half, transitions, contexts, counts)
    else:
        if rest.size:
            _group_by_rest(rest, rest_groups, contexts)
        _count(contexts, symbols, counts)
    return counts
