"""Symbols of an array of any shape: which of the codings they take, and in what rows."""

import math

import numpy as np

from fedcompress.coders.classes import decode_by_class
from fedcompress.coders.matrix import decode_matrix, encode_matrix
from fedcompress.coders.pack import symbols_as_int32
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.rows import row_width
from fedcompress.wire import read_signed, read_varint, write_signed, write_varint

# The first two are of wire version 1; the first is still written where nothing else can.
_ALIKE, _BY_CLASS, _ROWS, _FEW = 0, 1, 2, 3
_FEW_MEANS = 16  # symbols that are not worth a model
_WIDEST = (1 << 31) - 1


def encode_symbols(values: np.ndarray, states: int) -> bytes:
    """Code integers of any shape; ``states`` if they are levels of a trellis of so many states."""
    if values.size == 0:
        return b""
    if values.size <= _FEW_MEANS and values.dtype.kind == "i":
        few = values.reshape(-1).tolist()
        if max(map(abs, few)) <= _WIDEST:
            return bytes((_FEW,)) + b"".join(map(write_signed, few))
    if values.dtype.itemsize > 4 or values.dtype.kind != "i":
        low, high = int(values.min()), int(values.max())
        if max(-low, high) > _WIDEST:
            return bytes((_ALIKE,)) + encode_integers(values)
        values = values.astype(np.int32)
    if values.dtype == np.int32 and int(values.max()) < 1 << 15 and int(values.min()) > -(1 << 15):
        values = values.astype(np.int16)
    transitions = _transitions(states)
    width = row_width(values.shape)
    flat = np.ascontiguousarray(values).reshape(-1)
    whole = flat.size // width * width
    body = encode_matrix(flat[:whole].reshape(-1, width), values.shape, transitions)
    if whole == flat.size:
        return bytes((_ROWS,)) + body
    tail = encode_matrix(flat[whole:].reshape(1, -1), (), transitions)
    return bytes((_ROWS,)) + write_varint(len(body)) + body + tail


def decode_symbols(data: memoryview, shape: tuple[int, ...], states: int) -> np.ndarray:
    """Read integers (flat) that `encode_symbols` coded."""
    count = math.prod(shape)
    if count == 0:
        return symbols_as_int32(decode_integers(data, count))
    if len(data) == 0 or data[0] > _FEW:
        raise PayloadError("payload: symbols in no known coding; the bytes are damaged")
    if data[0] == _ALIKE:
        return symbols_as_int32(decode_integers(data[1:], count))
    if data[0] == _BY_CLASS:
        if len(shape) < 2:
            raise PayloadError("payload: classes of rows for an array without rows; damaged bytes")
        return symbols_as_int32(decode_by_class(data[1:], shape[0], count // shape[0]))
    if data[0] == _FEW:
        return _read_few(data, count)
    transitions = _transitions(states)
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


def _read_few(data: memoryview, count: int) -> np.ndarray:
    position = 1
    values: list[int] = []
    while len(values) < min(count, _FEW_MEANS):
        value, position = read_signed(data, position)
        values.append(value)
    if count > _FEW_MEANS or position != len(data):
        raise PayloadError("payload: bytes left over behind symbols; they are damaged")
    if max(abs(value) for value in values) > _WIDEST:
        raise PayloadError("payload: symbols wider than 32 bits; the bytes are damaged")
    return np.array(values, np.int32)


def _transitions(states: int) -> np.ndarray | None:
    if states == 0:
        return None
    from fedcompress.kernels.trellis import transitions

    return transitions(states)
