"""Tables of frequencies out of side information."""

import numpy as np

from fedcompress.kernels import tables as kernels
from fedcompress.kernels.adaptive import take
from fedcompress.kernels.jit import kernel

CUT_SHORT, NO_TABLE, NONE_AT_ALL, TOO_WIDE, OUT_OF_RANGE = 1, 2, 3, 4, 5
_NONE8 = np.zeros(0, np.uint8)
_NO_TRELLIS = np.zeros((0, 3), np.int64)


@kernel
def read_tables(
    registers: np.ndarray,
    data: np.ndarray,
    odds: np.ndarray,
    counts: np.ndarray,
    half: int,
    groups: int,
    base: int,
    table_of: np.ndarray,
    fault: np.ndarray,
) -> np.ndarray:
    """Read levels of tables (int64, (tables, 2 · half + 3)), and the table of each context.

    ``table_of`` (uint8) is filled, and ``fault[0]`` with what is wrong, or 0: no levels, then.
    """
    none = np.empty((0, 0), np.int64)
    fault[0] = CUT_SHORT
    said = np.empty(table_of.size, np.int64)
    if not take(registers, data, odds, counts, said, base, _NONE8, 0, _NO_TRELLIS):
        return none
    known = kernels.hear_tables(said, groups, table_of)
    if known <= 0:
        fault[0] = NO_TABLE if known < 0 else NONE_AT_ALL
        return none
    reaches = np.empty(known, np.int64)
    if not take(registers, data, odds, counts, reaches, base + 1, _NONE8, 0, _NO_TRELLIS):
        return none
    for t in range(known):
        if not 0 <= reaches[t] <= half:
            fault[0] = TOO_WIDE
            return none
    size = kernels.spelled_size(reaches)
    contexts, values = np.empty(size, np.uint8), np.empty(size, np.int64)
    kernels.contexts_of(reaches, 0, contexts, 0)
    if not take(registers, data, odds, counts, values, base + 2, contexts, 0, _NO_TRELLIS):
        return none
    levels = np.empty((known, 2 * half + 3), np.int64)
    if not kernels.unspell(values, half, reaches, levels):
        fault[0] = OUT_OF_RANGE
        return none
    fault[0] = 0
    return levels
