"""The rate–distortion bound of an update whose values are taken as memoryless in each array."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Beyond this many square roots of the water level a reproduction costs more than 18 nats, and
# naming a value by itself costs at most ln n.
_REACH = 6
_GAP_BITS = 1e-3
_MOST_STEPS = 400


@final
@dataclass(frozen=True)
class RateDistortion:
    """Points of the bound, from small error to large.

    Attributes
    ----------
    nmse : ndarray
        Squared error over the squared norm of the update, ascending, shape (points,).
    bits_per_parameter : ndarray
        Fewest bits of any memoryless code of that error, shape (points,).
    """

    nmse: Values
    bits_per_parameter: Values

    def bits_at(self, nmse: float) -> float | None:
        """Interpolate the bound, linearly in ln NMSE; None outside of its points."""
        if not self.nmse[0] <= nmse <= self.nmse[-1]:
            return None
        return float(np.interp(np.log(nmse), np.log(self.nmse), self.bits_per_parameter))


def rate_distortion(
    arrays: Sequence[NDArray[np.float32]],
    *,
    smallest: float = 1e-4,
    largest: float = 400.0,
    points: int = 24,
    bins: int = 4,
) -> RateDistortion:
    """Trace the bound by the algorithm of Blahut (1972) and Arimoto (1972).

    Each array is a memoryless source with its own histogram as its distribution; one slope for
    all arrays divides the error among them as it is cheapest (reverse water-filling). What is
    left out, what arrays share and what neighbours tell of each other, is what a codec can gain
    beyond this bound.

    Parameters
    ----------
    arrays : sequence of ndarray
        Values of each array, finite, any shapes, not all zero.
    smallest, largest : float
        Between these water levels, in units of the mean square of the update. The first is about
        the NMSE at which the curve begins. The last is far above 1, since a few large values hold
        much of an update's energy.
    points : int
        Number of slopes.
    bins : int
        Bins of a histogram in one square root of the water level. Binning moves a smooth source's
        bound by less than .004 bit at 4; a source of a few values wants more.
    """
    flat = [x.ravel().astype(np.float64) for x in arrays if x.size]
    count = sum(x.size for x in flat)
    energy = sum(float(x @ x) for x in flat)
    levels = np.geomspace(smallest, largest, points) * energy / count
    traced = np.array([_point(flat, float(level), bins) for level in levels]) / [energy, count]
    traced = traced[np.argsort(traced[:, 0])]
    # A slope at which an array is just about given up converges slowly, and may lie above the
    # bound or beyond the error of sending nothing.
    falling = traced[:, 1] <= np.minimum.accumulate(traced[:, 1])
    kept = traced[falling & (traced[:, 0] < 1)]
    return RateDistortion(kept[:, 0], kept[:, 1])


def _point(flat: Sequence[Values], level: float, bins: int) -> tuple[float, float]:
    """Give squared error and bits of all arrays where error has the price 1 / (2 level)."""
    reach = _REACH * bins
    counts, starts = _histograms(flat, np.sqrt(level) / bins, reach)
    sizes = np.add.reduceat(counts, starts)
    p = counts / np.repeat(sizes, np.diff(starts, append=len(counts)))
    distances = (np.arange(-reach, reach + 1) / bins) ** 2
    kernel = np.exp(-distances / 2)
    q = _smooth(p, kernel / kernel.sum())
    occupied = p > 0
    density = np.ones_like(p)
    for _ in range(_MOST_STEPS):
        density[occupied] = _smooth(q, kernel)[occupied]
        growth = _smooth(p / density, kernel)
        # What is left to gain at this slope, at most (Blahut, 1972, theorem 6).
        gap = float(sizes @ np.log2(np.maximum.reduceat(growth, starts))) / sizes.sum()
        if gap < _GAP_BITS:
            break
        q *= growth
    density[occupied] = _smooth(q, kernel)[occupied]
    squared = float(counts @ (_smooth(q, kernel * distances) / density))
    nats = -squared / 2 - float(counts[occupied] @ np.log(density[occupied]))
    return squared * level, max(0.0, nats) / np.log(2)


def _histograms(
    flat: Sequence[Values], width: float, reach: int
) -> tuple[Values, NDArray[np.int64]]:
    """Lay the arrays' histograms side by side, far enough apart that none reaches another.

    Empty stretches inside a histogram are shortened to the same distance: updates have tails
    of a hundred standard deviations, and almost all of it is empty.
    """
    apart = 2 * reach + 1
    places, amounts, starts, end = [], [], [], 0
    for x in flat:
        bins = np.rint(x / width).astype(np.int64)
        bins -= bins.min()
        if bins.max() < 50_000_000:
            filled = np.bincount(bins)
            occupied = np.flatnonzero(filled)
            amounts.append(filled[occupied])
        else:
            occupied, filled = np.unique(bins, return_counts=True)
            amounts.append(filled)
        steps = np.minimum(np.diff(occupied), apart)
        starts.append(end)
        places.append(end + reach + np.concatenate([[0], np.cumsum(steps)]))
        end = int(places[-1][-1]) + reach + 1
    counts = np.zeros(end)
    counts[np.concatenate(places)] = np.concatenate(amounts)
    return counts, np.array(starts, dtype=np.int64)


def _smooth(x: Values, kernel: Values) -> Values:
    return np.convolve(x, kernel, mode="same")
