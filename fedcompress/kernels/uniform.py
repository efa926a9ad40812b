"""Spread of an array, and rounding to multiples of a step."""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.splitmix import word

_LANES = 16


@kernel
def spread(x: np.ndarray) -> tuple[float, float, float]:
    """Give sum, sum of squares and largest magnitude of a flat array, in float64.

    Sixteen sums run side by side, so that the order of additions does not hang on the processor.
    """
    total = np.zeros(_LANES, np.float64)
    squares = np.zeros(_LANES, np.float64)
    largest = np.zeros(_LANES, x.dtype)
    whole = x.size // _LANES * _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = x[start + lane]
            wide = np.float64(value)
            total[lane] += wide
            squares[lane] += wide * wide
            size = abs(value)
            largest[lane] = size if size > largest[lane] else largest[lane]
    for i in range(whole, x.size):
        wide = np.float64(x[i])
        total[0] += wide
        squares[0] += wide * wide
        size = abs(x[i])
        largest[0] = size if size > largest[0] else largest[0]
    for lane in range(1, _LANES):
        total[0] += total[lane]
        squares[0] += squares[lane]
        largest[0] = largest[lane] if largest[lane] > largest[0] else largest[0]
    return total[0], squares[0], np.float64(largest[0])


@kernel
def round_nearest(x: np.ndarray, step: float, out: np.ndarray) -> None:
    """Round ``x / step`` to the nearest integer, halves to even."""
    for i in range(x.size):
        out[i] = np.int32(np.rint(x[i] / step))


@kernel
def round_stochastic(
    x: np.ndarray, step: float, seed: np.uint64, most: np.int32, out: np.ndarray
) -> None:
    """Round ``x / step`` up with the probability of its fraction, within ±``most``."""
    for i in range(x.size):
        noise = np.float32(np.int32(word(seed, i) >> np.uint64(40))) * np.float32(2.0**-24)
        value = np.int32(np.floor(x[i] / step + noise))
        out[i] = min(max(value, -most), most)


@kernel
def multiples(x: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """Multiply integers by a scale of the dtype of ``out``."""
    for i in range(x.size):
        out[i] = out.dtype.type(x[i]) * scale
