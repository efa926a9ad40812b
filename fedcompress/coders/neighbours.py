"""Prediction of symbols from neighbours: taps of a kernel, pixels of the image a layer sees.

The weights of a layer that see neighbouring inputs change alike. Columns of its update are
predicted from columns before them at a few lags, by weights fitted to the update (least squares)
and sent; taps of a kernel, and places of a small map, have weights of their own each.
"""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder
from fedcompress.coders.symbol_model import EXTRA
from fedcompress.errors import PayloadError

_MOST_LAGS, _MOST_PHASES, _LARGEST = 8, 64, 127
_LEAST_GAIN = 0.02  # share of energy that a prediction must take away to be tried
_SAMPLED = 1 << 16


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Lags (int64) and weights (int8, (phases, lags)) in units of 1/32.

    ``gain`` is the share of energy that the prediction took away where it was fitted.
    """

    lags: np.ndarray
    weights: np.ndarray
    gain: float = 0.0

    def said(self) -> list[tuple[int, int]]:
        """Give them as contexts and integers in them."""
        steps = np.diff(self.lags, prepend=0).tolist()
        weights = self.weights.reshape(-1).tolist()
        return [
            (EXTRA, self.lags.size),
            (EXTRA, len(self.weights)),
            *((EXTRA + 1, step) for step in steps),
            *((EXTRA + 2, weight) for weight in weights),
        ]

    @staticmethod
    def take(side: AdaptiveDecoder, columns: int) -> "Neighbours":
        """Read them back."""
        count, phases = side.take(2, EXTRA).tolist()
        if not (1 <= count <= _MOST_LAGS and 1 <= phases <= _MOST_PHASES):
            raise PayloadError("payload: a prediction of no known form; the bytes are damaged")
        steps = side.take(count, EXTRA + 1)
        weights = side.take(count * phases, EXTRA + 2)
        if steps.min() < 1 or steps.max() > columns or np.abs(weights).max() > _LARGEST:
            raise PayloadError("payload: a prediction out of range; the bytes are damaged")
        return Neighbours(steps.cumsum(), weights.astype(np.int8).reshape(phases, count))


def fit_neighbours(values: np.ndarray, shape: tuple[int, ...]) -> Neighbours | None:
    """Fit a prediction to a matrix given column by column, or find that none is worth trying.

    Parameters
    ----------
    values : ndarray
        int16, shape (columns, rows) of the array's matrix.
    shape : tuple of int
        Shape of the array.
    """
    from fedcompress.kernels import along

    found, phases = _structure(values, shape)
    lags = np.array(found, np.int64)
    grams = np.zeros((phases, lags.size + 1, lags.size + 1))
    step = min(max(1, values.size // _SAMPLED), max(1, len(values) // phases // 8))
    along.correlate(values, lags, phases, step, grams)
    grams += np.triu(grams, 1).transpose(0, 2, 1)
    a, b, energy = grams[:, :-1, :-1], grams[:, :-1, -1], grams[:, -1, -1].sum()
    if energy == 0:
        return None
    ridge = 1e-3 * np.trace(a, axis1=1, axis2=2) / lags.size + 1e-9
    solved = np.linalg.solve(a + ridge[:, None, None] * np.eye(lags.size), b[:, :, None])[:, :, 0]
    weights = np.clip(np.rint(solved * along.UNIT), -_LARGEST, _LARGEST)
    w = weights / along.UNIT
    taken = 2 * (w * b).sum() - np.einsum("pi,pij,pj->", w, a, w)
    if taken < _LEAST_GAIN * energy:
        return None
    return Neighbours(lags, weights.astype(np.int8), float(taken / energy))


def may_have_neighbours(columns: int, shape: tuple[int, ...]) -> bool:
    """Whether the shape suggests taps of a kernel, or a square image or map."""
    if len(shape) > 2:
        return int(np.prod(shape[2:], dtype=np.int64)) > 1
    return len(shape) == 2 and bool(_widths(columns))


def _widths(columns: int) -> list[int]:
    return [width for width in range(4, 65) if columns % (width * width) == 0]


def _structure(values: np.ndarray, shape: tuple[int, ...]) -> tuple[list[int], int]:
    """Choose lags and phases."""
    columns = len(values)
    if len(shape) > 2:
        taps = int(np.prod(shape[2:], dtype=np.int64))
        phases = taps if taps <= _MOST_PHASES and columns >= 4 * taps else 1
        return _lags(shape[-1], taps, columns), phases
    from fedcompress.kernels.along import likeness

    step = max(1, columns // 64)
    width = max(_widths(columns), key=lambda w: likeness(values, w, step))
    area = width * width
    phases = area if area <= _MOST_PHASES and columns >= 8 * area else 1
    return _lags(width, area, columns), phases


def _lags(width: int, area: int, columns: int) -> list[int]:
    lags = {1, 2, width - 1, width, width + 1, 2 * width, area}
    return sorted(lag for lag in lags if 0 < lag < columns)
