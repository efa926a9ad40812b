"""Tables of frequencies: joined where they are alike, rounded, laid out for decoding."""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.rans import PRECISION, TOTAL

ABSENT = 63  # level of a symbol that a table does not hold
# Level l stands for the weight 2**(-l / 4), in integers: a payload must not hang on how a machine
# rounds powers of two.
_QUARTERS = np.array([1 << 24, 14107901, 11863283, 9975793], np.int64)
WEIGHTS = np.array([int(_QUARTERS[i % 4]) >> (i // 4) for i in range(ABSENT)] + [0], np.int64)


@kernel
def _cost(counts: np.ndarray, a: int, b: int, bits_a_symbol: float, bits_a_table: float) -> float:
    """Estimate the bits of rows ``a`` and ``b`` together, or of ``a`` alone if they are one."""
    total = 0.0
    bits = 0.0
    for s in range(counts.shape[1]):
        n = counts[a, s] + counts[b, s] if a != b else counts[a, s]
        if n > 0:
            total += n
            bits += bits_a_symbol - n * np.log2(n)
    return bits_a_table + bits + total * np.log2(total) if total > 0 else 0.0


@kernel
def _gain(
    counts: np.ndarray, costs: np.ndarray, a: int, b: int, bits_a_symbol: float, bits_a_table: float
) -> float:
    return costs[a] + costs[b] - _cost(counts, a, b, bits_a_symbol, bits_a_table)


@kernel
def _merge(
    counts: np.ndarray,
    costs: np.ndarray,
    owner: np.ndarray,
    a: int,
    b: int,
    bits_a_symbol: float,
    bits_a_table: float,
) -> None:
    for s in range(counts.shape[1]):
        counts[a, s] += counts[b, s]
    costs[a] = _cost(counts, a, a, bits_a_symbol, bits_a_table)
    for i in range(owner.size):
        if owner[i] == b:
            owner[i] = a


@kernel
def join(
    counts: np.ndarray,
    groups: int,
    most: int,
    bits_a_symbol: float,
    bits_a_table: float,
    owner: np.ndarray,
) -> float:
    """Join histograms while that costs less than the tables saved, and down to ``most``.

    First neighbouring classes of a group, then any two that are left.

    Parameters
    ----------
    counts : ndarray
        float64, shape (classes × groups, alphabet); changed in place.
    owner : ndarray
        int64, shape (contexts,): filled with the context whose row now holds the sum, −1
        where a context has no symbols.

    Returns
    -------
    float
        Bits of all symbols and tables.
    """
    contexts = counts.shape[0]
    costs = np.empty(contexts)
    for i in range(contexts):
        costs[i] = _cost(counts, i, i, bits_a_symbol, bits_a_table)
        owner[i] = i if costs[i] > 0 else -1
    live = np.empty(contexts, np.int64)
    left = 0
    for group in range(groups):
        first = left
        for i in range(group, contexts, groups):
            if owner[i] == i:
                live[left] = i
                left += 1
        gains = np.empty(max(left - first, 1))
        for n in range(first, left - 1):
            gains[n - first] = _gain(
                counts, costs, live[n], live[n + 1], bits_a_symbol, bits_a_table
            )
        while left - first > 1:
            best = first
            for n in range(first, left - 1):
                if gains[n - first] > gains[best - first]:
                    best = n
            if gains[best - first] <= 0:
                break
            _merge(counts, costs, owner, live[best], live[best + 1], bits_a_symbol, bits_a_table)
            for n in range(best + 1, left - 1):
                live[n] = live[n + 1]
                gains[n - first] = gains[n + 1 - first] if n + 1 < left - 1 else 0.0
            left -= 1
            for n in (best - 1, best):
                if first <= n < left - 1:
                    gains[n - first] = _gain(
                        counts, costs, live[n], live[n + 1], bits_a_symbol, bits_a_table
                    )
    any_two = np.empty((left, left))
    gone = np.empty(left, np.bool_)
    for a in range(left):
        gone[a] = False
        for b in range(a + 1, left):
            any_two[a, b] = _gain(counts, costs, live[a], live[b], bits_a_symbol, bits_a_table)
    remaining = left
    while remaining > 1:
        best, a, b = -np.inf, 0, 0
        for i in range(left):
            if not gone[i]:
                for j in range(i + 1, left):
                    if not gone[j] and any_two[i, j] > best:
                        best, a, b = any_two[i, j], i, j
        if best <= 0 and remaining <= most:
            break
        _merge(counts, costs, owner, live[a], live[b], bits_a_symbol, bits_a_table)
        gone[b] = True
        remaining -= 1
        for j in range(left):
            if not gone[j] and j != a:
                any_two[a if a < j else j, j if a < j else a] = _gain(
                    counts, costs, live[a], live[j], bits_a_symbol, bits_a_table
                )
    total = 0.0
    for i in range(left):
        if not gone[i]:
            total += costs[live[i]]
    return total


@kernel
def levels_of(counts: np.ndarray, levels: np.ndarray) -> None:
    """Round each histogram (tables, alphabet) to levels: quarter octaves below its largest."""
    for t in range(counts.shape[0]):
        top = counts[t].max()
        for s in range(counts.shape[1]):
            if counts[t, s] > 0:
                levels[t, s] = min(np.int64(np.rint(4 * np.log2(top / counts[t, s]))), ABSENT - 1)
            else:
                levels[t, s] = ABSENT


@kernel
def frequencies_of(levels: np.ndarray, frequencies: np.ndarray, starts: np.ndarray) -> bool:
    """Spread TOTAL over the symbols of each table (uint32); False where it is too small."""
    for t in range(levels.shape[0]):
        weight = np.int64(0)
        present = np.int64(0)
        for s in range(levels.shape[1]):
            weight += WEIGHTS[levels[t, s]]
            present += levels[t, s] != ABSENT
        if present == 0 or present > TOTAL // 2:
            return False
        left = np.int64(TOTAL)
        first = -1
        for s in range(levels.shape[1]):
            share = np.int64(0)
            if levels[t, s] != ABSENT:
                share = 1 + WEIGHTS[levels[t, s]] * (TOTAL - present) // weight
                if first < 0 or levels[t, s] < levels[t, first]:
                    first = s
            frequencies[t, s] = share
            left -= share
        frequencies[t, first] += left
        start = np.uint32(0)
        for s in range(levels.shape[1]):
            starts[t, s] = start
            start += frequencies[t, s]
    return True


@kernel
def slots_of(frequencies: np.ndarray, slots: np.ndarray) -> None:
    """Lay tables out by slot: symbol, frequency − 1, place within the symbol's slots."""
    for t in range(frequencies.shape[0]):
        slot = np.uint64(0)
        for s in range(frequencies.shape[1]):
            f = np.int64(frequencies[t, s])
            if f == 0:
                continue
            head = np.uint32((s << 24) | (f - 1 << PRECISION))
            for i in range(f):
                slots[t, slot + np.uint64(i)] = head | np.uint32(i)
            slot += np.uint64(f)


@kernel
def _suggested(levels: np.ndarray, half: int, s: int) -> int:
    """Guess the level of ±s, s counted 1 for −1, 2 for +1, 3 for −2 … from those before it."""
    size = (s + 1) // 2
    if s % 2 == 1:
        if size == 1:
            return min(levels[half] + 4, ABSENT)
        one = levels[half - size + 1]
        two = levels[half - size + 2]
        return max(min(2 * one - two, ABSENT), 0)
    near = levels[half - size]
    if size == 1 or near == ABSENT:
        return near
    return max(min(near + levels[half + size - 1] - levels[half - size + 1], ABSENT), 0)


@kernel
def reaches_of(levels: np.ndarray, half: int, reaches: np.ndarray) -> None:
    """Find the largest magnitude that each table holds."""
    for t in range(levels.shape[0]):
        reach = half
        while reach > 0 and levels[t, half - reach] == ABSENT and levels[t, half + reach] == ABSENT:
            reach -= 1
        reaches[t] = reach


@kernel
def contexts_of(reaches: np.ndarray, contexts: np.ndarray) -> None:
    """Give the context of each integer that `spell` writes: zero, −1, then + and −, far ones."""
    n = 0
    for t in range(reaches.size):
        contexts[n] = 0
        n += 1
        for s in range(1, 2 * reaches[t] + 1):
            contexts[n] = 1 if s == 1 else 2 + s % 2
            n += 1
        contexts[n], contexts[n + 1] = 4, 4
        n += 2


@kernel
def spell(levels: np.ndarray, half: int, reaches: np.ndarray, values: np.ndarray) -> None:
    """Spell tables: every level less what the ones nearer zero suggest."""
    n = 0
    for t in range(levels.shape[0]):
        table = levels[t]
        values[n] = table[half]
        n += 1
        for s in range(1, 2 * reaches[t] + 1):
            size = (s + 1) // 2
            level = table[half - size] if s % 2 == 1 else table[half + size]
            values[n] = level - _suggested(table, half, s)
            n += 1
        for i in range(2):
            values[n] = table[2 * half + 1 + i] - ABSENT
            n += 1


@kernel
def unspell(values: np.ndarray, half: int, reaches: np.ndarray, levels: np.ndarray) -> bool:
    """Undo `spell`; False where a level is out of range."""
    n = 0
    for t in range(levels.shape[0]):
        table = levels[t]
        table[:] = ABSENT
        level = values[n]
        n += 1
        if not 0 <= level <= ABSENT:
            return False
        table[half] = level
        for s in range(1, 2 * reaches[t] + 1):
            level = values[n] + _suggested(table, half, s)
            n += 1
            if not 0 <= level <= ABSENT:
                return False
            size = (s + 1) // 2
            table[half - size if s % 2 == 1 else half + size] = level
        for i in range(2):
            level = values[n] + ABSENT
            n += 1
            if not 0 <= level <= ABSENT:
                return False
            table[2 * half + 1 + i] = level
    return True
