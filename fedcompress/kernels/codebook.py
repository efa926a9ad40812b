"""The Lloyd–Max codebook of an array from a histogram of its entries.

Bins are spaced as floats are, 128 to the octave, from the largest magnitude 24 octaves down, so
that one pass fills them and their number does not hang on the size or the tails of the array.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

SHIFT = 16  # bits of a float32 below its bin
OCTAVES = 24
SIDE = OCTAVES << (23 - SHIFT)  # bins of either sign
BINS = 2 * SIDE + 1
_MOST_ROUNDS = 200
_LEAST_GAIN = 1e-4  # of the squared error that is left; less than this ends it


@kernel
def histogram(bits: np.ndarray, base: int) -> np.ndarray:
    """Count the entries in each bin; ``bits`` are those of float32 (uint32), see `base_of`."""
    counts = np.zeros(BINS, np.int64)
    for word in bits:
        place = (np.int64(word & np.uint32(0x7FFFFFFF)) >> SHIFT) - base
        if place <= 0:
            counts[SIDE] += 1
        else:
            counts[SIDE - place if word >> np.uint32(31) else SIDE + place] += 1
    return counts


def base_of(largest: float) -> int:
    """Give what is taken off the top bits of a magnitude to get its bin."""
    top = int(np.float32(largest).view(np.uint32)) >> SHIFT
    return max(top - SIDE, 0)


def bin_values(places: np.ndarray, base: int) -> np.ndarray:
    """Give the value in the middle of bins (float64), 0 for the middle one."""
    steps = places.astype(np.int64) - SIDE
    words = ((np.abs(steps) + base) << SHIFT) + (1 << (SHIFT - 1))
    return np.sign(steps) * words.astype(np.uint32).view(np.float32).astype(np.float64)


@kernel
def lloyd(values: np.ndarray, counts: np.ndarray, k: int, pinned: bool) -> np.ndarray:
    """Give ``k`` ascending centroids of ascending ``values``, more than ``k``, by Lloyd's rounds.

    It starts from the density of levels that is best at high rate, the cube root of the density
    of entries (Panter & Dite, 1951). If ``pinned``, one centroid is zero throughout.
    """
    n = values.size
    mass = np.zeros(n + 1)
    moment = np.zeros(n + 1)
    spread = np.zeros(n + 1)
    energy = 0.0
    for i in range(n):
        width = (values[min(i + 1, n - 1)] - values[max(i - 1, 0)]) / 2
        mass[i + 1] = mass[i] + counts[i]
        moment[i + 1] = moment[i] + counts[i] * values[i]
        spread[i + 1] = spread[i] + (counts[i] * width * width) ** (1 / 3)
        energy += counts[i] * values[i] ** 2
    centroids = np.empty(k)
    at = 0
    for j in range(k):
        while spread[at + 1] < (j + 0.5) / k * spread[n]:
            at += 1
        centroids[j] = values[at]
    zero = np.argmin(np.abs(centroids)) if pinned else -1
    before = np.inf
    for _ in range(_MOST_ROUNDS):
        if pinned:
            centroids[zero] = 0.0
        first, explained = 0, 0.0
        for j in range(k):
            last = n
            if j + 1 < k:
                last = np.searchsorted(values, (centroids[j] + centroids[j + 1]) / 2, "right")
            entries = mass[last] - mass[first]
            if entries > 0 and j != zero:
                total = moment[last] - moment[first]
                centroids[j] = total / entries
                explained += total * centroids[j]
            first = last
        error = energy - explained
        if before - error <= _LEAST_GAIN * error:
            break
        before = error
    return centroids


@kernel
def cell_means(x: np.ndarray, symbols: np.ndarray, centroids: np.ndarray) -> None:
    """Put the mean of the entries (float32) of each symbol into ``centroids`` (float64)."""
    totals = np.zeros(centroids.size)
    counts = np.zeros(centroids.size, np.int64)
    for i in range(x.size):
        j = symbols[i]
        totals[j] += x[i]
        counts[j] += 1
    for j in range(centroids.size):
        if counts[j] > 0:
            centroids[j] = totals[j] / counts[j]
