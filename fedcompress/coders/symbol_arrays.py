"""Symbols of an array of any shape: which of the codings they take, and in what rows."""

import math

import numpy as np

from fedcompress.coders.classes import decode_by_class
from fedcompress.coders.matrix import decode_matrix, encode_matrix
from fedcompress.coders.pack import symbols_as_int32
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.coders.wide import joined, read_split, split_of, write_split
from fedcompress.errors import PayloadError
from fedcompress.rows import row_width
from fedcompress.wire import read_signed, read_varint, write_signed, write_varint

# The first two are of wire version 1; the first is still written where nothing else can.
_ALIKE, _BY_CLASS, _ROWS, _FEW, _WIDE = 0, 1, 2, 3, 4
_FEW_MEANS = 16  # symbols that are not worth a model
_WIDEST = (1 << 31) - 1


def encode_symbols(values: np.ndarray, states: int) -> bytes:
    """Code integers of any shape; ``states`` if they are levels of a trellis of so many states."""
    if values.size == 0:
        return b""
    if values.size <= _FEW_MEANS and values.dtype.kind == "i":
        few = values.reshape(-1).tolist()
        largest = max(*few, -min(few))
        if largest < 64:  # a byte each
            return bytes((_FEW, *(2 * v if v >= 0 else -2 * v - 1 for v in few)))
        if largest <= _WIDEST:
            return bytes((_FEW,)) + b"".join(map(write_signed, few))
    if values.dtype.itemsize > 4 or values.dtype.kind != "i":
        least, most = int(values.min()), int(values.max())
        if max(-least, most) > _WIDEST:
            return bytes((_ALIKE,)) + encode_integers(values)
        values = values.astype(np.int32)
    flat = np.ascontiguousarray(values).reshape(-1)
    split = split_of(flat) if states == 0 else None
    if split is not None:
        head, high = write_split(flat, split)
        if int(np.abs(high).max()) <= _WIDEST:
            return bytes((_WIDE,)) + head + _encode_rows(high, values.shape, 0)
    return bytes((_ROWS,)) + _encode_rows(flat, values.shape, states)


def _encode_rows(flat: np.ndarray, shape: tuple[int, ...], states: int) -> bytes:
    # What is predicted from neighbours has to be short; else a copy is not worth it.
    if flat.dtype != np.int16 and (states == 0 or flat.dtype != np.int32):
        short = int(flat.max()) < 1 << 15 and int(flat.min()) > -(1 << 15)
        flat = flat.astype(np.int16 if short else np.int32)
    transitions = _transitions(states)
    width = row_width(shape)
    whole = flat.size // width * width
    body = encode_matrix(flat[:whole].reshape(-1, width), shape, transitions)
    if whole == flat.size:
        return body
    tail = encode_matrix(flat[whole:].reshape(1, -1), (), transitions)
    return write_varint(len(body)) + body + tail


def decode_symbols(
    data: memoryview, shape: tuple[int, ...], states: int, as_entries: bool = False
) -> np.ndarray:
    """Read integers (flat) that `encode_symbols` coded.

    With ``as_entries``, levels of a trellis may come as float32, what they stand for in its steps.
    """
    count = math.prod(shape)
    if count == 0:
        return symbols_as_int32(decode_integers(data, count))
    if len(data) == 0 or data[0] > _WIDE:
        raise PayloadError("payload: symbols in no known coding; the bytes are damaged")
    method = data[0]
    if method == _ROWS:
        return _decode_rows(data[1:], shape, states, as_entries)
    if method == _FEW:
        return _read_few(data, count)
    if method == _ALIKE:
        return symbols_as_int32(decode_integers(data[1:], count))
    if method == _BY_CLASS:
        if len(shape) < 2:
            raise PayloadError("payload: classes of rows for an array without rows; damaged bytes")
        return symbols_as_int32(decode_by_class(data[1:], shape[0], count // shape[0]))
    split, low, rest = read_split(data[1:], count)
    return symbols_as_int32(joined(_decode_rows(rest, shape, 0), low, split))


def _decode_rows(
    data: memoryview, shape: tuple[int, ...], states: int, as_entries: bool = False
) -> np.ndarray:
    transitions = _transitions(states)
    count, width = math.prod(shape), row_width(shape)
    rows = count // width
    if rows * width == count:
        return decode_matrix(data, rows, width, transitions, as_entries).reshape(-1)
    length, start = read_varint(data, 0)
    if length > len(data) - start:
        raise PayloadError("payload: symbols are cut short; the bytes are damaged")
    body = decode_matrix(data[start : start + length], rows, width, transitions)
    tail = decode_matrix(data[start + length :], 1, count - rows * width, transitions)
    return np.concatenate([body.reshape(-1), tail.reshape(-1)])


def _read_few(data: memoryview, count: int) -> np.ndarray:
    position = 1
    values: list[int] = []
    if len(data) == 1 + count <= 1 + _FEW_MEANS and max(data[1:]) < 0x80:
        return np.array([v >> 1 if v % 2 == 0 else -((v + 1) >> 1) for v in data[1:]], np.int32)
    while len(values) < min(count, _FEW_MEANS):
        value, position = read_signed(data, position)
        values.append(value)
    if count > _FEW_MEANS or position != len(data):
        raise PayloadError("payload: bytes left over behind symbols; they are damaged")
    if max(*values, -min(values)) > _WIDEST:
        raise PayloadError("payload: symbols wider than 32 bits; the bytes are damaged")
    return np.array(values, np.int32)


def _transitions(states: int) -> np.ndarray | None:
    if states == 0:
        return None
    from fedcompress.kernels.trellis import transitions

    return transitions(states)
