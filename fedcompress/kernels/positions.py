"""Kept entries of a matrix, row by row, where columns differ in how often they are kept.

The columns of a row are drawn without replacement from an urn that holds every column some
times at first and more often each time it has come up: the Pólya urn, whose code length is that
of the best constant odds plus about half a logarithm a column, with nothing sent beforehand.
What order the columns of a row come in does not matter, so the encoder takes the one that the
bytes written so far spell, and the decoder writes them back: bits back, without which a row of
r columns would cost log2(r!) too much (Severo et al., 2022). Written by a range asymmetric
numeral system (Duda, 2013) with a state of 64 bits and words of 32.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

LOWEST = 1 << 32  # states stay in [2**32, 2**64)
LARGEST_URN = 1 << 24  # rounding its odds costs less than a part in 2**6
_BITS = np.uint64(30)  # odds are rounded to this many bits
_MASK = np.uint64((1 << 30) - 1)
_FULL = np.uint64(1 << 30)
_ROOM = np.uint64(34)
_WORD = np.uint64(32)
_FEW = 64  # columns of a row that are found faster in a line than in a tree


@kernel
def encode(
    counts: np.ndarray, columns: np.ndarray, urn: np.ndarray, step: int, words: np.ndarray
) -> tuple[np.uint64, int]:
    """Code the columns of all rows, the last row first, into the front of ``words`` (uint32).

    Parameters
    ----------
    counts : ndarray
        int64, how many columns each row has.
    columns : ndarray
        int64, the columns of one row after another, ascending within a row.
    urn : ndarray
        int64, how often the urn holds each column behind the last row; changed to that before
        the first.
    step : int
        How many are added when a column has come up.

    Returns
    -------
    state : uint64
    position : int
        How many words; they are read from the last one.
    """
    state, position = np.uint64(LOWEST), 0
    levels = _levels(urn.size)
    tree = _tree(urn, levels)
    members = np.zeros(1 << levels, np.int32)
    few = np.empty(_FEW, np.int64)
    total = urn.sum()
    end = columns.size
    for row in range(counts.size - 1, -1, -1):
        drawn = columns[end - counts[row] : end]
        end -= drawn.size
        for column in drawn:
            total -= urn[column]
            _change(tree, levels, column, -urn[column])
            urn[column] -= step
        if drawn.size > _FEW:
            for column in drawn:
                _change(members, levels, column, 1)
        else:
            few[: drawn.size] = drawn
        for left in range(drawn.size, 0, -1):
            scale = _FULL // np.uint64(left)
            place = _place(state, scale, left)
            state, position = pop(state, _interval(place, 1, left, scale), words, position)
            if drawn.size > _FEW:
                column = _take(members, levels, place)
            else:
                column = few[place]
                for i in range(place + 1, left):
                    few[i - 1] = few[i]
            before = _put(tree, levels, column, urn[column])
            total += urn[column]
            interval = _interval(before, urn[column], total, _FULL // np.uint64(total))
            state, position = push(state, interval, words, position)
    return state, position


@kernel
def decode(
    counts: np.ndarray,
    state: np.uint64,
    words: np.ndarray,
    position: int,
    urn: np.ndarray,
    step: int,
    columns: np.ndarray,
) -> tuple[np.uint64, int]:
    """Undo `encode`: fill ``columns``, in no order within a row.

    ``words`` has room for one more word a column than the ``position`` that are read; ``urn``
    is that before the first row. Returns the state and position that encoding began with.
    """
    levels = _levels(urn.size)
    tree = _tree(urn, levels)
    members = np.zeros(1 << levels, np.int32)
    total = urn.sum()
    end = 0
    for row in range(counts.size):
        drawn = columns[end : end + counts[row]]
        end += drawn.size
        for i in range(drawn.size):
            scale = _FULL // np.uint64(total)
            column, before = _find(tree, levels, _place(state, scale, total))
            drawn[i] = column
            interval = _interval(before, urn[column], total, scale)
            state, position = pop(state, interval, words, position)
            total -= urn[column]
            _change(tree, levels, column, -urn[column])
            rank = 0
            if drawn.size > _FEW:
                rank = _put(members, levels, column, 1)
            else:
                for j in range(i):
                    rank += drawn[j] < column
            interval = _interval(rank, 1, i + 1, _FULL // np.uint64(i + 1))
            state, position = push(state, interval, words, position)
        for column in drawn:
            urn[column] += step
            total += urn[column]
            _change(tree, levels, column, urn[column])
        if drawn.size > _FEW:
            for column in drawn:
                _change(members, levels, column, -1)
    return state, position


@kernel
def _place(state: np.uint64, scale: np.uint64, total: int) -> int:
    """Give which of ``total`` intervals the state points to; the last one takes what is over."""
    place = np.int64((state & _MASK) // scale)
    return int(place) if place < total else total - 1


@kernel
def _interval(
    before: int, weight: int, total: int, scale: np.uint64
) -> tuple[np.uint64, np.uint64]:
    first = np.uint64(before) * scale
    if before + weight == total:
        return first, _FULL - first
    return first, np.uint64(weight) * scale


@kernel
def push(
    state: np.uint64, interval: tuple[np.uint64, np.uint64], words: np.ndarray, position: int
) -> tuple[np.uint64, int]:
    """Put an interval of slots (first, width) onto the state; gives it and the words' position."""
    first, width = interval
    if width != _FULL and state >= width << _ROOM:
        words[position] = np.uint32(state & np.uint64(0xFFFFFFFF))
        position += 1
        state >>= _WORD
    quotient = state // width
    return (quotient << _BITS) + (state - quotient * width) + first, position


