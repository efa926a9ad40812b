"""Median of integers, and their mean distance from it."""

import numpy as np

from fedcompress.kernels.jit import kernel


@kernel
def middle_of(ordered: np.ndarray) -> int:
    """Give the median of ascending integers, cut off towards zero."""
    half = ordered.size // 2
    if ordered.size % 2:
        return np.int64(ordered[half])
    return np.int64((np.float64(ordered[half - 1]) + np.float64(ordered[half])) / 2)


@kernel
def spread_about(values: np.ndarray, middle: int) -> float:
    """Give the mean distance from ``middle``; the sum of integers is exact in any order."""
    total = 0
    for value in values:
        total += abs(np.int64(value) - middle)
    return total / values.size
