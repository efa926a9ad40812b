"""Gaps between ascending positions.

The gaps of k positions drawn at random out of n are geometric, so coding them by that model
costs what the set itself is worth, n·H(k/n) bits, and needs no table. Where positions cluster,
the histogram of the gaps itself costs less. Of long gaps the low bits, which are all but
uniform, are packed.
"""

import math
from functools import lru_cache

import numpy as np

from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.coders.symbols import (
    ans_decode,
    ans_encode,
    cost_bits,
    decode_integers,
    encode_integers,
)
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_HISTOGRAM, _GEOMETRIC = 0, 1
_MODELLED_BITS = 3  # a mean gap spans this many octaves of modelled values
_MAX_ALPHABET = 4096
_ONE = 1 << 32
_LONG = 1 << 14  # integers from which on a histogram may leave some out
_TABLE_BITS = 6  # of each value in a histogram
_SLACK = 16  # bytes by which coded integers may be shorter than their cost


def random_bits(count: int, n: int) -> float:
    """Give what gaps of positions drawn at random take: the entropy of which entries they are."""
    share = count / n
    return -n * (share * math.log2(share) + (1 - share) * math.log2(1 - share))


def encode_gaps(indices: np.ndarray, n: int) -> bytes:
    """Code ascending distinct positions (int64) out of ``n``, at least one and not all."""
    count = indices.size
    gaps = np.diff(indices, prepend=-1) - 1
    low_bits = _low_bits(count, n)
    low = pack_bits(gaps & ((1 << low_bits) - 1), low_bits)
    high = gaps >> low_bits
    largest = int(high.max())
    if not 0 < largest < _MAX_ALPHABET:
        return low + bytes((_HISTOGRAM,)) + encode_integers(high)
    weights = _geometric_weights(count, n, low_bits, largest + 1)
    counts = np.bincount(high, minlength=largest + 1)
    geometric_bytes = cost_bits(counts, weights) / 8 + 4
    # Mostly the histogram's table alone decides, and there is no need to code by it.
    if geometric_bytes >= _fewest_bytes(counts):
        by_histogram = bytes((_HISTOGRAM,)) + encode_integers(high)
        if geometric_bytes >= len(by_histogram):
            return low + by_histogram
    return low + bytes((_GEOMETRIC,)) + write_varint(largest + 1) + ans_encode(high, weights)


def _fewest_bytes(counts: np.ndarray) -> float:
    """Bound from below what `encode_integers` makes of integers with these counts."""
    seen = np.flatnonzero(counts)
    span, size = int(seen[-1] - seen[0]), int(counts.sum())
    if span == 0 or size >= _LONG:
        return 0.0
    modelled = cost_bits(counts, counts) / 8 + packed_size(span + 1, _TABLE_BITS) - _SLACK
    return min(modelled, packed_size(size, span.bit_length()))


def decode_gaps(data: memoryview, count: int, n: int) -> np.ndarray:
    """Read ``count`` ascending distinct positions (int64) out of ``n``."""
    low_bits = _low_bits(count, n)
    end = packed_size(count, low_bits)
    low = unpack_bits(data[:end], count, low_bits)
    high = _decode_high(data[end:], count, n, low_bits)
    if int(high.min()) < 0 or int(high.max()) > n >> low_bits:
        raise PayloadError(f"payload: gaps longer than {n} positions; the bytes are damaged")
    indices = np.cumsum((high << low_bits) + low + 1) - 1
    # A sum of at most n gaps of at most about n cannot wrap, so the last position is the largest.
    if int(indices[-1]) >= n:
        raise PayloadError(f"payload: a position beyond {n}; the bytes are damaged")
    return np.asarray(indices)


def _decode_high(data: memoryview, count: int, n: int, low_bits: int) -> np.ndarray:
    if len(data) == 0 or data[0] not in (_HISTOGRAM, _GEOMETRIC):
        raise PayloadError("payload: positions in no known coding; the bytes are damaged")
    if data[0] == _HISTOGRAM:
        return decode_integers(data[1:], count)
    alphabet, position = read_varint(data, 1)
    if not 2 <= alphabet <= _MAX_ALPHABET:
        raise PayloadError(f"payload: an alphabet of {alphabet} gaps; the bytes are damaged")
    weights = _geometric_weights(count, n, low_bits, alphabet)
    return ans_decode(data[position:], weights, count)


def _low_bits(count: int, n: int) -> int:
    return max(0, (n // count).bit_length() - 1 - _MODELLED_BITS)


@lru_cache(maxsize=256)
def _geometric_weights(count: int, n: int, low_bits: int, alphabet: int) -> np.ndarray:
    """Weights of a gap's high part; in integers, so that both sides get the same."""
    ratio = _ONE * (n - count) // n
    for _ in range(low_bits):
        ratio = ratio * ratio // _ONE
    weights = np.empty(alphabet, np.int64)
    weight = _ONE
    for i in range(alphabet):
        weights[i] = max(1, weight >> 8)
        weight = weight * ratio // _ONE
    return frozen(weights)


def frozen(weights: np.ndarray) -> np.ndarray:
    """Make weights that are kept for the next call read-only."""
    weights.flags.writeable = False
    return weights
