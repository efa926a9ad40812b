"""Mean magnitudes of rows and columns in half octaves, in one pass."""

import numpy as np

from fedcompress.kernels.jit import kernel

_SILENT = 1e-30  # stands for a row or column of zeros
_MOST = 300  # half octaves; no float32 reaches so far from another
_LANES = 16  # sums side by side, which a vector register can hold


@kernel
def scales(x: np.ndarray, fewest: int, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give half octaves (int16) of each row's mean magnitude, and what each column adds to them.

    Rows' are from ``first`` on; columns' are the kind of each (int64), and the half octaves of
    each kind. Rows or columns of fewer than ``fewest`` entries say nothing of their own scale.
    """
    rows, columns = x.shape
    by_row = np.zeros(rows, np.float32)
    by_column = np.zeros(columns, np.float32)
    lanes = np.zeros(_LANES, np.float32)
    whole = columns // _LANES * _LANES
    everything = 0.0
    for i in range(rows):
        for k in range(_LANES):
            lanes[k] = np.float32(0)
        for j in range(0, whole, _LANES):
            for k in range(_LANES):
                lanes[k] += abs(x[i, j + k])
        for j in range(whole, columns):
            lanes[0] += abs(x[i, j])
        total = np.float32(0)
        for k in range(_LANES):
            total += lanes[k]
        by_row[i] = total
        everything += total
        for j in range(columns):
            by_column[j] += abs(x[i, j])
    of_rows = np.empty(rows, np.int16)
    kind_of_columns = np.empty(columns, np.int64)
    whole_scale = 2 * np.log2(max(everything / (rows * columns), _SILENT))
    for i in range(rows):
        own = whole_scale
        if columns >= fewest:
            own = 2 * np.log2(max(np.float64(by_row[i]) / columns, _SILENT))
        of_rows[i] = np.int16(np.rint(own) - first)
    kinds = np.empty(2 * _MOST + 1, np.int64)
    for kind in range(kinds.size):
        kinds[kind] = -1
    n = 0
    for j in range(columns):
        level = 0
        if rows >= fewest:
            own = 2 * np.log2(max(np.float64(by_column[j]) / rows, _SILENT)) - whole_scale
            level = min(max(int(np.rint(own)), -_MOST), _MOST)
        if kinds[level + _MOST] < 0:
            kinds[level + _MOST] = n
            n += 1
        kind_of_columns[j] = kinds[level + _MOST]
    of_kinds = np.empty(n, np.int16)
    for level in range(-_MOST, _MOST + 1):
        if kinds[level + _MOST] >= 0:
            of_kinds[kinds[level + _MOST]] = level
    return of_rows, kind_of_columns, of_kinds
