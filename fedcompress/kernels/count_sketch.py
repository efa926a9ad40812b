"""Count sketches of long vectors: adding entries to a table, and estimating them from it."""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.splitmix import word

_MOST_ROWS = 64


@kernel
def add(table: np.ndarray, seed: np.uint64, x: np.ndarray, first: int) -> None:
    """Add entries ``first``, ``first + 1``, … of a vector to its sketch.

    Parameters
    ----------
    table : numpy.ndarray
        float64, shape (rows, columns), changed in place.
    seed : int
        Seed of the hash.
    x : numpy.ndarray
        float32 or float64, shape (n,).
    """
    columns = np.uint64(table.shape[1])
    for row in range(table.shape[0]):
        into = table[row]
        own = word(seed, row)
        for i in range(x.size):
            drawn = word(own, first + i)
            column = (drawn >> np.uint64(32)) * columns >> np.uint64(32)
            value = np.float64(x[i])
            into[column] += -value if drawn & np.uint64(1) else value


@kernel
def estimate(table: np.ndarray, seed: np.uint64, out: np.ndarray, first: int) -> None:
    """Estimate entries ``first``, ``first + 1``, … into ``out``: the median over the rows."""
    rows = table.shape[0]
    columns = np.uint64(table.shape[1])
    own = np.empty(_MOST_ROWS, np.uint64)
    found = np.empty(_MOST_ROWS, table.dtype)
    for row in range(rows):
        own[row] = word(seed, row)
    for i in range(out.size):
        for row in range(rows):
            drawn = word(own[row], first + i)
            column = (drawn >> np.uint64(32)) * columns >> np.uint64(32)
            value = table[row, column]
            value = -value if drawn & np.uint64(1) else value
            for at in range(row):  # sorted without a branch, which would be guessed wrong
                above = max(found[at], value)
                found[at] = min(found[at], value)
                value = above
            found[row] = value
        upper = found[rows // 2]
        out[i] = upper if rows % 2 else upper / 2 + found[rows // 2 - 1] / 2
