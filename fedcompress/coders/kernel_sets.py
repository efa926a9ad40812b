"""Kept entries of a convolution: in which kernels they lie, and which taps of each.

The taps of one kernel change together. So the kernels that keep any are a set of their own, one
for every pair of an output and an input, and the taps of each are coded from their neighbours
(see `fedcompress.kernels.masks`).
"""

import math

import numpy as np

from fedcompress.errors import PayloadError

_MOST_TAPS = 256
_LEAST_OF_FREE = 0.9  # share that neighbours leave of the bits of taps kept at random


def taps_of(shape: tuple[int, ...]) -> int:
    """Give the taps of a kernel, 0 where arrays of this shape have no kernels."""
    taps = math.prod(shape[2:])
    return taps if len(shape) > 2 and 1 < taps <= _MOST_TAPS else 0


def split(indices: np.ndarray, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the kernels that keep any entry (ascending) and their masks (uint8)."""
    from fedcompress.kernels import rows

    kernels = np.empty(indices.size, np.int64)
    masks = np.zeros((indices.size, taps), np.uint8)
    size = rows.split(indices, taps, kernels, masks)
    return kernels[:size], masks[:size]


def encode_masks(masks: np.ndarray, shape: tuple[int, ...], most_bits: float) -> bytes | None:
    """Code which taps are kept, or give None where that takes more than ``most_bits``."""
    if _LEAST_OF_FREE * _free_bits(masks) > most_bits:
        return None
    from fedcompress.kernels import masks as coder

    odds = np.empty(masks.shape, np.uint16)
    if coder.predict(masks, shape[-1], odds) > most_bits:
        return None
    words = np.empty(masks.size + 1, np.uint32)
    state, size = coder.encode(masks, odds, words)
    return int(state).to_bytes(8, "little") + words[:size].astype("<u4").tobytes()


def decode_masks(data: memoryview, kernels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Read the ascending positions of entries that lie in ``kernels``."""
    if len(data) < 8 or len(data) % 4:
        raise PayloadError("payload: taps of kernels are cut short; the bytes are damaged")
    from fedcompress.kernels import masks as coder
    from fedcompress.kernels.positions import LOWEST

    masks = np.zeros((kernels.size, taps_of(shape)), np.uint8)
    words = np.frombuffer(data[8:], "<u4").astype(np.uint32)
    state = np.uint64(int.from_bytes(data[:8], "little"))
    final, left = coder.decode(state, words, words.size, shape[-1], masks)
    if int(final) != LOWEST or left:
        raise PayloadError("payload: words behind taps are left over; the bytes are damaged")
    owner, tap = np.nonzero(masks)
    return np.asarray(kernels[owner] * masks.shape[1] + tap)


def _free_bits(masks: np.ndarray) -> float:
    """Give the bits of masks that keep as many taps, each kernel by itself, at random."""
    counts = np.bincount(masks.sum(1))
    kept = np.flatnonzero(counts)
    ways = [math.log2(math.comb(masks.shape[1], int(k))) for k in kept]
    counts = counts[kept]
    return float(counts @ ways - counts @ np.log2(counts / counts.sum()))
