"""Small matrices of integers, and levels of rows and columns, as integers for the adaptive coder.

One call codes or reads a whole small matrix: a payload of a small model has many of them, and
calling from the interpreter would cost more than the coding.
"""

import numpy as np

from fedcompress.kernels.adaptive import REGISTERS, SLOTS, UNARY, finish, put, take
from fedcompress.kernels.classes import CLASSES, EMPTY
from fedcompress.kernels.classes import classes as classes_of
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.outline import MOST_LEVEL
from fedcompress.kernels.tables import contexts_of, reaches_of, say_tables, spell, spelled_size

_TRUST = 1  # bits seen that the first odds are worth
_EVEN = 1 << 14
_LARGEST = (1 << 31) - 1
_NONE8 = np.zeros(0, np.uint8)
_NO_TRELLIS = np.zeros((0, 3), np.int64)


@kernel
def spell_levels(
    levels: np.ndarray,
    lags: np.ndarray,
    base: int,
    values: np.ndarray,
    contexts: np.ndarray,
    at: int,
) -> int:
    """Spell levels from ``at`` on as differences from the one ``lag`` before, or from their mean.

    Writes integers and their contexts: ``base`` for the lag, the mean and whether any is empty,
    ``base + 1`` for which, ``base + 2`` for differences. Returns the place behind the last.
    """
    said = np.empty(levels.size, np.int64)
    n = 0
    total = 0
    for i in range(levels.size):
        if levels[i] != EMPTY:
            said[n] = levels[i]
            total += said[n]
            n += 1
    middle = (2 * total + n) // (2 * n) if n else 0
    costs = np.empty(2 * MOST_LEVEL + 1, np.float64)
    for i in range(costs.size):
        costs[i] = np.log2(1.0 + 2.0 * i)
    best = 0.0
    for i in range(n):
        best += costs[abs(said[i] - middle)]
    chosen = 0
    for j in range(lags.size):
        lag = lags[j]
        if lag < n:
            cost = 0.0
            for i in range(n):
                before = said[i - lag] if i >= lag else 0
                cost += costs[abs(said[i] - before)]
            if cost < best:
                best, chosen = cost, lag
    values[at], values[at + 1], values[at + 2] = chosen, middle, n < levels.size
    contexts[at], contexts[at + 1], contexts[at + 2] = base, base, base
    at += 3
    if n < levels.size:
        for i in range(levels.size):
            values[at + i] = levels[i] == EMPTY
            contexts[at + i] = base + 1
        at += levels.size
    for i in range(n):
        before = middle
        if chosen:
            before = said[i - chosen] if i >= chosen else 0
        values[at + i] = said[i] - before
        contexts[at + i] = base + 2
    return at + n


@kernel
def read_levels(
    registers: np.ndarray,
    data: np.ndarray,
    odds: np.ndarray,
    counts: np.ndarray,
    base: int,
    levels: np.ndarray,
) -> bool:
    """Read levels that `spell_levels` spelled; False where the bytes are damaged."""
    head = np.empty(3, np.int64)
    if not take(registers, data, odds, counts, head, base, _NONE8, 0, _NO_TRELLIS):
        return False
    lag, middle = head[0], head[1]
    if not 0 <= lag <= levels.size or abs(middle) > MOST_LEVEL:
        return False
    values = np.empty(levels.size, np.int64)
    n = levels.size
    empty = np.empty(levels.size, np.bool_)
    for i in range(levels.size):
        empty[i] = False
    if head[2]:
        if not take(registers, data, odds, counts, values, base + 1, _NONE8, 0, _NO_TRELLIS):
            return False
        for i in range(levels.size):
            empty[i] = values[i] != 0
            n -= values[i] != 0
    said = values[:n]
    if not take(registers, data, odds, counts, said, base + 2, _NONE8, 0, _NO_TRELLIS):
        return False
    for i in range(n):
        before = middle
        if lag:
            before = said[i - lag] if i >= lag else 0
        said[i] += before
        if abs(said[i]) > MOST_LEVEL:
            return False
    at = 0
    for i in range(levels.size):
        if empty[i]:
            levels[i] = EMPTY
        else:
            levels[i] = said[at]
            at += 1
    return True


