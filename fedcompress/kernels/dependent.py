"""A matrix of levels of a trellis, read in one call: side information, tables, words, entries.

Which quantizer a level belongs to follows from the parities of the levels before it in its row,
and with it the table it is coded by. So the decoder knows what a level stands for, and gives that
instead: entries in steps of the trellis, as `trellis.reconstruct` would find them again.
"""

import numpy as np

from fedcompress.kernels import classes, learnt, rans, read_tables, tables
from fedcompress.kernels.adaptive import REGISTERS, SLOTS, take
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.outline import MOST_HALF

(
    CUT_SHORT,
    UNKNOWN,
    LEVEL,
    ALPHABET,
    TOO_MANY,
    TOO_LARGE,
    EMPTY_TABLE,
    NO_END,
    NO_MATCH,
    LEFT_OVER,
) = range(1, 11)
TABLES = 16  # faults from here on are those of `read_tables`
ZERO, PLAIN = 0, 1
_LARGEST = (1 << 31) - 1
_EVEN = 1 << 14
_NONE8 = np.zeros(0, np.uint8)
_NO_TRELLIS = np.zeros((0, 3), np.int64)
_BEYOND = np.float32(1e9)  # stands for an entry that has no symbol of its own
_U = np.uint64
_BITS, _MASK, _ONE = _U(rans.PRECISION), _U(rans.TOTAL - 1), _U(1)
_FLOOR, _SIXTEEN, _TOP, _EIGHT, _STATE = _U(1 << 16), _U(16), _U(24), _U(8), _U(0xFF00)


@kernel
def decode(
    kinds: np.ndarray,
    still: np.uint8,
    offsets: np.ndarray,
    slots: np.ndarray,
    follow: np.ndarray,
    stands_for: np.ndarray,
    words: np.ndarray,
    states: np.ndarray,
    entries: np.ndarray,
) -> int:
    """Read rows of a trellis' levels; returns the position behind the last word as `rans.decode`.

    Parameters
    ----------
    kinds : ndarray
        uint8, shape (rows, columns): classes, those below ``still`` being certain to be zero.
    offsets : ndarray
        uint32, by 2 × class + quantizer: where in ``slots`` its table begins.
    slots : ndarray
        uint32, flat: tables as `rans.decode` takes them.
    follow : ndarray
        uint32, by 256 × state + symbol: 256 × the next state + its quantizer.
    stands_for : ndarray
        float32, by 256 × quantizer + symbol.
    words, states : ndarray
        As `rans.decode` takes them.
    entries : ndarray
        float32, shape (rows, columns): filled.
    """
    rows, columns = entries.shape
    grouped = rows // 4 * 4 if states.size == 4 else 0
    end = words.size - 4
    position = 0
    nothing, zero = np.float32(0), _U(0)
    half = _U(0)
    while stands_for[half] != nothing:
        half += _ONE
    x0 = _U(states[0])
    if grouped:
        x1, x2, x3 = _U(states[1]), _U(states[2]), _U(states[3])
        for row in range(0, grouped, 4):
            d0, d1, d2, d3 = zero, zero, zero, zero
            for column in range(columns):
                k0, k1 = kinds[row, column], kinds[row + 1, column]
                k2, k3 = kinds[row + 2, column], kinds[row + 3, column]
                if max(k0, k1, k2, k3) < still:
                    d0 = _U(follow[(d0 & _STATE) | half])
                    d1 = _U(follow[(d1 & _STATE) | half])
                    d2 = _U(follow[(d2 & _STATE) | half])
                    d3 = _U(follow[(d3 & _STATE) | half])
                    entries[row, column], entries[row + 1, column] = nothing, nothing
                    entries[row + 2, column], entries[row + 3, column] = nothing, nothing
                    continue
                q0, q1, q2, q3 = d0 & _ONE, d1 & _ONE, d2 & _ONE, d3 & _ONE
                e0 = _U(slots[_U(offsets[_U(k0) + _U(k0) + q0]) + (x0 & _MASK)])
                e1 = _U(slots[_U(offsets[_U(k1) + _U(k1) + q1]) + (x1 & _MASK)])
                e2 = _U(slots[_U(offsets[_U(k2) + _U(k2) + q2]) + (x2 & _MASK)])
                e3 = _U(slots[_U(offsets[_U(k3) + _U(k3) + q3]) + (x3 & _MASK)])
                x0 = (((e0 >> _BITS) & _MASK) + _ONE) * (x0 >> _BITS) + (e0 & _MASK)
                x1 = (((e1 >> _BITS) & _MASK) + _ONE) * (x1 >> _BITS) + (e1 & _MASK)
                x2 = (((e2 >> _BITS) & _MASK) + _ONE) * (x2 >> _BITS) + (e2 & _MASK)
                x3 = (((e3 >> _BITS) & _MASK) + _ONE) * (x3 >> _BITS) + (e3 & _MASK)
                e0, e1, e2, e3 = e0 >> _TOP, e1 >> _TOP, e2 >> _TOP, e3 >> _TOP
                entries[row, column] = stands_for[(q0 << _EIGHT) | e0]
                entries[row + 1, column] = stands_for[(q1 << _EIGHT) | e1]
                entries[row + 2, column] = stands_for[(q2 << _EIGHT) | e2]
                entries[row + 3, column] = stands_for[(q3 << _EIGHT) | e3]
                d0 = _U(follow[(d0 & _STATE) | e0])
                d1 = _U(follow[(d1 & _STATE) | e1])
                d2 = _U(follow[(d2 & _STATE) | e2])
                d3 = _U(follow[(d3 & _STATE) | e3])
                if x0 < _FLOOR:
                    x0 = (x0 << _SIXTEEN) | _U(words[position])
                    position += 1
                if x1 < _FLOOR:
                    x1 = (x1 << _SIXTEEN) | _U(words[position])
                    position += 1
                if x2 < _FLOOR:
                    x2 = (x2 << _SIXTEEN) | _U(words[position])
                    position += 1
                if x3 < _FLOOR:
                    x3 = (x3 << _SIXTEEN) | _U(words[position])
                    position += 1
                if position > end:
                    return -1
        states[1], states[2], states[3] = np.uint32(x1), np.uint32(x2), np.uint32(x3)
    for row in range(grouped, rows):
        d0 = zero
        for column in range(columns):
            k0 = _U(kinds[row, column])
            q0 = d0 & _ONE
            e0 = _U(slots[_U(offsets[k0 + k0 + q0]) + (x0 & _MASK)])
            x0 = (((e0 >> _BITS) & _MASK) + _ONE) * (x0 >> _BITS) + (e0 & _MASK)
            e0 >>= _TOP
            entries[row, column] = stands_for[(q0 << _EIGHT) | e0]
            d0 = _U(follow[(d0 & _STATE) | e0])
            if x0 < _FLOOR:
                x0 = (x0 << _SIXTEEN) | _U(words[position])
                position += 1
                if position > end:
                    return -1
    states[0] = np.uint32(x0)
    return position


