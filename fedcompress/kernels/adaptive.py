"""Adaptive binary range coding of integers: no tables, each context learns as it goes.

The carry-propagating range coder is Martin's (1979) in the byte-wise form of LZMA (Pavlov).
An integer is spelled as zero or not, its sign, its magnitude in unary up to a limit, and what
is beyond in an Elias-gamma code whose prefix is learnt as well. A probability moves by 1/(n + 1.5)
at its n-th bit, so that it starts as the Krichevsky–Trofimov estimate does, and by 1/128 later.

Both loops code one bit a turn, so that the code of a bit stands once and its registers need never
be written back. Which bit comes is hard to foretell, so it moves the registers through masks
rather than through a branch.
"""

import numpy as np

from fedcompress.kernels.jit import kernel

UNARY = 14  # magnitudes up to this are spelled in unary
PREFIX = 44  # octaves of what is beyond
SLOTS = 2 + UNARY + PREFIX  # adaptive bits of a context
_MOST_OCTAVES = 40
_BITS = 15
_ONE = 1 << _BITS
_TOP = 1 << 24
_SLOWEST = 254
_RATES = np.array([int(65536 / (n + 1.5)) for n in range(_SLOWEST + 1)], np.int64)
_LEAST, _MOST = 16, _ONE - 16  # odds stay between these

# Registers of a coder, in one array of int64: width, then low, cache, pending, position (encoder)
# or code, position (decoder).
REGISTERS = 5


@kernel
def put(
    registers: np.ndarray,
    out: np.ndarray,
    odds: np.ndarray,
    counts: np.ndarray,
    values: np.ndarray,
    contexts: np.ndarray,
    size: int,
) -> int:
    """Code ``values[i]`` in context ``contexts[i]`` for the first ``size`` of them.

    Stops early where ``out`` may be too small.

    Returns how many were coded.
    """
    width, low = registers[0], registers[1]
    cache, pending, position = registers[2], registers[3], registers[4]
    done = size
    for i in range(size):
        if position + pending + 160 > out.size:
            done = i
            break
        value = values[i]
        rest = abs(value) - 1
        base = contexts[i] * SLOTS
        # Bits of the slots from 0 on are ones up to the last, which is a zero: but for the sign's.
        last = 0
        octave = 0
        if value != 0:
            last = 2 + rest
            if rest >= UNARY:
                while (rest - UNARY + 1) >> (octave + 1) > 0:
                    octave += 1
                last = 2 + UNARY + octave
        for slot in range(last + 1 + octave):
            if slot <= last:
                bit = np.int64(slot < last)
                if slot == 1:
                    bit = np.int64(value < 0)
                chance = odds[base + slot]
                bound = (width >> _BITS) * chance
                low += bound & -bit
                width = bound + ((width - bound - bound) & -bit)
                n = counts[base + slot]
                chance += ((((1 - bit) << _BITS) - chance) * _RATES[n]) >> 16
                odds[base + slot] = min(max(chance, _LEAST), _MOST)
                counts[base + slot] = min(n + 1, _SLOWEST)
            else:
                width >>= 1
                if ((rest - UNARY + 1) >> (last + octave - slot)) & 1:
                    low += width
            while width < _TOP:
                width <<= 8
                if low < 0xFF000000 or low > 0xFFFFFFFF:
                    carry = low >> 32
                    if cache >= 0:
                        out[position] = (cache + carry) & 0xFF
                        position += 1
                    while pending > 0:
                        out[position] = (0xFF + carry) & 0xFF
                        position += 1
                        pending -= 1
                    cache = (low >> 24) & 0xFF
                else:
                    pending += 1
                low = (low & 0x00FFFFFF) << 8
    registers[0], registers[1] = width, low
    registers[2], registers[3], registers[4] = cache, pending, position
    return done


@kernel
def finish(registers: np.ndarray, out: np.ndarray) -> int:
    """Write what is left in as few bytes as tell it; returns the number of bytes in ``out``."""
    width, low = registers[0], registers[1]
    cache, pending, position = registers[2], registers[3], registers[4]
    for zeros in (32, 24, 16, 8, 0):
        mask = (1 << zeros) - 1
        value = (low + mask) & ~mask
        if value < low + width:
            low = value
            break
    for _ in range(5):
        if low < 0xFF000000 or low > 0xFFFFFFFF:
            carry = low >> 32
            if cache >= 0:
                out[position] = (cache + carry) & 0xFF
                position += 1
            while pending > 0:
                out[position] = (0xFF + carry) & 0xFF
                position += 1
                pending -= 1
            cache = (low >> 24) & 0xFF
        else:
            pending += 1
        low = (low & 0x00FFFFFF) << 8
    least = max(0, position - 8)  # the decoder reads so many zeros behind the end, and no more
    while position > least and out[position - 1] == 0:
        position -= 1
    return position


@kernel
def take(
    registers: np.ndarray,
    data: np.ndarray,
    odds: np.ndarray,
    counts: np.ndarray,
    values: np.ndarray,
    base: int,
    contexts: np.ndarray,
    columns: int,
    transitions: np.ndarray,
) -> bool:
    """Read ``values[i]`` in context ``base + contexts[i]``, or ``base`` if there are none.

    With ``transitions``, shape (states, 3), the values are rows of ``columns`` levels of a
    trellis, and contexts come in pairs, one for each quantizer. Returns False where the bytes
    are damaged.
    """
    width, code, position = registers[0], registers[1], registers[2]
    state = 0
    column = 0
    for i in range(values.size):
        context = base
        if contexts.size:
            context += np.int64(contexts[i])
        if transitions.size:
            if column == columns:
                column = 0
                state = 0
            column += 1
            context += np.int64(contexts[i]) + transitions[state, 2]
        first = context * SLOTS
        negative = 0
        slot = 0
        plain = 0  # bits to come once the slots of a large magnitude are read
        value = 0
        while True:
            if plain == 0:
                chance = odds[first + slot]
                bound = (width >> _BITS) * chance
                bit = np.int64(code >= bound)
                code -= bound & -bit
                width = bound + ((width - bound - bound) & -bit)
                n = counts[first + slot]
                chance += ((((1 - bit) << _BITS) - chance) * _RATES[n]) >> 16
                odds[first + slot] = min(max(chance, _LEAST), _MOST)
                counts[first + slot] = min(n + 1, _SLOWEST)
            else:
                width >>= 1
                bit = np.int64(code >= width)
                code -= width & -bit
            while width < _TOP:
                width <<= 8
                code <<= 8
                if position < data.size:
                    code |= np.int64(data[position])
                position += 1
            if plain:
                value = (value << 1) | bit
                plain -= 1
                if plain == 0:
                    value += UNARY
                    break
            elif slot == 1:
                negative = bit
                slot = 2
            elif bit:
                slot += 1
                if slot == 2 + UNARY + _MOST_OCTAVES:
                    return False
            elif slot <= 2 + UNARY:
                value = slot - (slot > 0)
                break
            else:
                plain = slot - 2 - UNARY
                value = 1
        value = -value if negative else value
        values[i] = value
        if transitions.size:
            state = transitions[state, value & 1]
    registers[0], registers[1], registers[2] = width, code, position
    return position <= data.size + 8
