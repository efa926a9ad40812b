"""Floats as sign, quarter octave and the bits below.

Of the entries that a selection keeps, all magnitudes lie above a threshold and few far above, so
they fill a short range of octaves. The exponent and the upper two bits of the significand,
counted from the smallest, are small integers: a few thousand of them teach their own law better
than a table says it, many are coded as symbols are, by row and column. What is below is uniform.
"""

import numpy as np
import torch

from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.coders.symbol_arrays import decode_symbols, encode_symbols
from fedcompress.coders.symbols import decode_integers, encode_integers
from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint

_RAW, _LEARNT, _COUNTED, _CLASSED = 0, 1, 2, 3
_RAW_VALUES = 6  # so few teach nothing
_LEARNT_VALUES = 4096  # up to this many a model that learns is shorter than a table
_COUNTED_VALUES = 1 << 16  # and up to this many one table is as short as several
_SAMPLE = 1 << 15
_UPPER = 2  # bits of the significand that are modelled
_SIGNIFICAND = {
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 2,
    torch.bfloat16: 7,
    torch.float16: 10,
    torch.float32: 23,
    torch.float64: 52,
}
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}


def encode_magnitudes(raw: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> bytes | None:
    """Code an array of ``dtype``, given as its bytes, or give None where this is no gain."""
    bits = raw.view(_UNSIGNED[dtype.itemsize])
    if 0 < bits.size <= _RAW_VALUES:
        return bytes((_RAW,)) + raw.tobytes()
    width, below = 8 * dtype.itemsize, _SIGNIFICAND.get(dtype, 0) - _UPPER
    if bits.size == 0 or below < 0 or _is_regular(bits, min(8, below)):
        return None
    word = bits.dtype.type
    octaves = ((bits & word((1 << (width - 1)) - 1)) >> word(below)).astype(np.int16)
    least = int(octaves.min())
    octaves -= np.int16(least)
    negative = (bits >> word(width - 1)).astype(np.int16)
    lower = pack_bits(bits & word((1 << below) - 1), below)
    if bits.size <= _LEARNT_VALUES:
        coder = AdaptiveEncoder()
        coder.put((octaves + 1) * (1 - 2 * negative), 0)
        coded = bytes((_LEARNT,)) + write_varint(least) + lower + coder.bytes()
    else:
        signs = _encode_signs(negative)
        head = write_varint(least) + write_varint(len(signs)) + signs + lower
        if bits.size <= _COUNTED_VALUES:
            coded = bytes((_COUNTED,)) + head + encode_integers(octaves)
        else:
            common = int(np.bincount(octaves[:: -(-octaves.size // _SAMPLE)]).argmax())
            upper = encode_symbols((octaves - np.int16(common)).reshape(shape), 0)
            coded = bytes((_CLASSED,)) + head + write_varint(common) + upper
    return coded if len(coded) <= raw.size else bytes((_RAW,)) + raw.tobytes()


def decode_magnitudes(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    """Read the bytes of an array that `encode_magnitudes` coded."""
    if len(data) and data[0] == _RAW:
        return np.frombuffer(data[1:], np.uint8)
    if len(data) == 0 or data[0] > _CLASSED or dtype not in _SIGNIFICAND:
        raise PayloadError("payload: values in no known coding; the bytes are damaged")
    count = int(np.prod(shape, dtype=np.int64))
    width, below = 8 * dtype.itemsize, _SIGNIFICAND[dtype] - _UPPER
    least, position = read_varint(data, 1)
    common, signs = 0, data[:0]
    if data[0] != _LEARNT:
        length, position = read_varint(data, position)
        signs = data[position : position + length]
        position += length
    end = position + packed_size(count, below)
    unsigned = _UNSIGNED[dtype.itemsize]
    bits = unpack_bits(data[position:end], count, below, unsigned)
    if data[0] == _LEARNT:
        coder = AdaptiveDecoder(data[end:], 1)
        signed = coder.take(count, 0)
        coder.check_end()
        octaves, negative = np.abs(signed) - 1, signed < 0
    else:
        negative = _decode_signs(signs, count)
        if data[0] == _COUNTED:
            octaves = decode_integers(data[end:], count)
        else:
            common, end = read_varint(data, end)
            octaves = decode_symbols(data[end:], shape, 0)
    low, high = int(octaves.min()) + common, int(octaves.max()) + common + least
    if low < 0 or high >> (width - 1 - below):
        raise PayloadError("payload: values beyond their format; the bytes are damaged")
    upper = octaves.astype(unsigned)  # what wraps around here wraps back below
    upper += unsigned.type((common + least) % (1 << width))
    upper <<= unsigned.type(below)
    bits |= upper
    bits |= negative.astype(unsigned) << unsigned.type(width - 1)
    return bits.view(np.uint8)


def _encode_signs(negative: np.ndarray) -> bytes:
    if 0.45 < np.count_nonzero(negative) / negative.size < 0.55:
        return pack_bits(negative, 1)
    coded = encode_integers(negative)
    return coded if len(coded) < packed_size(negative.size, 1) else pack_bits(negative, 1)


def _decode_signs(data: memoryview, count: int) -> np.ndarray:
    if len(data) == packed_size(count, 1):
        return np.asarray(unpack_bits(data, count, 1, np.int8) != 0)
    return np.asarray(decode_integers(data, count) == 1)


def _is_regular(bits: np.ndarray, lowest: int) -> bool:
    """Whether the lowest bits meet oftener than uniform ones, so that a histogram of them pays."""
    cells = 1 << lowest
    some = bits[:: -(-bits.size // _SAMPLE)] & bits.dtype.type(cells - 1)
    counts = np.bincount(some, minlength=cells)
    expected = some.size * (some.size - 1) / (2 * cells)
    return bool((counts * (counts - 1) // 2).sum() > 1.25 * expected + 4 * expected**0.5 + 2)
