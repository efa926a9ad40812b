"""Integers at the entropy of their histogram: asymmetric numeral systems, order 0.

The histogram is sent with six bits a symbol, as the logarithm of its frequency in quarter
octaves; that costs less than 0.002 bit a symbol in rate. Values far out, which would make the
table long, are escaped. The entropy coder is constriction's (Bamler, 2022).
"""

from functools import lru_cache

import constriction
import numpy as np

from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits, width_of
from fedcompress.errors import PayloadError
from fedcompress.wire import read_signed, read_varint, write_signed, write_varint

_CONSTANT, _PACKED, _MODELLED = 0, 1, 2
_LEVEL_BITS = 6
_LEVELS = 1 << _LEVEL_BITS
# Level 0 marks an absent symbol, level l stands for the weight 2**(-(l - 1) / 4). Written out
# as integers, since a payload must not hang on how a machine rounds powers of two.
_QUARTERS = np.array([1 << 24, 14107901, 11863283, 9975793], np.int64)
_WEIGHTS = np.array([0] + [int(_QUARTERS[i % 4]) >> (i // 4) for i in range(_LEVELS - 1)], np.int64)
_MAX_ALPHABET = 4096
_TAIL = 1 << 14  # at most one value in this many is escaped on each side


def encode_integers(values: np.ndarray) -> bytes:
    """Code integers (any shape, |v| < 2**60) at about the entropy of their histogram."""
    flat = values.reshape(-1).astype(np.int64, copy=False)
    if flat.size == 0:
        return b""
    low, high = int(flat.min()), int(flat.max())
    if low == high:
        return bytes((_CONSTANT,)) + write_signed(low)
    packed_bytes = packed_size(flat.size, width_of(high - low))
    modelled = _encode_modelled(flat, low, high, packed_bytes)
    if modelled is not None:
        return bytes((_MODELLED,)) + modelled
    return (
        bytes((_PACKED,))
        + write_signed(low)
        + bytes((width_of(high - low),))
        + pack_bits(flat - low, width_of(high - low))
    )


def decode_integers(data: memoryview, count: int) -> np.ndarray:
    """Read ``count`` integers (int64) that `encode_integers` coded."""
    if count == 0:
        if len(data):
            raise PayloadError("payload: bytes where no symbol is expected; they are damaged")
        return np.zeros(0, np.int64)
    if len(data) == 0:
        raise PayloadError(f"payload: no bytes for {count} symbols; it was cut short")
    method, position = data[0], 1
    if method == _MODELLED:
        return _decode_modelled(data, position, count)
    low, position = read_signed(data, position)
    if method == _CONSTANT and position == len(data):
        return np.full(count, low, np.int64)
    if method == _PACKED and position < len(data) and data[position] <= 62:
        packed = unpack_bits(data[position + 1 :], count, data[position])
        packed += low
        return packed
    raise PayloadError(f"payload: unknown symbol coding {method}; the bytes are damaged")


def _encode_modelled(flat: np.ndarray, low: int, high: int, limit: int) -> bytes | None:
    first, last = _window(flat, low, high)
    size = last - first + 1
    if size > _MAX_ALPHABET or packed_size(size, _LEVEL_BITS) + 8 >= limit:
        return None
    shifted = flat - first
    outside = (shifted < 0) | (shifted >= size)
    escapes = flat[outside]
    if escapes.size:
        shifted = np.where(outside, size, shifted)
    counts = np.bincount(shifted, minlength=size + 1 if escapes.size else size)
    levels = _levels(counts)
    if cost_bits(counts, _WEIGHTS[levels]) / 8 + packed_size(size, _LEVEL_BITS) + 12 >= limit:
        return None
    escape_low = int(escapes.min()) if escapes.size else 0
    escape_width = width_of(int(escapes.max()) - escape_low) if escapes.size else 0
    head = [
        write_signed(first),
        write_varint(size),
        write_varint(escapes.size),
        pack_bits(levels, _LEVEL_BITS),
    ]
    if escapes.size:
        head += [
            write_signed(escape_low),
            bytes((escape_width,)),
            pack_bits(escapes - escape_low, escape_width),
        ]
    return b"".join(head) + ans_encode(shifted, _WEIGHTS[levels])


def _decode_modelled(data: memoryview, position: int, count: int) -> np.ndarray:
    first, position = read_signed(data, position)
    size, position = read_varint(data, position)
    escaped, position = read_varint(data, position)
    if not 1 <= size <= _MAX_ALPHABET or escaped > count:
        raise PayloadError(
            f"payload: an alphabet of {size} with {escaped} escapes for {count} symbols; "
            "the bytes are damaged"
        )
    rows = size + 1 if escaped else size
    table_bytes = packed_size(rows, _LEVEL_BITS)
    levels = unpack_bits(data[position : position + table_bytes], rows, _LEVEL_BITS)
    position += table_bytes
    escapes = np.zeros(0, np.int64)
    if escaped:
        escape_low, position = read_signed(data, position)
        width = data[position] if position < len(data) else 63
        if width > 62:
            raise PayloadError("payload: escapes wider than 62 bits; the bytes are damaged")
        end = position + 1 + packed_size(escaped, width)
        escapes = unpack_bits(data[position + 1 : end], escaped, width) + escape_low
        position = end
    symbols = ans_decode(data[position:], _WEIGHTS[levels], count)
    outside = symbols == size if escaped else None
    symbols += first
    if outside is not None:
        if int(np.count_nonzero(outside)) != escaped:
            raise PayloadError("payload: escapes do not match the symbols; the bytes are damaged")
        symbols[outside] = escapes
    return symbols


def _window(flat: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Choose the range of values that gets a row in the table each."""
    if high - low < 64 or flat.size < _TAIL:
        return low, high
    tail = flat.size // _TAIL
    ends = np.partition(flat, (tail, flat.size - 1 - tail))
    return int(ends[tail]), int(ends[flat.size - 1 - tail])


def _levels(counts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        quarters = np.rint(4 * np.log2(counts.max() / counts))
    levels = np.minimum(quarters, _LEVELS - 2) + 1
    return np.where(counts > 0, levels, 0).astype(np.int64)


def cost_bits(counts: np.ndarray, weights: np.ndarray) -> float:
    """Bits that symbols with these counts take under a model of these weights."""
    drawn = counts > 0
    share = weights[drawn] / weights.sum()
    return -float(np.sum(counts[drawn] * np.log2(share)))


def ans_encode(symbols: np.ndarray, weights: np.ndarray) -> bytes:
    """Code symbols (0 to len(weights) − 1) by asymmetric numeral systems.

    ``weights`` are integers proportional to the probabilities; the decoder needs the same.
    """
    model, present = _model(weights.tobytes())
    dense = np.zeros(weights.size, np.int32)
    dense[present] = np.arange(present.size, dtype=np.int32)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(dense[symbols], model)
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def ans_decode(data: memoryview, weights: np.ndarray, count: int) -> np.ndarray:
    """Read ``count`` symbols (int64) that `ans_encode` coded under the same weights."""
    if len(data) % 4:
        raise PayloadError("payload: entropy-coded words are cut short; the bytes are damaged")
    model, present = _model(weights.tobytes())
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
    except ValueError as error:
        raise PayloadError(f"payload: entropy-coded words are invalid: {error}") from error
    symbols = coder.decode(model, count)
    if not coder.is_empty():
        raise PayloadError("payload: entropy-coded words are left over; the bytes are damaged")
    return np.asarray(present[symbols])


@lru_cache(maxsize=64)
def _model(data: bytes) -> tuple[object, np.ndarray]:
    weights = np.frombuffer(data, np.int64)
    present = np.flatnonzero(weights)
    if present.size < 2:  # an encoder sends such a stream as a constant
        raise PayloadError("payload: a model of fewer than two symbols; the bytes are damaged")
    shares = weights[present].astype(np.float64)
    return (
        constriction.stream.model.Categorical(shares / shares.sum(), perfect=False),
        present.astype(np.int64),
    )
