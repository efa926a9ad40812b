"""Integers of a fixed width, packed without gaps, most significant bit first."""

import numpy as np
from numpy.typing import DTypeLike

from fedcompress.errors import PayloadError


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
    from fedcompress.kernels.bits import pack

    if values.dtype.kind != "i":
        values = values.astype(np.int64)
    out = np.empty(packed_size(values.size, width), np.uint8)
    pack(np.ascontiguousarray(values.reshape(-1)), width, out)
    return out.tobytes()


def unpack_bits(
    data: memoryview, count: int, width: int, dtype: DTypeLike = np.int64
) -> np.ndarray:
    """Read ``count`` integers of ``width`` bits from exactly ``data``; ``dtype`` must hold them."""
    if len(data) != packed_size(count, width):
        raise PayloadError(
            f"payload: {count} integers of {width} bits take {packed_size(count, width)} bytes, "
            f"got {len(data)}; the bytes are damaged"
        )
    if width == 0:
        return np.zeros(count, dtype)
    raw = np.frombuffer(data, np.uint8)
    if width == 1:
        return np.unpackbits(raw, count=count).astype(dtype)
    from fedcompress.kernels.bits import unpack

    out = np.empty(count, dtype)
    unpack(raw, width, out)
    return out
