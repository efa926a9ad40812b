"""Levels of rows and columns: their mean magnitudes in half octaves, as side information."""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.errors import PayloadError

CONTEXTS = 6  # three for rows, three for columns


def levels_of(sums: np.ndarray, divisor: float) -> np.ndarray:
    """Round mean magnitudes, ``sums / divisor``, to levels (int16); `EMPTY` stands for zero."""
    from fedcompress.kernels.classes import levels_of as round_levels
    from fedcompress.kernels.learnt import MOST_LEVEL

    levels = np.empty(sums.size, np.int16)
    round_levels(sums, float(divisor), MOST_LEVEL, levels)
    return levels


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels of rows and of columns (int16): one for all rows, none of columns if not sent."""

    rows: np.ndarray
    columns: np.ndarray
    sent: int  # 1 for the rows' + 2 for the columns'

    def classes(self) -> np.ndarray:
        """Give the class of every symbol (uint8)."""
        from fedcompress.kernels import classes as kernels

        out = np.empty((self.rows.size, self.columns.size), np.uint8)
        kernels.classes(self.rows, self.columns, out)
        return out

    def put(
        self, side: AdaptiveEncoder, row_lags: np.ndarray, lags: np.ndarray, head: int, base: int
    ) -> None:
        """Add them to side information, each as a difference from the one a lag before it.

        The best of the lags (int64) is taken, or none: then from their median.
        """
        from fedcompress.kernels.learnt import spell_both

        size = 2 * (self.rows.size + self.columns.size) + 8
        values, contexts = np.empty(size, np.int64), np.empty(size, np.int64)
        count = spell_both(
            self.rows, self.columns, self.sent, row_lags, lags, head, base, values, contexts
        )
        side.put(values[:count], 0, contexts[:count])

    @staticmethod
    def take(side: AdaptiveDecoder, shape: tuple[int, int], head: int, base: int) -> "Levels":
        """Read them back."""
        from fedcompress.kernels.learnt import read_both

        rows, columns = np.empty(shape[0], np.int16), np.empty(shape[1], np.int16)
        sent = read_both(*side.memory, head, base, rows, columns)
        if sent < 0:
            raise PayloadError("payload: a level out of range; the bytes are damaged")
        return Levels(rows, columns, sent)
