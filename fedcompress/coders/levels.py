"""Levels of rows and columns: their mean magnitudes in half octaves, as side information."""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder
from fedcompress.errors import PayloadError


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

    @staticmethod
    def take(side: AdaptiveDecoder, shape: tuple[int, int], head: int, base: int) -> "Levels":
        """Read them back."""
        from fedcompress.kernels.learnt import read_both

        rows, columns = np.empty(shape[0], np.int16), np.empty(shape[1], np.int16)
        sent = read_both(*side.memory, head, base, rows, columns)
        if sent < 0:
            raise PayloadError("payload: a level out of range; the bytes are damaged")
        return Levels(rows, columns, sent)
