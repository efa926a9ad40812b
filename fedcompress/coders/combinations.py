"""A few positions as one number: the combinatorial number system (Lehmer, 1964).

Every set of k positions out of n has its number below n over k, so it takes log2 of that many
bits, rounded up to whole bytes, and nothing else.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from math import comb

from fedcompress.errors import PayloadError

_MOST_RECKONED = 32


def encode_combination(indices: Sequence[int], n: int) -> bytes:
    """Code ascending distinct positions out of ``n``."""
    number = sum(comb(index, i) for i, index in enumerate(indices, 1))
    return number.to_bytes(_size(n, len(indices)), "little")


def decode_combination(data: memoryview, count: int, n: int) -> list[int]:
    """Read ``count`` ascending distinct positions out of ``n``."""
    number = int.from_bytes(data, "little")
    if len(data) != _size(n, count) or number >= comb(n, count):
        raise PayloadError(
            f"payload: {len(data)} bytes are no {count} positions out of {n}; they are damaged"
        )
    indices = []
    for i in range(count, 0, -1):
        # The largest position whose combinations of i below it do not exceed what is left.
        n = bisect_right(range(n), number, key=partial(_combinations, i)) - 1
        number -= comb(n, i)
        indices.append(n)
    return indices[::-1]


def combination_size(n: int, count: int) -> int | None:
    """Give the bytes of ``count`` positions out of ``n``; None beyond what 63 bits can reckon."""
    if count > _MOST_RECKONED or any(comb(n, i) * n >= 1 << 63 for i in range(count + 1)):
        return None
    return _size(n, count)


def _combinations(count: int, n: int) -> int:
    return comb(n, count)


def _size(n: int, count: int) -> int:
    return ((comb(n, count) - 1).bit_length() + 7) // 8
