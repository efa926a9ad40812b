"""Symbols of an array of any shape: which of the codings they take, and in what rows."""

import numpy as np

from fedcompress.coders.classes import decode_by_class
from fedcompress.coders.matrix import decode_matrix, encode_matrix
from fedcompress.coders.pack import symbols_as_int32
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.rows import row_width
from fedcompress.wire import read_varint, write_varint

# The first two are of wire version 1; the first is still written where nothing else can.
_ALIKE, _BY_CLASS, _ROWS = 0, 1, 2
_WIDEST = (1 << 31) - 1


def encode_symbols(values: np.ndarray, dependent: bool) -> bytes:
    """Code integers of any shape; ``dependent`` if they are levels of a trellis."""
    if values.size == 0:
        return b""
    if values.dtype.itemsize > 4 or values.dtype.kind != "i":
        low, high = int(values.min()), int(values.max())
        if max(-low, high) > _WIDEST:
            return bytes((_ALIKE,)) + encode_integers(values)
        values = values.astype(np.int32)
    if values.dtype == np.int32 and int(np.abs(values).max()) < 1 << 15:
        values = values.astype(np.int16)
    transitions = _transitions() if dependent else None
    width = row_width(values.shape)
    flat = np.ascontiguousarray(values).reshape(-1)
    whole = flat.size // width * width
    body = encode_matrix(flat[:whole].reshape(-1, width), _lags(values.shape), transitions)
    if whole == flat.size:
        return bytes((_ROWS,)) + body
    tail = encode_matrix(flat[whole:].reshape(1, -1), (1,), transitions)
    return bytes((_ROWS,)) + write_varint(len(body)) + body + tail


def decode_symbols(data: memoryview, shape: tuple[int, ...], dependent: bool) -> np.ndarray:
    """Read integers (flat) that `encode_symbols` coded."""
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return symbols_as_int32(decode_integers(data, count))
    if len(data) == 0 or data[0] > _ROWS:
        raise PayloadError("payload: symbols in no known coding; the bytes are damaged")
    if data[0] == _ALIKE:
        return symbols_as_int32(decode_integers(data[1:], count))
    if data[0] == _BY_CLASS:
        if len(shape) < 2:
            raise PayloadError("payload: classes of rows for an array without rows; damaged bytes")
        return symbols_as_int32(decode_by_class(data[1:], shape[0], count // shape[0]))
    transitions = _transitions() if dependent else None
    width = row_width(shape)
    rows = count // width
    if rows * width == count:
        return decode_matrix(data[1:], rows, width, transitions).reshape(-1)
    length, start = read_varint(data, 1)
    if length > len(data) - start:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    body = decode_matrix(data[start : start + length], rows, width, transitions)
    tail = decode_matrix(data[start + length :], 1, count - rows * width, transitions)
    return np.concatenate([body.reshape(-1), tail.reshape(-1)])


def _lags(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give distances at which columns may be alike: neighbours, and taps of a kernel."""
    taps = int(np.prod(shape[2:], dtype=np.int64)) if len(shape) > 2 else 1
    return (1, taps) if taps > 1 else (1,)


def _transitions() -> np.ndarray:
    return np.array([[0, 2, 0], [2, 0, 0], [1, 3, 1], [3, 1, 1]], np.int64)
