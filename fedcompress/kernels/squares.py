"""Sums of squares, in double precision whatever the input, without a copy of it."""

import numpy as np

from fedcompress.kernels.jit import kernel


@kernel
def row_sums(x: np.ndarray) -> np.ndarray:
    """Sum the squares of each row of a matrix."""
    out = np.empty(x.shape[0], np.float64)
    for i in range(x.shape[0]):
        total = 0.0
        for value in x[i]:
            total += np.float64(value) * np.float64(value)
        out[i] = total
    return out
