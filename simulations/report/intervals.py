"""Mean and Student-t interval over seeds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95


def half_width(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the 95 % t-interval of the mean over axis 0 (Student, 1908).

    t(n - 1) · s / √n with the sample deviation s. NaN where fewer than two values stand: one
    seed says nothing about the spread, and 0 would claim certainty.

    Parameters
    ----------
    values
        Shape (seeds, ...).

    Returns
    -------
    NDArray[np.float64]
        Shape (...).
    """
    count = values.shape[0]
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    quantile = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    return np.asarray(quantile * values.std(axis=0, ddof=1) / np.sqrt(count))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (NaN with fewer than two values)."""
    if not values:
        return float("nan"), float("nan")
    seeds = np.asarray(values, dtype=np.float64)
    return float(seeds.mean()), float(half_width(seeds))