@kernel
def pop(
    state: np.uint64, interval: tuple[np.uint64, np.uint64], words: np.ndarray, position: int
) -> tuple[np.uint64, int]:
    """Undo `push`."""
    first, width = interval
    state = width * (state >> _BITS) + (state & _MASK) - first
    if state < np.uint64(LOWEST):
        state <<= _WORD
        if position > 0:  # below the first word lie zeros without end
            position -= 1
            state |= np.uint64(words[position])
    return state, position


# Running sums of values that change: a tree whose node i has the children 2i and 2i + 1 and holds
# the sum of all values below its left child. The leaf of value j is node 2**levels + j.


@kernel
def _levels(size: int) -> int:
    levels = 0
    while 1 << levels < size:
        levels += 1
    return levels


@kernel
def _tree(values: np.ndarray, levels: int) -> np.ndarray:
    tree = np.zeros(1 << levels, np.int32)
    for i in range(values.size):
        _change(tree, levels, i, values[i])
    return tree


@kernel
def _change(tree: np.ndarray, levels: int, i: int, by: int) -> None:
    node = i + (1 << levels)
    for _ in range(levels):
        tree[node >> 1] += by * (1 - (node & 1))
        node >>= 1


@kernel
def _put(tree: np.ndarray, levels: int, i: int, by: int) -> int:
    """Add to the i-th value, and give the sum of the values before it."""
    node = i + (1 << levels)
    total = 0
    for _ in range(levels):
        right = node & 1
        node >>= 1
        total += tree[node] * right
        tree[node] += by * (1 - right)
    return total


@kernel
def _find(tree: np.ndarray, levels: int, place: int) -> tuple[int, int]:
    """Give the i whose value covers ``place`` of the running sum, and the sum before it."""
    node = 1
    left = place
    for _ in range(levels):
        right = left >= tree[node]
        left -= tree[node] * right
        node = 2 * node + right
    return node - (1 << levels), place - left


@kernel
def _take(tree: np.ndarray, levels: int, place: int) -> int:
    """Give the i whose value covers ``place`` of the running sum, and take one off that value."""
    node = 1
    left = place
    for _ in range(levels):
        right = left >= tree[node]
        left -= tree[node] * right
        tree[node] -= 1 - right
        node = 2 * node + right
    return node - (1 << levels)