@kernel
def read_both(
    registers: np.ndarray,
    data: np.ndarray,
    odds: np.ndarray,
    counts: np.ndarray,
    head: int,
    base: int,
    row_levels: np.ndarray,
    column_levels: np.ndarray,
) -> int:
    """Read which levels are sent, and them; −1 where the bytes are damaged."""
    one = np.empty(1, np.int64)
    if not take(registers, data, odds, counts, one, head, _NONE8, 0, _NO_TRELLIS):
        return -1
    sent = one[0]
    if not 0 <= sent <= 3:
        return -1
    if sent & 1:
        if not read_levels(registers, data, odds, counts, base, row_levels):
            return -1
    else:
        if not take(registers, data, odds, counts, one, head, _NONE8, 0, _NO_TRELLIS):
            return -1
        if abs(one[0]) > MOST_LEVEL:
            return -1
        for i in range(row_levels.size):
            row_levels[i] = one[0]
    for i in range(column_levels.size):
        column_levels[i] = 0
    if sent & 2 and not read_levels(registers, data, odds, counts, base + 3, column_levels):
        return -1
    return sent


@kernel
def spell_both(
    row_levels: np.ndarray,
    column_levels: np.ndarray,
    sent: int,
    row_lags: np.ndarray,
    lags: np.ndarray,
    head: int,
    base: int,
    values: np.ndarray,
    contexts: np.ndarray,
    at: int,
) -> int:
    """Spell which levels are sent, and them, from ``at`` on; returns the place behind the last."""
    values[at], contexts[at] = sent, head
    n = at + 1
    if sent & 1:
        n = spell_levels(row_levels, row_lags, base, values, contexts, n)
    else:
        values[n], contexts[n] = row_levels[0], head
        n += 1
    if sent & 2:
        n = spell_levels(column_levels, lags, base + 3, values, contexts, n)
    return n


@kernel
def _begin(odds: np.ndarray, counts: np.ndarray, context: int) -> None:
    for slot in range(context * SLOTS, (context + 1) * SLOTS):
        odds[slot] = _EVEN
        counts[slot] = 0


@kernel
def _begin_class(odds: np.ndarray, counts: np.ndarray, context: int, first_odds: int) -> None:
    """Begin with the odds that its class suggests, against zero and each step of magnitude."""
    at = context * SLOTS
    for slot in range(at, at + SLOTS):
        odds[slot] = _EVEN
        counts[slot] = 0
    odds[at] = first_odds
    counts[at] = _TRUST
    for slot in range(at + 2, at + 2 + UNARY):
        odds[slot] = first_odds
        counts[slot] = _TRUST


