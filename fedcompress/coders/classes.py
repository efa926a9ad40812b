"""Symbols of a matrix, coded by the scale of their row and column.

In the update of a layer whole rows and columns are near zero (dead units, idle inputs) and
scales differ from row to row. The mean magnitude of each row and column is sent in half octaves;
their sum puts every symbol into a class known before it is decoded, and each class is coded at
the entropy of its own histogram. Rows and columns of zeros cost nothing further.
"""

import numpy as np

from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_EMPTY = -1  # level of a row or column of zeros
_LEVELS = 32
_MIDDLE = 20  # level of a row whose mean magnitude is that of the matrix
_FIRST, _LAST = 2 * _MIDDLE - 14, 2 * _MIDDLE + 10  # sums beyond these join the outermost class
_LEAST_SYMBOLS = 512
_TABLE_BITS = 6


def encode_by_class(values: np.ndarray) -> bytes | None:
    """Code a matrix of integers by class, or give None where that would not pay.

    Parameters
    ----------
    values : numpy.ndarray
        Integers, shape (rows, columns).
    """
    if values.size < _LEAST_SYMBOLS or min(values.shape) < 2:
        return None
    magnitude = np.abs(values)
    total = float(magnitude.mean())
    if total == 0:
        return None
    rows = _levels(magnitude.mean(1), total)
    columns = _levels(magnitude.mean(0), total)
    classes = _classes(rows, columns)
    low = int(values.min())
    alphabet = int(values.max()) - low + 1
    if alphabet > 1 << 12 or not _pays(values - low, classes, alphabet):
        return None
    parts = [encode_integers(rows), encode_integers(columns)]
    parts += [encode_integers(values[classes == k]) for k in _used(classes)]
    return b"".join(write_varint(len(part)) + part for part in parts)


def decode_by_class(data: memoryview, rows: int, columns: int) -> np.ndarray:
    """Read a matrix (int64) that `encode_by_class` coded."""
    part, position = _section(data, 0)
    row_levels = _checked(decode_integers(part, rows))
    part, position = _section(data, position)
    classes = _classes(row_levels, _checked(decode_integers(part, columns)))
    values = np.zeros((rows, columns), np.int64)
    for k in _used(classes):
        part, position = _section(data, position)
        chosen = classes == k
        values[chosen] = decode_integers(part, int(np.count_nonzero(chosen)))
    if position != len(data):
        raise PayloadError("payload: bytes left over behind symbols; they are damaged")
    return values


def _levels(means: np.ndarray, total: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        octaves = np.rint(2 * np.log2(means / total)) + _MIDDLE
    return np.where(means > 0, np.clip(octaves, 0, _LEVELS - 1), _EMPTY).astype(np.int64)


def _classes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Give the class of every entry (int8), −1 where the row or the column is empty."""
    sums = np.clip(rows[:, None] + columns[None, :], _FIRST, _LAST) - _FIRST
    empty = (rows == _EMPTY)[:, None] | (columns == _EMPTY)[None, :]
    return np.where(empty, -1, sums).astype(np.int8)


def _used(classes: np.ndarray) -> list[int]:
    counts = np.bincount((classes + 1).reshape(-1), minlength=_LAST - _FIRST + 2)
    return [int(k) for k in np.flatnonzero(counts[1:])]


def _pays(symbols: np.ndarray, classes: np.ndarray, alphabet: int) -> bool:
    """Whether coding by class is worth its tables, by the entropies of the histograms."""
    joint = np.bincount(
        ((classes.astype(np.int64) + 1) * alphabet + symbols).reshape(-1),
        minlength=(_LAST - _FIRST + 2) * alphabet,
    ).reshape(-1, alphabet)
    by_class = joint[1:]
    tables = int(np.count_nonzero(by_class.any(1))) * (_TABLE_BITS * alphabet + 120)
    levels = 3 * sum(classes.shape)
    return _entropy_bits(by_class) + tables + levels < _entropy_bits(joint.sum(0)[None, :])


def _entropy_bits(counts: np.ndarray) -> float:
    totals = counts.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = counts * np.log2(counts / totals)
    return -float(np.nansum(bits))


def _section(data: memoryview, position: int) -> tuple[memoryview, int]:
    length, start = read_varint(data, position)
    if length > len(data) - start:
        raise PayloadError("payload: a class of symbols is cut short; the bytes are damaged")
    return data[start : start + length], start + length


def _checked(levels: np.ndarray) -> np.ndarray:
    if int(levels.min()) < _EMPTY or int(levels.max()) >= _LEVELS:
        raise PayloadError("payload: the scale of a row is out of range; the bytes are damaged")
    return levels
