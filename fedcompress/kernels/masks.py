"""Which taps of a kernel are kept, tap by tap, from those before it.

The taps of a kernel change together: a tap is likelier to be kept where the one to its left or
the one above is, and the more of the kernel is. Every such case learns its own odds, as in
`fedcompress.kernels.adaptive`. Odds are learnt forwards and written backwards, by the numeral
system of `fedcompress.kernels.positions`.
"""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.positions import LOWEST, pop, push

_CASES = 12  # of a tap: left, above, and none, one or more kept so far
_BITS = 15
_ONE = 1 << _BITS
_SCALE = np.uint64(1 << (30 - _BITS))
_SLOWEST = 126
_RATES = np.array([int(65536 / (n + 1.5)) for n in range(_SLOWEST + 1)], np.int64)
_LEAST = 32  # odds stay this far from none and all


@kernel
def predict(masks: np.ndarray, width: int, odds: np.ndarray) -> float:
    """Fill ``odds`` (uint16, the shape of ``masks``) with those of each tap, 0 where it is sure.

    ``masks`` (kernels, taps) is uint8, each kernel with a tap at least; ``width`` taps are a row
    of a kernel. Returns the bits that it takes to write them.
    """
    taps = masks.shape[1]
    learnt, counts = _untaught(taps)
    costs = np.empty(_ONE + 1, np.float32)
    costs[1:] = _BITS - np.log2(np.arange(1, _ONE + 1))
    bits = 0.0
    for i in range(masks.shape[0]):
        kept = 0
        mask = masks[i]
        for tap in range(taps):
            if kept == 0 and tap == taps - 1:
                odds[i, tap] = 0
                continue
            case = _case(mask, tap, width, kept)
            chance = learnt[case]
            odds[i, tap] = chance
            bits += costs[chance if mask[tap] else _ONE - chance]
            _learn(learnt, counts, case, mask[tap])
            kept += mask[tap]
    return bits


@kernel
def encode(masks: np.ndarray, odds: np.ndarray, words: np.ndarray) -> tuple[np.uint64, int]:
    """Write masks under ``odds``, the last first; give the state and how many ``words``."""
    state, position = np.uint64(LOWEST), 0
    for i in range(masks.shape[0] - 1, -1, -1):
        for tap in range(masks.shape[1] - 1, -1, -1):
            if odds[i, tap]:
                interval = _interval(odds[i, tap], masks[i, tap])
                state, position = push(state, interval, words, position)
    return state, position


@kernel
def decode(
    state: np.uint64, words: np.ndarray, position: int, width: int, masks: np.ndarray
) -> tuple[np.uint64, int]:
    """Fill ``masks``; give the state and position that encoding began with."""
    taps = masks.shape[1]
    learnt, counts = _untaught(taps)
    for i in range(masks.shape[0]):
        kept = 0
        for tap in range(taps):
            if kept == 0 and tap == taps - 1:
                masks[i, tap] = 1
                continue
            case = _case(masks[i], tap, width, kept)
            bound = np.uint64(learnt[case]) * _SCALE
            bit = 1 if (state & np.uint64((1 << 30) - 1)) < bound else 0
            state, position = pop(state, _interval(learnt[case], bit), words, position)
            masks[i, tap] = bit
            _learn(learnt, counts, case, bit)
            kept += bit
    return state, position


@kernel
def _untaught(taps: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(taps * _CASES, _ONE // 4, np.int32), np.zeros(taps * _CASES, np.int32)


@kernel
def _case(mask: np.ndarray, tap: int, width: int, kept: int) -> int:
    left = mask[tap - 1] if tap % width else 0
    above = mask[tap - width] if tap >= width else 0
    return tap * _CASES + 4 * min(kept, 2) + 2 * left + above


@kernel
def _learn(learnt: np.ndarray, counts: np.ndarray, case: int, bit: int) -> None:
    n = counts[case]
    odds = learnt[case]
    odds += ((bit * _ONE - odds) * _RATES[n]) >> 16
    learnt[case] = min(max(odds, _LEAST), _ONE - _LEAST)
    counts[case] = min(n + 1, _SLOWEST)


@kernel
def _interval(odds: int, bit: int) -> tuple[np.uint64, np.uint64]:
    bound = np.uint64(odds) * _SCALE
    if bit:
        return np.uint64(0), bound
    return bound, np.uint64(1 << 30) - bound
