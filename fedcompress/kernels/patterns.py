"""Which n of every m entries are kept, as one number a group and back."""

import numpy as np

from fedcompress.kernels.jit import kernel


@kernel
def number(kept: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Number the pattern of each group of ascending positions.

    ``table`` (m, n) holds what a place adds to the number of a pattern as its i-th; ``kept`` has
    n positions a group, the last group may have fewer.
    """
    m, n = table.shape
    for group in range(out.size):
        total = 0
        for i in range(min(n, kept.size - group * n)):
            total += table[kept[group * n + i] - group * m, i]
        out[group] = total


@kernel
def places(numbers: np.ndarray, table: np.ndarray, m: int, out: np.ndarray) -> None:
    """Write the positions of each group's pattern, as many as ``out`` holds.

    ``table`` (patterns, n) holds the places of every pattern.
    """
    n = table.shape[1]
    for group in range(numbers.size):
        for i in range(min(n, out.size - group * n)):
            out[group * n + i] = group * m + table[numbers[group], i]
