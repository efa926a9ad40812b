"""Which table every symbol of a matrix belongs to.

A symbol's class is its row's level plus its column's, in half octaves of mean magnitude; it is
known before the symbol is. Symbols may also have a prediction: what is coded then is the distance
from its nearest integer, turned so that the rest of the prediction is positive, in a group by how
large that rest is beside the class's magnitude. Levels of a trellis have two groups, one for each
quantizer.
"""

from functools import cache

import numpy as np

from fedcompress.kernels.jit import kernel

FIRST, LAST = -20, 14  # levels beyond these join the outermost class
CLASSES = LAST - FIRST + 2  # the first class is of rows and columns of zeros
EMPTY = -1000  # level of a row or column of zeros


@cache
def rest_groups() -> np.ndarray:
    """Give the group, 0 to 3, of each class and size of a rest in 1/32 (uint8, (classes, 17)).

    They part at .1, .3 and .8 of the class's mean magnitude.
    """
    groups = np.zeros((CLASSES, 17), np.uint8)
    for k in range(1, CLASSES):
        level = FIRST + k - 1
        magnitude = 2.0 ** (level // 2) * (1.4142135623730951 if level % 2 else 1.0)
        for share in (0.1, 0.3, 0.8):
            limit = int(share * magnitude * 128)
            groups[k] += 4 * np.arange(17) > limit
    return groups


@cache
def first_odds() -> np.ndarray:
    """Give, for each class, the odds out of 2**15 against one more step of magnitude.

    They are those of a geometric distribution of the class's mean, with which histograms that
    are learnt on the way begin.
    """
    odds = np.full(CLASSES, 1 << 14, np.int64)
    for k in range(1, CLASSES):
        level = FIRST + k - 1
        magnitude = 2.0 ** (level // 2) * (1.4142135623730951 if level % 2 else 1.0)
        odds[k] = min(max(int(32768 / (1 + magnitude)), 64), 32704)
    return odds


@kernel
def transposed(values: np.ndarray) -> np.ndarray:
    """Copy a matrix, columns as rows, block by block so that both stay in the cache."""
    rows, columns = values.shape
    out = np.empty((columns, rows), values.dtype)
    for top in range(0, rows, 32):
        for left in range(0, columns, 32):
            for column in range(left, min(left + 32, columns)):
                for row in range(top, min(top + 32, rows)):
                    out[column, row] = values[row, column]
    return out


@kernel
def sums(values: np.ndarray, by_row: np.ndarray, by_column: np.ndarray) -> int:
    """Add the magnitudes by row and by column (int64, from zero); returns the largest."""
    rows, columns = values.shape
    largest = np.int64(0)
    part = np.zeros(columns, np.int32)
    for row in range(rows):
        total = np.int64(0)
        top = np.int64(0)
        for column in range(columns):
            magnitude = abs(np.int32(values[row, column]))
            part[column] += magnitude
            total += magnitude
            top = max(top, magnitude)
        by_row[row] += total
        largest = max(largest, top)
        if row % 16 == 15 or row == rows - 1:
            for column in range(columns):
                by_column[column] += part[column]
                part[column] = 0
    return largest


@kernel
def levels_of(sums: np.ndarray, divisor: float, most: int, levels: np.ndarray) -> None:
    """Round the logarithms of means, ``sums / divisor``, to half octaves within ±``most``."""
    for i in range(sums.size):
        if sums[i] > 0:
            level = np.rint(2 * np.log2(sums[i] / divisor))
            levels[i] = np.int16(min(max(level, -most), most))
        else:
            levels[i] = EMPTY


@kernel
def classes(row_levels: np.ndarray, column_levels: np.ndarray, out: np.ndarray) -> None:
    """Give the class of every entry (uint8)."""
    for row in range(out.shape[0]):
        level = row_levels[row] + np.int16(1 - FIRST)
        for column in range(out.shape[1]):
            k = level + column_levels[column]
            k = max(min(k, np.int16(CLASSES - 1)), np.int16(1)) if k > -500 else np.int16(0)
            out[row, column] = np.uint8(k)


@kernel
def look_up(table: np.ndarray, contexts: np.ndarray) -> None:
    """Replace contexts by what a table (uint8) says of them, in place."""
    for row in range(contexts.shape[0]):
        for column in range(contexts.shape[1]):
            contexts[row, column] = table[contexts[row, column]]


@kernel
def symbols_of(values: np.ndarray, rest: np.ndarray, half: int, symbols: np.ndarray) -> int:
    """Number the symbols: 0 … 2·half for −half … half, then what is beyond, even and odd.

    ``rest`` of shape (0, 0) stands for no prediction.
    """
    rows, columns = values.shape
    beyond = 0
    turned = rest.size > 0
    for row in range(rows):
        outside = np.int32(0)
        for column in range(columns):
            value = np.int32(values[row, column])
            if turned:
                value = -value if rest[row, column] < 0 else value
            inside = abs(value) <= half
            outside += np.int32(not inside)
            symbols[row, column] = np.uint8(value + half if inside else 2 * half + 1 + (value & 1))
        beyond += outside
    return beyond


@kernel
def values_of(symbols: np.ndarray, half: int, out: np.ndarray) -> int:
    """Undo `symbols_of` without a prediction; returns how many symbols are beyond ``half``.

    In their places stand half + 1 and half + 2.
    """
    rows, columns = symbols.shape
    beyond = 0
    for row in range(rows):
        outside = np.int32(0)
        for column in range(columns):
            value = np.int32(symbols[row, column]) - np.int32(half)
            outside += np.int32(value > half)
            out[row, column] = value
        beyond += outside
    return beyond


@kernel
def find_beyond(symbols: np.ndarray, half: int, found: np.ndarray) -> int:
    """List the positions (row by row) of symbols beyond ``half``; returns how many there are."""
    n = 0
    flat = symbols.reshape(-1)
    for i in range(flat.size):
        if flat[i] > 2 * half:
            if n < found.size:
                found[n] = i
            n += 1
    return n
