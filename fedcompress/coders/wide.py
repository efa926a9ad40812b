"""Wide alphabets: the low bits of integers, which are all but uniform, are packed.

Integers that scatter over hundreds of values, or far from zero, are counted from their middle, and
only what is left above the low bits is worth a model.
"""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.errors import PayloadError
from fedcompress.wire import read_signed, write_signed

_SAMPLED = 1 << 14
_SPREAD = 24.0  # mean distance from the middle, from which on low bits are split off
_OFF = 0.75  # a middle further off, in spreads, is taken off
_MOST_SHIFT = 27  # of integers below 2**31


@dataclass(frozen=True)
class Split:
    """Where integers are counted from, and how many low bits of each are packed."""

    middle: int
    shift: int


def split_of(values: np.ndarray) -> Split | None:
    """Choose a split for integers (flat, below 2**31), or None where none is worth it."""
    from fedcompress.kernels.middle import middle_of, spread_about

    sample = np.sort(values[:: max(1, values.size // _SAMPLED)])
    middle = middle_of(sample)
    spread = spread_about(sample, middle)
    if abs(middle) <= _OFF * spread:
        middle, spread = 0, spread_about(sample, 0)
    shift = 0
    while spread / 2**shift > _SPREAD:
        shift += 1
    return Split(middle, shift) if middle or shift else None


def write_split(values: np.ndarray, split: Split) -> tuple[bytes, np.ndarray]:
    """Give the split and the low bits as bytes, and the integers above them (int64)."""
    centred = values.astype(np.int64) - split.middle
    low = pack_bits(centred & ((1 << split.shift) - 1), split.shift)
    return write_signed(split.middle) + bytes((split.shift,)) + low, centred >> split.shift


def read_split(data: memoryview, count: int) -> tuple[Split, np.ndarray, memoryview]:
    """Read a split and the low bits; gives what is behind them too."""
    middle, position = read_signed(data, 0)
    if position >= len(data) or data[position] > _MOST_SHIFT or abs(middle) >= 1 << 31:
        raise PayloadError("payload: low bits of symbols out of range; the bytes are damaged")
    shift = data[position]
    end = position + 1 + packed_size(count, shift)
    low = unpack_bits(data[position + 1 : end], count, shift)
    return Split(middle, shift), low, data[end:]


def joined(high: np.ndarray, low: np.ndarray, split: Split) -> np.ndarray:
    """Undo `write_split` (int64)."""
    return np.asarray((high.astype(np.int64) << split.shift) + low + split.middle)
