"""Sets of positions, coded as gaps.

The gaps of a set of k out of n positions drawn at random are geometric, so coding them at the
entropy of their histogram costs what the set itself is worth, n·H(k/n) bits; where positions
cluster, it costs less. Of long gaps the low bits, which are all but uniform, are packed.
"""

import numpy as np

from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_MODELLED_BITS = 3  # a mean gap spans this many octaves of modelled values


def encode_index_set(indices: np.ndarray, n: int) -> bytes:
    """Code ascending distinct positions (int64) out of ``n``."""
    count = indices.size
    head = write_varint(count)
    if count in (0, n):
        return head
    gaps = np.diff(indices, prepend=-1) - 1
    low_bits = max(0, (n // count).bit_length() - 1 - _MODELLED_BITS)
    low = pack_bits(gaps & ((1 << low_bits) - 1), low_bits)
    return head + low + encode_integers(gaps >> low_bits)


def decode_index_set(data: memoryview, n: int) -> np.ndarray:
    """Read ascending distinct positions (int64) out of ``n``."""
    count, position = read_varint(data, 0)
    if count > n:
        raise PayloadError(f"payload: {count} positions out of {n}; the bytes are damaged")
    if count in (0, n):
        if position != len(data):
            raise PayloadError("payload: bytes left over behind positions; they are damaged")
        return np.arange(count, dtype=np.int64)
    low_bits = max(0, (n // count).bit_length() - 1 - _MODELLED_BITS)
    end = position + packed_size(count, low_bits)
    low = unpack_bits(data[position:end], count, low_bits)
    high = decode_integers(data[end:], count)
    if int(high.min()) < 0 or int(high.max()) > n >> low_bits:
        raise PayloadError(f"payload: gaps longer than {n} positions; the bytes are damaged")
    indices = np.cumsum((high << low_bits) + low + 1) - 1
    # A sum of at most n gaps of at most about n cannot wrap, so the last position is the largest.
    if int(indices[-1]) >= n:
        raise PayloadError(f"payload: a position beyond {n}; the bytes are damaged")
    return np.asarray(indices)