@kernel
def code(
    first: np.ndarray,
    row_levels: np.ndarray,
    column_levels: np.ndarray,
    sent: int,
    row_lags: np.ndarray,
    lags: np.ndarray,
    half: int,
    tables: np.ndarray,
    said: np.ndarray,
    rest: np.ndarray,
    rest_contexts: np.ndarray,
    rest_base: int,
    head: int,
    base: int,
    table_base: int,
    groups: int,
    first_odds: np.ndarray,
    out: np.ndarray,
) -> int:
    """Code what tells a matrix: levels, tables, and integers that have none.

    Gives the bytes that takes; −1 where ``out`` is too small.

    Parameters
    ----------
    first : ndarray
        int64, shape (integers, 2): contexts and integers in them, to begin with.
    row_levels, column_levels, sent
        As `spell_both` takes them, with the lags, and contexts from ``base`` on.
    tables, said : ndarray
        int64: levels of tables (tables, 2 · half + 3), and the table of each context, −1 for
        none; with no tables, neither is coded.
    rest, rest_contexts : ndarray
        int64 and uint8: integers to end with, in contexts from ``rest_base`` on. With contexts,
        which come ``groups`` to a class, they begin with the odds of their class; without,
        their number is coded.
    """
    size = first.shape[0] + 2 * (row_levels.size + column_levels.size) + 8 + said.size + rest.size
    reaches = np.empty(tables.shape[0], np.int64)
    if tables.shape[0]:
        reaches_of(tables, half, reaches)
        size += spelled_size(reaches) + reaches.size + 2
    values, contexts = np.empty(size, np.int64), np.empty(size, np.int64)
    n = first.shape[0]
    for i in range(n):
        contexts[i], values[i] = first[i, 0], first[i, 1]
    n = spell_both(row_levels, column_levels, sent, row_lags, lags, head, base, values, contexts, n)
    if tables.shape[0]:
        values[n], contexts[n] = half, head
        n += 1
        for i in range(said.size):
            contexts[n + i] = table_base
        n = say_tables(said, groups, values, n)
        for t in range(reaches.size):
            values[n], contexts[n] = reaches[t], table_base + 1
            n += 1
        contexts_of(reaches, table_base + 2, contexts, n)
        n = spell(tables, half, reaches, values, n)
        values[n], contexts[n] = rest.size, head
        n += 1
    memory = 0
    for i in range(n):
        memory = max(memory, contexts[i] + 1)
    memory = max(memory, rest_base + (groups * CLASSES if rest_contexts.size else 1))
    odds, counts = np.empty(memory * SLOTS, np.int64), np.empty(memory * SLOTS, np.int64)
    for slot in range(rest_base * SLOTS if rest_contexts.size else memory * SLOTS):
        odds[slot] = _EVEN
        counts[slot] = 0
    begun = np.zeros(groups * CLASSES, np.uint8)
    for i in range(rest.size):
        values[n] = rest[i]
        contexts[n] = rest_base
        if rest_contexts.size:
            k = np.int64(rest_contexts[i])
            contexts[n] += k
            if not begun[k]:
                begun[k] = 1
                _begin_class(odds, counts, rest_base + k, first_odds[k // groups])
        n += 1
    registers = np.empty(REGISTERS, np.int64)
    registers[0], registers[1], registers[2] = 0xFFFFFFFF, 0, -1
    registers[3], registers[4] = 0, 0
    if put(registers, out, odds, counts, values, contexts, n) < n:
        return -1
    if registers[3] + registers[4] + 16 > out.size:
        return -1
    return finish(registers, out)


@kernel
def _stand_for(
    levels: np.ndarray, columns: int, transitions: np.ndarray, entries: np.ndarray
) -> None:
    """Find what levels stand for, to the bits of `trellis.reconstruct`."""
    state = 0
    column = 0
    for i in range(levels.size):
        if column == columns:
            column = 0
            state = 0
        column += 1
        level = levels[i]
        entry = np.float32(np.int32(2 * abs(level) - transitions[state, 2]))
        entries[i] = np.float32(0) if level == 0 else -entry if level < 0 else entry
        state = transitions[state, level & 1]


@kernel
def read_matrix(
    data: np.ndarray,
    transitions: np.ndarray,
    first_odds: np.ndarray,
    head: int,
    base: int,
    symbols_base: int,
    rows: int,
    columns: int,
    values: np.ndarray,
    entries: np.ndarray,
) -> int:
    """Read what `code` coded of a small matrix, into ``values`` (int64, flat).

    With room for them, ``entries`` (float32) are what levels of the trellis stand for. Returns the
    largest magnitude; −1 where the bytes are damaged.
    """
    groups = 2 if transitions.size else 1
    odds = np.empty((symbols_base + groups * CLASSES) * SLOTS, np.int64)
    counts = np.empty((symbols_base + groups * CLASSES) * SLOTS, np.int64)
    for context in range(symbols_base):
        _begin(odds, counts, context)
    registers = np.empty(REGISTERS, np.int64)
    registers[0], registers[1], registers[2] = 0xFFFFFFFF, 0, 4
    registers[3], registers[4] = 0, 0
    for i in range(4):
        byte = np.int64(data[i]) if i < data.size else 0
        registers[1] = registers[1] << 8 | byte
    row_levels, column_levels = np.empty(rows, np.int16), np.empty(columns, np.int16)
    if read_both(registers, data, odds, counts, head, base, row_levels, column_levels) < 0:
        return -1
    found = np.empty((rows, columns), np.uint8)
    classes_of(row_levels, column_levels, found)
    begun = np.zeros(CLASSES, np.uint8)
    for row in range(rows):
        for column in range(columns):
            k = np.int64(found[row, column])
            if not begun[k]:
                begun[k] = 1
                for group in range(groups):
                    context = symbols_base + k * groups + group
                    _begin_class(odds, counts, context, first_odds[k])
    if not take(
        registers,
        data,
        odds,
        counts,
        values,
        symbols_base,
        found.reshape(-1),
        columns,
        transitions,
    ):
        return -1
    if data.size > registers[2]:
        return -1
    largest = 0
    for i in range(values.size):
        largest = max(largest, abs(values[i]))
    if entries.size and largest <= _LARGEST:
        _stand_for(values, columns, transitions, entries)
    return largest
