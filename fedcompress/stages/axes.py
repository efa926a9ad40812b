"""Where neighbouring entries of a layer's update are alike: kernels and images.

The k×k taps of a convolution are smooth across each kernel, and the rows of a layer that sees an
image, or the maps of a flattened convolution, are smooth across the image.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MOST = 64  # longest side of a block that is transformed
Axes = tuple[int, int]
NONE: Axes = (1, 1)

_SAMPLE = 1 << 13  # entries looked at
_ROWS = 24
_ALIKE = 0.1  # correlation of neighbours below which nothing is tried
_CANDIDATES = 1
_WORTH = 0.99  # of the bits without


@lru_cache(maxsize=4096)
def axes_of(side: int, shape: tuple[int, ...]) -> Axes | None:
    """Give the sides (h, w) of blocks that a number stands for; None if it stands for nothing.

    0 stands for (1, 1); for kernels 1 stands for their taps, the last one or two axes behind the
    second; for matrices w stands for squares (w, w) where they fit in a row, else for one image
    of w columns.
    """
    if side == 0:
        return NONE
    if len(shape) > 2:
        axes = (shape[-2] if len(shape) > 3 else 1, shape[-1])
        return axes if side == 1 and axes != NONE and max(axes) <= MOST else None
    columns = shape[-1]
    if len(shape) < 2 or not 2 <= side <= MOST or columns % side:
        return None
    if columns % (side * side) == 0:
        return side, side
    return (columns // side, side) if columns // side <= MOST else None


def choose_side(matrix: NDArray[np.float32], shape: tuple[int, ...], scale: float) -> int:
    """Give the number of the blocks whose cosine transform saves most bits; 0 for none.

    Parameters
    ----------
    matrix : ndarray
        The array as a matrix, its first axis by the rest, float32.
    shape : tuple of int
        The array's own shape.
    scale : float
        What makes the entries units of the trellis' step.
    """
    from fedcompress.kernels.cosine import transform
    from fedcompress.kernels.rank import cost

    rows, columns = matrix.shape
    count = min(rows, _ROWS, max(_SAMPLE // columns, 8))
    sample = np.ascontiguousarray(matrix[:: rows // count][:count]) * np.float32(scale)
    best, best_bits = 0, _WORTH * cost(sample)
    for side in _candidates(sample, shape):
        h, w = axes_of(side, shape) or NONE
        bits = cost(transform(sample, h, w, 1.0))
        if bits < best_bits:
            best, best_bits = side, bits
    return best


def _candidates(sample: NDArray[np.float32], shape: tuple[int, ...]) -> list[int]:
    if len(shape) > 2:
        return [1] if axes_of(1, shape) else []
    columns = sample.shape[1]
    if columns < 4:
        return []
    # What entries share at any distance is no smoothness: a distant lag is the measure.
    flat = sample.reshape(-1)
    apart = _correlation(flat, columns // 2 | 1)
    least = apart + _ALIKE * (float(np.dot(flat, flat)) - apart)
    if _correlation(flat, 1) < least:
        return []
    alike = {w: _correlation(flat, w) for w in _sides(shape)}
    sides = [w for w in sorted(alike, key=lambda w: -alike[w]) if alike[w] >= least]
    return sides[:_CANDIDATES]


@lru_cache(maxsize=256)
def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(w for w in range(2, MOST + 1) if axes_of(w, shape))


def _correlation(flat: NDArray[np.float32], lag: int) -> float:
    return float(np.dot(flat[lag:], flat[:-lag]))
