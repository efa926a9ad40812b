"""Sets of positions, each coded in the way that takes the fewest bytes.

A few positions are a combination, written as its number. Where the rows and columns of a matrix
differ in how often they are kept, an urn of columns learns it, and taps of a kernel learn from
their neighbours. What is dense is a matrix of zeros and ones, and coded as symbols are. What is
left is coded as gaps. A first varint tells them apart: up to ``n`` it is the count of positions
coded as gaps.
"""

import numpy as np

from fedcompress.coders.combinations import decode_combination, encode_combination
from fedcompress.coders.gaps import decode_gaps, encode_gaps, random_bits
from fedcompress.coders.kernel_sets import decode_masks, encode_masks, split, taps_of
from fedcompress.coders.row_sets import count_rows, decode_rows, encode_rows
from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_FEW = 32  # positions in a combination at most
_ROWS, _BITMAP, _KERNELS = _FEW + 1, _FEW + 2, _FEW + 3
_WORTH = 0.96  # share of other bits below which taps are coded by kernel
_DENSE = 12  # where one in so many is kept, a bitmap is as short as rows, and faster
_HALF = 3  # and than gaps, where one in so many is


def encode_index_set(indices: np.ndarray, n: int, shape: tuple[int, ...] = ()) -> bytes:
    """Code ascending distinct positions (int64) out of ``n``, in an array of ``shape``."""
    count = indices.size
    if count in (0, n):
        return write_varint(count)
    if count <= _FEW:
        return write_varint(n + count) + encode_combination(indices.tolist(), n)
    if count * _DENSE < n:
        sparse = _encode_sparse(indices, n, shape)
        if sparse is not None:
            return sparse
    elif len(shape) > 1 or count * _HALF > n:
        bitmap = np.zeros(n, np.int8)
        bitmap[indices] = 1
        bits = encode_symbols(bitmap.reshape(shape or n), 0)
        if 8 * len(bits) < random_bits(count, n) or count * _HALF > n:
            return write_varint(n + _BITMAP) + bits
    return write_varint(count) + encode_gaps(indices, n)


def _encode_sparse(indices: np.ndarray, n: int, shape: tuple[int, ...]) -> bytes | None:
    rows = count_rows(indices, n, shape)
    bits = random_bits(indices.size, n) if rows is None else rows.bits
    taps = taps_of(shape)
    if taps:
        kernels, masks = split(indices, taps)
        pairs = count_rows(kernels, n // taps, shape[:2])
        kernels_bits = random_bits(kernels.size, n // taps) if pairs is None else pairs.bits
        coded = encode_masks(masks, shape, _WORTH * bits - kernels_bits)
        if coded is not None:
            owners = encode_index_set(kernels, n // taps, shape[:2])
            return write_varint(n + _KERNELS) + write_varint(len(owners)) + owners + coded
    if rows is None:
        return None
    return write_varint(n + _ROWS) + write_varint(indices.size) + encode_rows(rows)


def decode_index_set(data: memoryview, n: int, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Read ascending distinct positions (int64) out of ``n``."""
    head, position = read_varint(data, 0)
    if head in (0, n):
        if position != len(data):
            raise PayloadError("payload: bytes left over behind positions; they are damaged")
        return np.arange(head, dtype=np.int64)
    if head <= n:
        return decode_gaps(data[position:], head, n)
    if head - n <= min(_FEW, n - 1):
        return np.array(decode_combination(data[position:], head - n, n), np.int64)
    if head - n == _BITMAP and n:
        bitmap = decode_symbols(data[position:], shape or (n,), 0)
        if int(bitmap.min()) < 0 or int(bitmap.max()) > 1:
            raise PayloadError("payload: a bitmap of other than bits; the bytes are damaged")
        return np.flatnonzero(bitmap)
    if head - n == _KERNELS and taps_of(shape):
        size, position = read_varint(data, position)
        owners = data[position : position + size]
        kernels = decode_index_set(owners, n // taps_of(shape), shape[:2])
        return decode_masks(data[position + size :], kernels, shape)
    if head - n != _ROWS:
        raise PayloadError(f"payload: positions out of {n} in no known coding; it is damaged")
    count, position = read_varint(data, position)
    return decode_rows(data[position:], count, n, shape)