@kernel
def _prepare(
    half: int,
    transitions: np.ndarray,
    levels: np.ndarray,
    slots: np.ndarray,
    table_of: np.ndarray,
    kinds: np.ndarray,
    offsets: np.ndarray,
    follow: np.ndarray,
    stands_for: np.ndarray,
) -> int:
    """Fill what `decode` takes; gives how many classes are certain to be zero, which come first."""
    count = table_of.size // 2
    sure = np.empty(levels.shape[0], np.bool_)
    for t in range(levels.shape[0]):
        sure[t] = slots[t, 0] == np.uint32((half << 24) | ((rans.TOTAL - 1) << rans.PRECISION))
    number = np.empty(count, np.uint8)
    still = 0
    for wanted in (True, False):
        at = still
        for k in range(count):
            if (sure[table_of[2 * k]] and sure[table_of[2 * k + 1]]) == wanted:
                number[k] = at
                offsets[2 * at] = np.uint32(table_of[2 * k]) * np.uint32(rans.TOTAL)
                offsets[2 * at + 1] = np.uint32(table_of[2 * k + 1]) * np.uint32(rans.TOTAL)
                at += 1
        still = at if wanted else still
    if still:
        classes.look_up(number, kinds)
    for s in range(transitions.shape[0]):
        for i in range(2 * half + 3):
            parity = (i - half) & 1 if i <= 2 * half else i - 2 * half - 1
            d = transitions[s, parity]
            follow[256 * s + i] = np.uint32(256 * d + transitions[d, 2])
    for q in range(2):
        for i in range(2 * half + 1):
            level = i - half
            entry = np.float32(2 * abs(level) - q) if level else np.float32(0)
            stands_for[256 * q + i] = -entry if level < 0 else entry
        stands_for[256 * q + 2 * half + 1], stands_for[256 * q + 2 * half + 2] = _BEYOND, _BEYOND
    return still


@kernel
def _levels_of(entries: np.ndarray, far: np.ndarray, levels: np.ndarray) -> bool:
    """Give the levels (int32), those without a symbol in turn; False if these are too few or many.

    With no ``levels`` to fill they are counted only.
    """
    n = 0
    flat = entries.reshape(-1)
    if levels.size == 0:
        for i in range(flat.size):
            n += flat[i] == _BEYOND
        return n == far.size
    for i in range(flat.size):
        if flat[i] == _BEYOND:
            if n < far.size:
                levels[i] = far[n]
            n += 1
        else:
            magnitude = (abs(np.int32(flat[i])) + 1) >> 1
            levels[i] = -magnitude if flat[i] < 0 else magnitude
    return n == far.size


