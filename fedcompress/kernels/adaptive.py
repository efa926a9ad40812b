"""Adaptive binary range coding of integers: no tables, each context learns as it goes.

The carry-propagating range coder is Martin's (1979) in the byte-wise form of LZMA (Pavlov).
An integer is spelled as zero or not, its sign, its magnitude in unary up to a limit, and what
is beyond in an Elias-gamma code whose prefix is learnt as well. A probability moves by 1/(n + 1.5)
at its n-th bit, so that it starts as the Krichevsky–Trofimov estimate does, and by 1/128 later.
"""

import numpy as np

from fedcompress.kernels.jit import inlined, kernel

UNARY = 14  # magnitudes up to this are spelled in unary
PREFIX = 44  # octaves of what is beyond
SLOTS = 2 + UNARY + PREFIX  # adaptive bits of a context
LIMIT = 1 << 40  # magnitudes are below this
_BITS = 15
_ONE = 1 << _BITS
_TOP = 1 << 24
_SLOWEST = 126
_RATES = np.array([int(65536 / (n + 1.5)) for n in range(_SLOWEST + 1)], np.int64)

# Registers of a coder, in one array of int64: range, then low, cache, pending, position (encoder)
# or code, position (decoder).
REGISTERS = 5


@inlined
def _adapt(odds, counts, slot, bit):  # type: ignore[no-untyped-def]
    n = counts[slot]
    target = 0 if bit else _ONE
    odds[slot] += ((target - odds[slot]) * _RATES[n]) >> 16
    if odds[slot] < 16:
        odds[slot] = 16
    elif odds[slot] > _ONE - 16:
        odds[slot] = _ONE - 16
    if n < _SLOWEST:
        counts[slot] = n + 1


@inlined
def _shift_low(registers, out):  # type: ignore[no-untyped-def]
    low = registers[1]
    if low < 0xFF000000 or low > 0xFFFFFFFF:
        carry = low >> 32
        position = registers[4]
        if registers[2] >= 0:
            out[position] = (registers[2] + carry) & 0xFF
            position += 1
        while registers[3] > 0:
            out[position] = (0xFF + carry) & 0xFF
            position += 1
            registers[3] -= 1
        registers[4] = position
        registers[2] = (low >> 24) & 0xFF
    else:
        registers[3] += 1
    registers[1] = (low & 0x00FFFFFF) << 8


@inlined
def _put_bit(registers, out, odds, counts, slot, bit):  # type: ignore[no-untyped-def]
    bound = (registers[0] >> _BITS) * odds[slot]
    if bit:
        registers[1] += bound
        registers[0] -= bound
    else:
        registers[0] = bound
    _adapt(odds, counts, slot, bit)
    while registers[0] < _TOP:
        registers[0] <<= 8
        _shift_low(registers, out)


@inlined
def _put_even_bit(registers, out, bit):  # type: ignore[no-untyped-def]
    registers[0] >>= 1
    if bit:
        registers[1] += registers[0]
    while registers[0] < _TOP:
        registers[0] <<= 8
        _shift_low(registers, out)


@kernel
def put(registers, out, odds, counts, values, contexts):  # type: ignore[no-untyped-def]
    """Code ``values[i]`` in context ``contexts[i]``; stops early where ``out`` may be too small.

    Returns how many were coded.
    """
    for i in range(values.size):
        if registers[4] + registers[3] + 64 > out.size:
            return i
        value = values[i]
        base = contexts[i] * SLOTS
        _put_bit(registers, out, odds, counts, base, 1 if value != 0 else 0)
        if value == 0:
            continue
        _put_bit(registers, out, odds, counts, base + 1, 1 if value < 0 else 0)
        rest = abs(value) - 1
        for j in range(UNARY):
            more = 1 if rest > j else 0
            _put_bit(registers, out, odds, counts, base + 2 + j, more)
            if not more:
                break
        if rest >= UNARY:
            rest -= UNARY - 1
            octave = 0
            while rest >> (octave + 1):
                octave += 1
            for j in range(octave):
                _put_bit(registers, out, odds, counts, base + 2 + UNARY + j, 1)
            _put_bit(registers, out, odds, counts, base + 2 + UNARY + octave, 0)
            for j in range(octave - 1, -1, -1):
                _put_even_bit(registers, out, (rest >> j) & 1)
    return values.size


@kernel
def finish(registers, out):  # type: ignore[no-untyped-def]
    """Write what is left in as few bytes as tell it; returns the number of bytes in ``out``."""
    low, width = registers[1], registers[0]
    for zeros in (32, 24, 16, 8, 0):
        mask = (1 << zeros) - 1
        value = (low + mask) & ~mask
        if value < low + width:
            registers[1] = value
            break
    for _ in range(5):
        _shift_low(registers, out)
    size = registers[4]
    while size > 0 and out[size - 1] == 0:  # the decoder reads zeros behind the end
        size -= 1
    return size


@inlined
def _fill(registers, data):  # type: ignore[no-untyped-def]
    while registers[0] < _TOP:
        registers[0] <<= 8
        position = registers[2]
        byte = np.int64(data[position]) if position < data.size else 0
        registers[1] = (registers[1] << 8) | byte
        registers[2] = position + 1


@inlined
def _take_bit(registers, data, odds, counts, slot):  # type: ignore[no-untyped-def]
    bound = (registers[0] >> _BITS) * odds[slot]
    if registers[1] < bound:
        registers[0] = bound
        bit = 0
    else:
        registers[1] -= bound
        registers[0] -= bound
        bit = 1
    _adapt(odds, counts, slot, bit)
    _fill(registers, data)
    return bit


@kernel
def _take_integer(registers, data, odds, counts, base):  # type: ignore[no-untyped-def]
    """Read one integer; beyond ``LIMIT`` where the bytes are damaged."""
    if not _take_bit(registers, data, odds, counts, base):
        return 0
    negative = _take_bit(registers, data, odds, counts, base + 1)
    rest = 0
    while rest < UNARY and _take_bit(registers, data, odds, counts, base + 2 + rest):
        rest += 1
    if rest == UNARY:
        octave = 0
        while _take_bit(registers, data, odds, counts, base + 2 + UNARY + octave):
            octave += 1
            if octave >= 40:
                return 4 * LIMIT
        beyond = 1
        for _ in range(octave):
            registers[0] >>= 1
            bit = 1 if registers[1] >= registers[0] else 0
            if bit:
                registers[1] -= registers[0]
            beyond = (beyond << 1) | bit
            _fill(registers, data)
        rest = UNARY - 1 + beyond
    return -(rest + 1) if negative else rest + 1


@kernel
def take(registers, data, odds, counts, values, contexts):  # type: ignore[no-untyped-def]
    """Read ``values[i]`` in context ``contexts[i]``; returns False where the bytes are damaged."""
    for i in range(values.size):
        values[i] = _take_integer(registers, data, odds, counts, contexts[i] * SLOTS)
        if values[i] > LIMIT:
            return False
    return registers[2] <= data.size + 8


@kernel
def take_trellis(registers, data, odds, counts, values, contexts, base, transitions):  # type: ignore[no-untyped-def]
    """Read rows of levels in contexts ``base + 2 × contexts + quantizer``."""
    for row in range(values.shape[0]):
        state = 0
        for column in range(values.shape[1]):
            context = base + 2 * np.int64(contexts[row, column]) + transitions[state, 2]
            value = _take_integer(registers, data, odds, counts, context * SLOTS)
            if value > LIMIT:
                return False
            values[row, column] = value
            state = transitions[state, value & 1]
    return registers[2] <= data.size + 8
