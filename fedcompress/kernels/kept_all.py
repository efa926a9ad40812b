"""The largest entries of every array of an update, rounded, in one call; see `kept_levels`."""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.kept_levels import keep

_LARGEST = np.float32(3.4028234663852886e38)


@kernel
def keep_all(
    x: np.ndarray,
    after: np.ndarray,
    before: np.ndarray,
    residual: np.ndarray,
    ends: np.ndarray,
    kept_ends: np.ndarray,
    bits: int,
    stochastic: bool,
    seeds: np.ndarray,
    kept: np.ndarray,
    places: np.ndarray,
    symbols: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
) -> int:
    """Keep the largest magnitudes of each array and round them; take what they decode to off ``x``.

    Parameters
    ----------
    x : ndarray
        float32, the arrays one behind another; what was not kept is left in it.
    after, before, residual : ndarray
        float32, of the size of ``x``: then that is after − before + residual; or all of no size.
    ends, kept_ends : ndarray
        int64, where each array ends in ``x`` and in the arrays that are filled.
    bits, stochastic : int, bool
        As in `kept_levels.keep`.
    seeds : ndarray
        uint64, of the noise of each array.
    kept, places, symbols, values : ndarray
        int64, int64, int16 and float32, filled with positions within the array and within ``x``,
        and what is sent and decoded of each.
    steps : ndarray
        float32, filled with the step of each array.

    Returns
    -------
    int
        The first array that holds NaN or infinity; −1 where all is finite.
    """
    start, first = 0, 0
    for i in range(ends.size):
        whole = x[start : ends[i]]
        if after.size:
            _sum(after[start : ends[i]], before[start : ends[i]], residual[start : ends[i]], whole)
        chosen, said = kept[first : kept_ends[i]], symbols[first : kept_ends[i]]
        step = keep(whole, bits, stochastic, seeds[i], chosen, said)
        if step < 0:
            return i
        steps[i] = step
        for j in range(chosen.size):
            value = min(max(np.float32(said[j]) * step, -_LARGEST), _LARGEST)
            values[first + j] = value
            places[first + j] = start + chosen[j]
            whole[chosen[j]] -= value
        start, first = ends[i], kept_ends[i]
    return -1


@kernel
def _sum(after: np.ndarray, before: np.ndarray, residual: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = (after[i] - before[i]) + residual[i]
