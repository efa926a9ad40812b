"""The largest entries of an array, rounded to multiples of a step, in one call.

What `select.largest` and `uniform.round_stochastic` do one after another; a small model has many
small arrays, and calling from the interpreter costs them more than the work.
"""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.uniform import round_nearest, round_stochastic

_MASK = np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)
_SMALL = 1 << 10
_SAMPLES = 1 << 10
_SHIFT = np.uint32(20)  # magnitudes have 31 bits: 11, 11 and 9
_SECOND = np.uint32(9)
_BINS = 2048
_LARGEST = np.float32(3.4028234663852886e38)
_TINY = 1.1754943508222875e-38
_MOST_SYMBOLS = 16777216.0


@kernel
def keep(
    x: np.ndarray, bits: int, stochastic: bool, seed: np.uint64, kept: np.ndarray, out: np.ndarray
) -> np.float32:
    """Keep as many of the largest magnitudes as ``kept`` has room for, and round them.

    Parameters
    ----------
    x : ndarray
        float32, flat.
    bits : int
        Of a symbol.
    stochastic : bool
        Whether to round up or down by the noise of ``seed``, else to the nearest.
    kept : ndarray
        int64, filled with their ascending positions; of equal magnitudes the first ones count.
    out : ndarray
        int16, filled with their symbols.

    Returns
    -------
    numpy.float32
        The step; −1 where an entry is NaN or infinite.
    """
    magnitudes = x.view(np.uint32)
    least = np.uint32(0)
    if x.size > _SMALL and kept.size < x.size:
        least = _below(magnitudes, kept.size)
    if _top(magnitudes) >= _INFINITE:
        return np.float32(-1)
    found = np.empty(x.size + 8, np.int64)
    count = _collect(magnitudes, least, found)
    if count < kept.size:  # a sample that misled
        count = _collect(magnitudes, np.uint32(0), found)
    _narrow(magnitudes, found[:count], kept)
    values = np.empty(kept.size, np.float32)
    largest = np.float32(0)
    for i in range(kept.size):
        values[i] = x[kept[i]]
        largest = max(largest, abs(values[i]))
    most = (1 << (bits - 1)) - 1
    step = _step(np.float64(largest), most)
    if stochastic:
        round_stochastic(values, step, seed, np.int32(most), out)
    else:
        round_nearest(values, step, out)
    return step


@kernel
def _step(largest: float, most: int) -> np.float32:
    if largest == 0:
        return np.float32(1)
    step = max(largest / most, largest / _MOST_SYMBOLS, _TINY)
    return min(np.float32(step), _LARGEST)


@kernel
def _below(bits: np.ndarray, k: int) -> np.uint32:
    """Give a magnitude that the k-th largest very likely exceeds, from a sample."""
    counts = np.zeros(_BINS, np.int64)
    samples = min(_SAMPLES, bits.size // 8)
    stretch = bits.size / samples
    word = np.uint64(2463534242)
    for i in range(samples):
        word ^= word << np.uint64(13)  # xorshift (Marsaglia, 2003)
        word ^= word >> np.uint64(7)
        word ^= word << np.uint64(17)
        place = int((i + (word >> np.uint64(32)) / 4294967296.0) * stretch)
        counts[(bits[min(bits.size - 1, place)] & _MASK) >> _SHIFT] += 1
    rank = k / bits.size * samples
    wanted = rank + 5 * np.sqrt(rank) + 5
    above = 0
    for i in range(_BINS - 1, 0, -1):
        above += counts[i]
        if above >= wanted:
            return np.uint32(i) << _SHIFT
    return np.uint32(0)


@kernel
def _top(bits: np.ndarray) -> np.uint32:
    """Give the largest magnitude."""
    top = np.uint32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & _MASK)
    return top


@kernel
def _collect(bits: np.ndarray, least: np.uint32, found: np.ndarray) -> int:
    """Collect positions of magnitudes from ``least`` on, of eight at a time; give how many."""
    flags = np.empty((bits.size + 7) // 8 * 8, np.uint8)
    for i in range(bits.size):
        flags[i] = (bits[i] & _MASK) >= least
    for i in range(bits.size, flags.size):
        flags[i] = 0
    count = 0
    words = flags.view(np.uint64)
    for i in range(words.size):
        if words[i]:
            for j in range(8 * i, 8 * i + 8):
                found[count] = j
                count += flags[j]
    return count


@kernel
def _narrow(bits: np.ndarray, found: np.ndarray, kept: np.ndarray) -> None:
    """Of the positions found keep the largest, in three passes over digits of their bits."""
    magnitudes = np.empty(found.size, np.uint32)
    counts = np.zeros(_BINS, np.int64)
    for j in range(found.size):
        magnitudes[j] = bits[found[j]] & _MASK
        counts[magnitudes[j] >> _SHIFT] += 1
    digit, wanted = _digit(counts, kept.size)
    close = np.empty(counts[digit] + 1, np.uint32)  # those that begin with this digit
    size = 0
    for magnitude in magnitudes:
        close[size] = magnitude
        size += (magnitude >> _SHIFT) == digit
    prefix = np.uint32(digit)
    counts[:] = 0
    for magnitude in close[:size]:
        counts[(magnitude >> _SECOND) & np.uint32(2047)] += 1
    digit, wanted = _digit(counts, wanted)
    prefix = prefix << np.uint32(11) | np.uint32(digit)
    counts[:] = 0
    for magnitude in close[:size]:
        if magnitude >> _SECOND == prefix:
            counts[magnitude & np.uint32(511)] += 1
    digit, ties = _digit(counts, wanted)
    least = prefix << _SECOND | np.uint32(digit)
    count = 0
    for j in range(found.size):
        if magnitudes[j] > least or (magnitudes[j] == least and ties > 0):
            ties -= magnitudes[j] == least
            kept[count] = found[j]
            count += 1


@kernel
def _digit(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Give the bin of the wanted-th largest, and the how-manieth it is there."""
    for i in range(counts.size - 1, 0, -1):
        if counts[i] >= wanted:
            return i, wanted
        wanted -= counts[i]
    return 0, wanted
