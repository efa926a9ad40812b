"""Levels of least squared error plus bits, by what levels of each scale come to cost."""

from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcompress.rows import row_width

T = TypeVar("T", bound=np.generic)

NO_SHRINKAGE = np.zeros((2, 2), np.float32)

# Squared steps of the trellis that a bit counts. Measured on updates of three models: from .26
# to .45 the bits at equal error differ by less than 0.5 % above half a bit a parameter.
_LAGRANGE = 0.33
_FEWEST = 12  # entries of a row or column that say what its scale is
_DEAD_ZONE = 0.08  # beyond half a step, without a trellis

# Bits of level 0, ±1, ±2 and of each level more, of quantizer 0 and then 1, in entries of mean
# magnitude 2**(k/2) steps from k = −3 on: where counting what was chosen and choosing by what was
# counted came to rest, over residuals of convolutions at steps from .5 to 4. Below, all is zero.
_FIRST = -3
_BITS = np.array(
    [
        [0.00, 14.0, 16.0, 1.44, 0.00, 14.0, 16.0, 1.44],
        [0.02, 7.44, 15.0, 5.00, 0.40, 3.05, 15.0, 5.00],
        [0.19, 4.05, 12.9, 8.97, 2.44, 1.30, 8.85, 9.00],
        [0.67, 2.46, 7.58, 7.00, 3.76, 1.22, 4.95, 5.60],
        [1.24, 2.00, 4.86, 3.86, 4.41, 1.48, 3.23, 3.40],
        [1.75, 2.04, 3.51, 2.40, 4.80, 1.89, 2.61, 2.11],
        [2.26, 2.32, 2.98, 1.52, 5.39, 2.33, 2.51, 1.35],
        [2.78, 2.72, 2.89, 0.98, 5.54, 2.77, 2.67, 0.90],
        [3.26, 3.19, 3.05, 0.64, 5.96, 3.26, 2.90, 0.62],
        [3.70, 3.68, 3.30, 0.45, 6.60, 3.74, 3.21, 0.44],
        [4.20, 4.18, 3.65, 0.30, 7.00, 4.23, 3.62, 0.30],
        [4.70, 4.70, 4.10, 0.21, 7.30, 4.70, 4.10, 0.21],
    ],
    np.float32,
)
_MORE = 24  # classes beyond: half a bit more each, and levels that cost as little as lie closer


def choose_levels(
    x: NDArray[np.float32], shape: tuple[int, ...], states: int, rate_weight: float
) -> NDArray[np.int32]:
    """Choose levels for entries in units of a trellis step.

    Parameters
    ----------
    x : ndarray
        Float32, any shape; rows are those of `row_width` for ``shape``.
    shape : tuple of int
        Shape of the array.
    states : int
        Of the trellis; 0 for a uniform quantizer of twice the step with a dead zone.
    rate_weight : float
        Multiplies what a bit counts.

    Returns
    -------
    ndarray
        int32, of shape ``shape``.
    """
    if x.size == 0:
        return np.zeros(shape, np.int32)
    if states == 0:
        offset = np.float32(max(0.5 - _DEAD_ZONE * rate_weight, 0.0))
        return np.asarray(np.sign(x) * np.floor(np.abs(x) / 2 + offset), np.int32).reshape(shape)
    from fedcompress.kernels import trellis
    from fedcompress.kernels.scales import scales

    costs = _weighted(rate_weight)
    parts = []
    for part in _rows(x, shape):
        of_rows, kind_of_columns, of_kinds = scales(part, _FEWEST, _FIRST)
        levels = trellis.search_by_kind(
            part, costs, NO_SHRINKAGE, of_rows, kind_of_columns, of_kinds, states
        )
        parts.append(levels.reshape(-1))
    return _joined(parts).reshape(shape)


def entries_of(levels: NDArray[np.number], states: int) -> NDArray[np.float32]:
    """Give the entries (float32, flat) that levels stand for, in units of a trellis step.

    Float32 are entries already: some coders find them as they decode.
    """
    if levels.dtype == np.float32:
        return np.asarray(levels, np.float32).reshape(-1)
    if states == 0:
        return levels.reshape(-1).astype(np.float32) * np.float32(2)
    from fedcompress.kernels import trellis

    width = row_width(levels.shape)
    flat = np.ascontiguousarray(levels).reshape(-1)
    return trellis.reconstruct_rows(flat, width, NO_SHRINKAGE, states)


def _joined(parts: list[NDArray[T]]) -> NDArray[T]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows(x: NDArray[T], shape: tuple[int, ...]) -> list[NDArray[T]]:
    flat = x.reshape(-1)
    width = row_width(shape)
    whole = flat.size // width * width
    parts = [flat[:whole].reshape(-1, width)] if whole else []
    return [*parts, flat[whole:].reshape(1, -1)] if whole < flat.size else parts


@lru_cache(maxsize=16)
def _weighted(rate_weight: float) -> NDArray[np.float32]:
    return _costs() * np.float32(_LAGRANGE * rate_weight)


@cache
def _costs() -> NDArray[np.float32]:
    beyond = np.arange(1, _MORE + 1, dtype=np.float32)[:, None]
    halved = np.repeat(_BITS[-1:, [3, 7]], _MORE, 0) * np.exp2(-beyond / 2)
    more = _BITS[-1:] + beyond / 2
    more[:, [3, 7]] = halved
    return np.concatenate([_BITS, more]).astype(np.float32)
