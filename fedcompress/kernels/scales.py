"""Mean magnitudes of rows and columns in half octaves, in one pass."""

import numpy as np

from fedcompress.kernels.jit import kernel

_SILENT = np.float32(1e-30)  # stands for a row or column of zeros


@kernel
def scales(x: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Give half octaves (int16) of each row's mean magnitude, and what each column adds to them.

    Rows or columns of fewer than ``fewest`` entries say nothing of their own scale.
    """
    rows, columns = x.shape
    by_row = np.zeros(rows, np.float32)
    by_column = np.zeros(columns, np.float32)
    lanes = np.empty(16, np.float32)  # sums side by side, which a vector register can hold
    whole = columns // 16 * 16
    for i in range(rows):
        lanes[:] = 0
        for j in range(0, whole, 16):
            for k in range(16):
                lanes[k] += abs(x[i, j + k])
        for j in range(whole, columns):
            lanes[0] += abs(x[i, j])
        by_row[i] = lanes.sum()
        for j in range(columns):
            by_column[j] += abs(x[i, j])
    mean = max(by_row.sum() / np.float32(rows * columns), _SILENT)
    of_rows = np.empty(rows, np.int16)
    of_columns = np.empty(columns, np.int16)
    whole_scale = 2 * np.log2(mean)
    for i in range(rows):
        own = 2 * np.log2(max(by_row[i] / np.float32(columns), _SILENT))
        of_rows[i] = np.int16(np.rint(own if columns >= fewest else whole_scale))
    for j in range(columns):
        own = 2 * np.log2(max(by_column[j] / np.float32(rows), _SILENT)) - whole_scale
        of_columns[j] = np.int16(np.rint(own)) if rows >= fewest else np.int16(0)
    return of_rows, of_columns
