"""Positions of the largest magnitudes, without sorting.

The magnitude of a finite float is ordered as its bits without the sign, so kernels compare
integers. Writing a position before knowing whether it counts spares a branch an entry.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

_SAMPLES = 1 << 15
_BLOCK = 4096
_SMALL = 1 << 13
_SHORT = 32
_TILE = 256


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Give ascending positions (int64) of the k largest magnitudes, of equal ones the first.

    A sample brackets the k-th magnitude, one pass collects what may reach it, and only what
    lies within the bracket is ranked. The sample decides how fast it is, not what comes out.

    Parameters
    ----------
    x : numpy.ndarray
        Finite float32 or float64, flat and contiguous.
    k : int
        From 1 to ``x.size``.
    """
    bits, mask = _bits(x)
    if k == x.size:
        return np.arange(x.size)
    if x.size <= _SMALL:
        return _largest_of_all(bits, mask, k)
    low, high = _bracket(bits, mask, k)
    room = min(x.size, 2 * k + x.size // 16) + _BLOCK
    found, magnitudes = np.empty(room, np.int64), np.empty(room, bits.dtype)
    count = _collect(bits, mask, low, found, magnitudes)
    ranked = magnitudes[:count][magnitudes[:count] < high]
    wanted = k - (count - ranked.size)
    if not 0 < wanted <= ranked.size:  # a sample that misled, or many equal entries
        return _largest_of_all(bits, mask, k)
    ranked.partition(ranked.size - wanted)
    least = ranked[ranked.size - wanted]
    ties = wanted - int(np.count_nonzero(ranked[ranked.size - wanted :] > least))
    return _narrow(found[:count], magnitudes, least, ties, k)


def _largest_of_all(bits: np.ndarray, mask: np.unsignedinteger, k: int) -> np.ndarray:
    magnitude = bits & mask
    least = np.partition(magnitude, bits.size - k)[bits.size - k]
    return _first_of(bits, mask, least, k - int(np.count_nonzero(magnitude > least)), k)


def largest_of_rows(x: np.ndarray, k: int) -> np.ndarray:
    """Give ascending flat positions (int64) of the k largest magnitudes of every row."""
    bits, mask = _bits(x)
    if x.shape[1] <= _SHORT:
        return _first_of_short_rows(bits, mask, k)
    magnitude = bits & mask
    magnitude.partition(x.shape[1] - k, axis=1)
    found = np.empty((x.shape[0], k), np.int64)
    _first_of_rows(bits, mask, magnitude, found)
    return found.reshape(-1)


def at_least(x: np.ndarray, magnitude: float) -> np.ndarray:
    """Give ascending positions (int64) whose magnitude is at least ``magnitude``, above 0."""
    bits, mask = _bits(x)
    with np.errstate(over="ignore"):  # beyond the largest float nothing is kept
        least = np.array([magnitude], x.dtype).view(bits.dtype)[0]
    found = np.empty(x.size, np.int64)
    return found[: _collect_block(bits, mask, least, found)].copy()


def _bits(x: np.ndarray) -> tuple[np.ndarray, np.unsignedinteger]:
    unsigned = np.uint32 if x.dtype == np.float32 else np.uint64
    return x.view(unsigned), unsigned(np.iinfo(unsigned).max >> 1)


def _bracket(
    bits: np.ndarray, mask: np.unsignedinteger, k: int
) -> tuple[np.unsignedinteger, np.unsignedinteger]:
    """Give magnitudes below and above which the k-th is very likely not to lie."""
    sample = _sample(bits, mask, min(_SAMPLES, bits.size // 16))
    sample.sort()
    rank = k / bits.size * sample.size
    slack = 5 * np.sqrt(rank) + 5
    low = sample[max(0, int(sample.size - rank - slack))]
    over = int(sample.size - rank + slack)
    high = sample[over] if over < sample.size else mask
    return low, high


@kernel
def _sample(bits: np.ndarray, mask: np.unsignedinteger, count: int) -> np.ndarray:
    """Draw one entry from each of ``count`` stretches, at a place that no period matches."""
    out = np.empty(count, bits.dtype)
    stretch = bits.size / count
    word = np.uint64(2463534242)
    for i in range(count):
        word ^= word << np.uint64(13)  # xorshift (Marsaglia, 2003)
        word ^= word >> np.uint64(7)
        word ^= word << np.uint64(17)
        place = int((i + (word >> np.uint64(32)) / 4294967296.0) * stretch)
        out[i] = bits[min(bits.size - 1, place)] & mask
    return out


@kernel
def _collect(
    bits: np.ndarray,
    mask: np.unsignedinteger,
    low: np.unsignedinteger,
    found: np.ndarray,
    magnitudes: np.ndarray,
) -> int:
    """Collect what is at or above ``low``; give the count, 0 where there is no room."""
    count = 0
    for start in range(0, bits.size, _BLOCK):
        if count + _BLOCK > found.size:
            return 0
        block = bits[start : start + _BLOCK]
        size = _collect_block(block, mask, low, found[count:])
        for j in range(count, count + size):
            magnitudes[j] = block[found[j]] & mask
            found[j] += start
        count += size
    return count


@kernel
def _collect_block(
    block: np.ndarray, mask: np.unsignedinteger, low: np.unsignedinteger, found: np.ndarray
) -> int:
    count = 0
    for i in range(block.size):
        found[count] = i
        count += (block[i] & mask) >= low
    return count


@kernel
def _narrow(
    found: np.ndarray, magnitudes: np.ndarray, least: np.unsignedinteger, ties: int, k: int
) -> np.ndarray:
    """Of the positions found keep those above ``least`` and the first ``ties`` equal to it."""
    out = np.empty(k, np.int64)
    count = 0
    for j in range(found.size):
        if magnitudes[j] > least or (magnitudes[j] == least and ties > 0):
            ties -= magnitudes[j] == least
            out[count] = found[j]
            count += 1
    return out


@kernel
def _first_of(
    bits: np.ndarray, mask: np.unsignedinteger, least: np.unsignedinteger, ties: int, k: int
) -> np.ndarray:
    """Give the k positions above ``least`` or among the first ``ties`` equal to it."""
    out = np.empty(k + 1, np.int64)
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & mask
        tie = magnitude == least and ties > 0
        ties -= tie
        out[count] = i
        count += (magnitude > least) | tie
    return out[:k].copy()


@kernel
def _first_of_rows(
    bits: np.ndarray, mask: np.unsignedinteger, parted: np.ndarray, found: np.ndarray
) -> None:
    """Of each row find those above the k-th magnitude and the first that are equal to it."""
    rows, k = found.shape
    columns = bits.shape[1]
    places = np.empty(columns, np.int64)
    for row in range(rows):
        least = parted[row, columns - k]
        count = _collect_block(bits[row], mask, least, places)
        ties = k
        if count > k:
            for magnitude in parted[row, columns - k :]:
                ties -= magnitude > least
        kept = 0
        for i in places[:count]:
            tie = (bits[row, i] & mask) == least
            if not tie or ties > 0:
                ties -= tie
                found[row, kept] = row * columns + i
                kept += 1


@kernel
def _first_of_short_rows(bits: np.ndarray, mask: np.unsignedinteger, k: int) -> np.ndarray:
    """Find the k largest of each row by comparing all pairs, many rows at a time."""
    rows, columns = bits.shape
    out = np.empty(rows * k + 1, np.int64)
    magnitudes = np.empty((columns, _TILE), bits.dtype)
    ranks = np.empty((columns, _TILE), np.int32)
    count = 0
    for start in range(0, rows, _TILE):
        size = min(_TILE, rows - start)
        for row in range(size):
            for i in range(columns):
                magnitudes[i, row] = bits[start + row, i] & mask
        ranks[:] = 0
        for i in range(columns):
            for j in range(i + 1, columns):
                _compare(magnitudes[i], magnitudes[j], ranks[i], ranks[j])
        for row in range(size):
            for i in range(columns):
                out[count] = (start + row) * columns + i
                count += ranks[i, row] < k
    return out[:count]


@kernel
def _compare(first: np.ndarray, second: np.ndarray, above: np.ndarray, behind: np.ndarray) -> None:
    """Count for each how often the other one is larger; of equal ones the first comes first."""
    for row in range(first.size):
        larger = np.int32(second[row] > first[row])
        above[row] += larger
        behind[row] += np.int32(1) - larger
