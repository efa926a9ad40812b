"""Rotation and quantization of an array by block, and back, in one pass over memory."""

import numpy as np

from fedcompress.kernels.hadamard import copy
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.rotation import rotate, rotate_back

_LANES = 256


@kernel
def encode_blocks(
    x: np.ndarray,
    blocks: np.ndarray,
    seed: np.uint64,
    levels: np.ndarray,
    ends: np.ndarray,
    nearest: bool,
    symbols: np.ndarray,
    scales: np.ndarray,
) -> None:
    """Rotate every block and round it to levels in units of its root mean square.

    Parameters
    ----------
    x : numpy.ndarray
        float32, shape (n,), of magnitudes whose squares float32 holds.
    blocks : numpy.ndarray
        From `fedcompress.rotation.blocks_of`.
    seed : int
        Seed of the rotation.
    levels, ends : numpy.ndarray
        float32: 2**b levels, ascending, and the ends of their cells, the last one infinite.
    nearest : bool
        Whether scales are to make the error smallest, else the mean right.
    symbols, scales : numpy.ndarray
        uint8 of shape (n,) and float64 of shape (blocks,): zeros, filled in.
    """
    longest = _longest(blocks)
    room, spare = np.empty(longest, np.float32), np.empty(longest, np.float32)
    cells = _cells(ends)
    for b in range(blocks.shape[0]):
        start, end, rounds, stride, first = blocks[b]
        y = room[: end - start]
        copy(x[start:end], y)
        rotate(y, spare, rounds, stride, seed, first)
        power = _power(y)
        if power == 0:
            continue
        if levels.size == 2:
            _signs(y, symbols[start:end])
            along = _magnitude(y) * levels[1]
            fitted = np.float64(levels[1]) * levels[1] * y.size
        else:
            unit = np.float32(min(1 / np.sqrt(power / y.size), 1e38))  # finite
            _quantize(y, unit, ends, cells, symbols[start:end])
            along, fitted = _products(y, levels, symbols[start:end])
        scales[b] = along / fitted if nearest else power / along


@kernel
def decode_blocks(
    symbols: np.ndarray,
    blocks: np.ndarray,
    seed: np.uint64,
    levels: np.ndarray,
    out: np.ndarray,
) -> None:
    """Look up every symbol (int32) and rotate the blocks back into ``out`` (float32)."""
    spare = np.empty(_longest(blocks), np.float32)
    for b in range(blocks.shape[0]):
        start, end, rounds, stride, first = blocks[b]
        y, part = out[start:end], symbols[start:end]
        for i in range(y.size):
            y[i] = levels[np.uint32(part[i])]
        rotate_back(y, spare, rounds, stride, seed, first)


@kernel
def _longest(blocks: np.ndarray) -> int:
    longest = 0
    for b in range(blocks.shape[0]):
        longest = max(longest, blocks[b, 1] - blocks[b, 0])
    return longest


@kernel
def _total(lanes: np.ndarray) -> float:
    total = 0.0
    for value in lanes:
        total += value
    return total


@kernel
def _power(y: np.ndarray) -> float:
    """Give ‖y‖², added up in lanes, which vector instructions and plain ones keep alike."""
    lanes = np.zeros(_LANES)
    for i in range(0, y.size, _LANES):
        part = y[i : i + _LANES]
        for j in range(part.size):
            lanes[j] += np.float64(part[j]) * np.float64(part[j])
    return _total(lanes)


@kernel
def _magnitude(y: np.ndarray) -> float:
    lanes = np.zeros(_LANES)
    for i in range(0, y.size, _LANES):
        part = y[i : i + _LANES]
        for j in range(part.size):
            lanes[j] += np.float64(abs(part[j]))
    return _total(lanes)


@kernel
def _signs(y: np.ndarray, symbols: np.ndarray) -> None:
    for i in range(y.size):
        symbols[i] = y[i] >= 0


_CELLS_A_UNIT = 64  # no two ends are as near as that
_REACH = 8  # deviations; no end of a cell lies beyond
_SLACK = 1 / 1024  # of a cell, for what rounding does to a value next to its edge


@kernel
def _cells(ends: np.ndarray) -> np.ndarray:
    """Count the finite ends that lie below the 64th of a deviation of that number."""
    cells = np.empty(2 * _REACH * _CELLS_A_UNIT, np.int32)
    passed = 0
    for i in range(cells.size):
        edge = (i - _SLACK) / _CELLS_A_UNIT - _REACH
        while passed < ends.size and ends[passed] <= edge:
            passed += 1
        cells[i] = passed
    return cells


@kernel
def _quantize(
    y: np.ndarray, unit: np.float32, ends: np.ndarray, cells: np.ndarray, symbols: np.ndarray
) -> None:
    """Count the ends up to ``y * unit``; the last of ``ends`` is infinite."""
    scale, zero = np.float32(_CELLS_A_UNIT), np.float32(_REACH * _CELLS_A_UNIT)
    most = np.float32(cells.size - 1)
    for i in range(y.size):
        value = y[i] * unit
        cell = min(max(value * scale + zero, np.float32(0)), most)
        symbol = cells[np.uint32(cell)]
        symbols[i] = symbol + (value >= ends[np.uint32(symbol)])


@kernel
def _products(y: np.ndarray, levels: np.ndarray, symbols: np.ndarray) -> tuple[float, float]:
    """Give ⟨y, q⟩ and ‖q‖² for the levels q that symbols name."""
    along, fitted = np.zeros(_LANES), np.zeros(_LANES)
    for i in range(0, y.size, _LANES):
        part, names = y[i : i + _LANES], symbols[i : i + _LANES]
        for j in range(part.size):
            level = np.float64(levels[np.uint32(names[j])])
            along[j] += np.float64(part[j]) * level
            fitted[j] += level * level
    return _total(along), _total(fitted)
