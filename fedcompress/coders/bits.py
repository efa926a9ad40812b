"""Integers of a fixed width, packed without gaps, most significant bit first."""

import numpy as np

from fedcompress.errors import PayloadError

_CHUNK = 1 << 16  # a multiple of 8, so that every chunk but the last fills whole bytes


def width_of(largest: int) -> int:
    """Bits that hold every integer from 0 to ``largest``."""
    return int(largest).bit_length()


def packed_size(count: int, width: int) -> int:
    """Bytes that ``count`` integers of ``width`` bits take."""
    return (count * width + 7) // 8


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """Pack non-negative integers below ``2**width`` (width 0 to 62)."""
    if width == 0:
        return b""
    if width == 1:
        return np.packbits(values.astype(np.uint8)).tobytes()
    unit = _unit(width)
    parts = []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(f">u{unit}")
        bits = np.unpackbits(chunk.view(np.uint8).reshape(-1, unit), axis=1)
        parts.append(np.packbits(bits[:, 8 * unit - width :]).tobytes())
    return b"".join(parts)


def unpack_bits(data: memoryview, count: int, width: int) -> np.ndarray:
    """Read ``count`` integers of ``width`` bits (int64) from exactly ``data``."""
    if len(data) != packed_size(count, width):
        raise PayloadError(
            f"payload: {count} integers of {width} bits take {packed_size(count, width)} bytes, "
            f"got {len(data)}; the bytes are damaged"
        )
    if width == 0:
        return np.zeros(count, np.int64)
    raw = np.frombuffer(data, np.uint8)
    if width == 1:
        return np.unpackbits(raw, count=count).astype(np.int64)
    unit = _unit(width)
    out = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * width // 8
        chunk = raw[first : first + packed_size(size, width)]
        bits = np.zeros((size, 8 * unit), np.uint8)
        bits[:, 8 * unit - width :] = np.unpackbits(chunk, count=size * width).reshape(size, width)
        out[start : start + size] = np.packbits(bits, axis=1).view(f">u{unit}").ravel()
    return out


def _unit(width: int) -> int:
    return next(unit for unit in (1, 2, 4, 8) if width <= 8 * unit)