@kernel
def _words_of(data: np.ndarray, start: int, states: np.ndarray, words: np.ndarray) -> None:
    """Read states and words, little-endian; four zeros stand behind the words."""
    for i in range(states.size):
        at = start + 4 * i
        low = np.uint32(data[at]) | np.uint32(data[at + 1]) << np.uint32(8)
        high = np.uint32(data[at + 2]) | np.uint32(data[at + 3]) << np.uint32(8)
        states[i] = low | high << np.uint32(16)
    start += 4 * states.size
    for i in range(words.size - 4):
        words[i] = np.uint16(data[start + 2 * i]) | np.uint16(data[start + 2 * i + 1]) << np.uint16(
            8
        )
    words[words.size - 4 :] = 0


@kernel
def read(
    data: np.ndarray,
    start: int,
    lanes: int,
    transitions: np.ndarray,
    head: int,
    beyond: int,
    base: int,
    table_base: int,
    contexts: int,
    want_levels: bool,
    entries: np.ndarray,
) -> tuple[int, np.ndarray]:
    """Read a matrix: side information in the bytes before ``start``, then states and words.

    Fills ``entries`` (float32, (rows, columns)). Gives a fault, 0 for none, and the levels
    (int32, flat): none unless they are wanted, or needed, since some have no symbol. Then
    entries are to be found from them.
    """
    rows, columns = entries.shape
    none = np.empty(0, np.int32)
    odds, counts = np.full(contexts * SLOTS, _EVEN), np.zeros(contexts * SLOTS, np.int64)
    registers = np.zeros(REGISTERS, np.int64)
    registers[0], registers[2] = 0xFFFFFFFF, 4
    side = data[:start]
    for i in range(4):
        registers[1] = registers[1] << 8 | (np.int64(side[i]) if i < side.size else 0)
    one = np.empty(1, np.int64)
    if not take(registers, side, odds, counts, one, head, _NONE8, 0, _NO_TRELLIS):
        return CUT_SHORT, none
    if one[0] == ZERO and data.size == start:
        entries[:] = 0
        if side.size > registers[2]:
            return LEFT_OVER, none
        return 0, np.zeros(entries.size if want_levels else 0, np.int32)
    if one[0] != PLAIN:
        return UNKNOWN, none
    row_levels, column_levels = np.empty(rows, np.int16), np.empty(columns, np.int16)
    if learnt.read_both(registers, side, odds, counts, head, base, row_levels, column_levels) < 0:
        return LEVEL, none
    if not take(registers, side, odds, counts, one, head, _NONE8, 0, _NO_TRELLIS):
        return CUT_SHORT, none
    half = one[0]
    if not 0 <= half <= MOST_HALF:
        return ALPHABET, none
    table_of, fault = np.empty(2 * classes.CLASSES, np.uint8), np.zeros(1, np.int64)
    levels = read_tables.read_tables(
        registers, side, odds, counts, half, 2, table_base, table_of, fault
    )
    if fault[0]:
        return TABLES + fault[0], none
    if not take(registers, side, odds, counts, one, head, _NONE8, 0, _NO_TRELLIS):
        return CUT_SHORT, none
    if not 0 <= one[0] <= entries.size:
        return TOO_MANY, none
    far = np.empty(one[0], np.int64)
    if far.size and not take(registers, side, odds, counts, far, beyond, _NONE8, 0, _NO_TRELLIS):
        return CUT_SHORT, none
    for i in range(far.size):
        far[i] += half if far[i] > 0 else -half if far[i] < 0 else 0
        if abs(far[i]) > _LARGEST:
            return TOO_LARGE, none
    if data.size - start < 4 * lanes or (data.size - start) % 2:
        return CUT_SHORT, none
    states = np.empty(lanes, np.uint32)
    words = np.empty((data.size - start - 4 * lanes) // 2 + 4, np.uint16)
    _words_of(data, start, states, words)
    slots = np.empty((levels.shape[0], rans.TOTAL), np.uint32)
    if not tables.slots_for(levels, slots):
        return EMPTY_TABLE, none
    kinds = np.empty((rows, columns), np.uint8)
    classes.classes(row_levels, column_levels, kinds)
    offsets = np.empty(table_of.size, np.uint32)
    follow = np.zeros(256 * transitions.shape[0], np.uint32)
    stands_for = np.empty(512, np.float32)
    still = _prepare(half, transitions, levels, slots, table_of, kinds, offsets, follow, stands_for)
    end = decode(
        kinds,
        np.uint8(still),
        offsets,
        slots.reshape(-1),
        follow,
        stands_for,
        words,
        states,
        entries,
    )
    if end != words.size - 4:
        return NO_END, none
    for i in range(lanes):
        if states[i] != 1 << 16:
            return NO_END, none
    if side.size > registers[2]:
        return LEFT_OVER, none
    known = np.empty(entries.size if want_levels or far.size else 0, np.int32)
    may_be_beyond = far.size > 0
    for t in range(levels.shape[0]):
        for s in range(2 * half + 1, 2 * half + 3):
            may_be_beyond = may_be_beyond or levels[t, s] != tables.ABSENT
    if (known.size or may_be_beyond) and not _levels_of(entries, far, known):
        return NO_MATCH, none
    return 0, known
