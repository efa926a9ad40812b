"""Levels of rows and columns: their mean magnitudes in half octaves, as side information."""

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.errors import PayloadError

CONTEXTS = 3
_HEAD, _EMPTINESS, _DIFFERENCE = 0, 1, 2
_MOST = 50
_UNIT = 2  # levels an octave


def levels_of(means: np.ndarray) -> np.ndarray:
    """Round mean magnitudes to levels (int16); `EMPTY` stands for zero."""
    from fedcompress.kernels.classes import EMPTY

    with np.errstate(divide="ignore"):
        octaves = np.rint(_UNIT * np.log2(means))
    return np.where(means > 0, np.clip(octaves, -_MOST, _MOST), EMPTY).astype(np.int16)


def put_levels(
    out: AdaptiveEncoder, levels: np.ndarray, lags: tuple[int, ...], context: int
) -> None:
    """Add levels, each as the difference from the one ``lag`` before it.

    The best of ``lags`` is taken, or none: then they are differences from the median.
    """
    from fedcompress.kernels.classes import EMPTY

    empty = levels == EMPTY
    said = levels[~empty].astype(np.int64)
    middle = int(np.median(said)) if said.size else 0
    best, chosen = said - middle, 0
    for lag in lags:
        if lag < said.size:
            differences = said.copy()
            differences[lag:] -= said[:-lag]
            if _cost(differences) < _cost(best):
                best, chosen = differences, lag
    out.put([chosen, middle, int(empty.any())], context + _HEAD)
    if empty.any():
        out.put(empty, context + _EMPTINESS)
    out.put(best, context + _DIFFERENCE)


def take_levels(data: AdaptiveDecoder, count: int, context: int) -> np.ndarray:
    """Read levels back (int16)."""
    from fedcompress.kernels.classes import EMPTY

    lag, middle, any_empty = data.take(3, context + _HEAD).tolist()
    if not 0 <= lag <= count or abs(middle) > _MOST:
        raise PayloadError("payload: levels of rows that do not exist; the bytes are damaged")
    empty = np.zeros(count, np.bool_)
    if any_empty:
        empty = data.take(count, context + _EMPTINESS) != 0
    differences = data.take(int(count - empty.sum()), context + _DIFFERENCE)
    if int(np.abs(differences).max(initial=0)) > 4 * _MOST:
        raise PayloadError("payload: a level out of range; the bytes are damaged")
    if lag == 0:
        said = differences + middle
    else:
        padded = np.zeros(-(-differences.size // lag) * lag, np.int64)
        padded[: differences.size] = differences
        said = padded.reshape(-1, lag).cumsum(0).reshape(-1)[: differences.size]
    if int(np.abs(said).max(initial=0)) > _MOST:
        raise PayloadError("payload: a level out of range; the bytes are damaged")
    levels = np.full(count, EMPTY, np.int16)
    levels[~empty] = said
    return levels


def _cost(differences: np.ndarray) -> float:
    return float(np.log2(1 + 2 * np.abs(differences)).sum())
