"""Integers of a fixed width to bytes and back, most significant bit first."""

import numpy as np

from fedcompress.kernels.jit import kernel

_HALF = 32  # wider integers go in two parts, so that a word always holds what waits


@kernel
def pack(values: np.ndarray, width: int, out: np.ndarray) -> None:
    """Write the low ``width`` bits (1 to 64) of every integer into ``out`` (uint8)."""
    lower = min(width, _HALF)
    mask = (np.uint64(1) << np.uint64(lower)) - np.uint64(1)
    waiting = np.uint64(0)
    bits = 0
    at = 0
    for value in values:
        if width > _HALF:
            upper = np.uint64(value) >> np.uint64(_HALF)
            waiting = (waiting << np.uint64(width - _HALF)) | upper
            bits += width - _HALF
            while bits >= 8:
                bits -= 8
                out[at] = np.uint8(waiting >> np.uint64(bits) & np.uint64(255))
                at += 1
        waiting = (waiting << np.uint64(lower)) | (np.uint64(value) & mask)
        bits += lower
        while bits >= 8:
            bits -= 8
            out[at] = np.uint8(waiting >> np.uint64(bits) & np.uint64(255))
            at += 1
    if bits:
        out[at] = np.uint8(waiting << np.uint64(8 - bits) & np.uint64(255))


@kernel
def unpack(data: np.ndarray, width: int, out: np.ndarray) -> None:
    """Read integers of ``width`` bits (1 to 64) from ``data`` (uint8) until ``out`` is full."""
    lower = min(width, _HALF)
    mask = (np.uint64(1) << np.uint64(lower)) - np.uint64(1)
    waiting = np.uint64(0)
    bits = 0
    at = 0
    for i in range(out.size):
        value = np.uint64(0)
        if width > _HALF:
            while bits < width - _HALF:
                waiting = (waiting << np.uint64(8)) | np.uint64(data[at])
                bits += 8
                at += 1
            bits -= width - _HALF
            upper = (np.uint64(1) << np.uint64(width - _HALF)) - np.uint64(1)
            value = (waiting >> np.uint64(bits) & upper) << np.uint64(_HALF)
        while bits < lower:
            waiting = (waiting << np.uint64(8)) | np.uint64(data[at])
            bits += 8
            at += 1
        bits -= lower
        out[i] = value | (waiting >> np.uint64(bits) & mask)
