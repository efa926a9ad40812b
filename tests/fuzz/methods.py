"""Streams in a method that their encoder would not have chosen for them.

An encoder takes the shortest of several methods, so those that pay on large arrays only, and those
of earlier wire versions, are rare or missing in small payloads of today.
"""

from __future__ import annotations

import math

import numpy as np

from fedcompress.coders.classes import encode_by_class
from fedcompress.coders.combinations import encode_combination
from fedcompress.coders.gaps import encode_gaps
from fedcompress.coders.index_sets import encode_index_set
from fedcompress.coders.kernel_sets import encode_masks, split, taps_of
from fedcompress.coders.raw import encode_plain
from fedcompress.coders.row_sets import Rows, encode_rows
from fedcompress.coders.symbol_arrays import encode_symbols
from fedcompress.coders.symbols import encode_integers
from fedcompress.coders.values import encode_planes
from fedcompress.streams import Floats, IndexSet, Stream, Symbols
from fedcompress.wire import write_varint

_ALIKE, _BY_CLASS = 0, 1  # first bytes of symbols
_FEW, _ROWS, _BITMAP, _KERNELS = 32, 33, 34, 35  # of positions, behind n
_SHAPES = 10  # gamma laws of how often rows and columns are kept


def encode(stream: Stream, draw: np.random.Generator) -> bytes:
    """Code a stream in any method that can hold it; raises where the one drawn cannot."""
    match stream:
        case Symbols(values, states):
            return _symbols(values.numpy(), states, draw)
        case IndexSet(indices, n, shape):
            return _positions(indices.numpy(), n, shape, draw)
        case Floats(values):
            return encode_planes(values)
    return encode_plain(stream)


def _symbols(values: np.ndarray, states: int, draw: np.random.Generator) -> bytes:
    kind = draw.random()
    if kind < 0.4:
        return bytes((_ALIKE,)) + encode_integers(values)
    if kind < 0.8 and values.ndim > 1 and values.size:
        coded = encode_by_class(values.reshape(len(values), -1).astype(np.int64))
        if coded is not None:
            return bytes((_BY_CLASS,)) + coded
    return encode_symbols(values, states)


def _positions(
    indices: np.ndarray, n: int, shape: tuple[int, ...], draw: np.random.Generator
) -> bytes:
    kind, size = draw.random(), indices.size
    if size in (0, n) or kind < 0.2:
        return encode_index_set(indices, n, shape if draw.random() < 0.5 else ())
    if kind < 0.3 and size <= _FEW:
        return write_varint(n + size) + encode_combination(indices.tolist(), n)
    if kind < 0.5:
        bitmap = np.zeros(n, np.int8)
        bitmap[indices] = 1
        return write_varint(n + _BITMAP) + encode_symbols(bitmap.reshape(shape or n), 0)
    if kind < 0.9 and len(shape) > 1:
        by_kernel = kind < 0.75 and taps_of(shape)
        return (_by_kernel if by_kernel else _by_row)(indices, n, shape, draw)
    return write_varint(size) + encode_gaps(indices, n)


def _by_kernel(
    indices: np.ndarray, n: int, shape: tuple[int, ...], draw: np.random.Generator
) -> bytes:
    kernels, masks = split(indices, taps_of(shape))
    owners = _positions(kernels, n // taps_of(shape), shape[:2], draw)
    head = write_varint(n + _KERNELS) + write_varint(len(owners)) + owners
    return head + (encode_masks(masks, shape, math.inf) or b"")


def _by_row(
    indices: np.ndarray, n: int, shape: tuple[int, ...], draw: np.random.Generator
) -> bytes:
    row, column = np.divmod(indices, n // shape[0])
    counts = np.bincount(row, minlength=shape[0])
    turns = np.bincount(column, minlength=n // shape[0])
    spread, urn = draw.integers(0, _SHAPES, 2).tolist()
    rows = Rows(0.0, counts, turns, column, spread, urn)
    return write_varint(n + _ROWS) + write_varint(indices.size) + encode_rows(rows)
