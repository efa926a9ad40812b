"""Tables of frequencies: joined where they are alike, rounded, laid out for decoding."""

import numpy as np

from fedcompress.kernels.classes import FIRST
from fedcompress.kernels.jit import kernel
from fedcompress.kernels.outline import terms_of
from fedcompress.kernels.rans import PRECISION, TOTAL, codes_of

MOST = 32  # tables
_BITS_A_SYMBOL, _BITS_A_TABLE = 2.5, 10.0  # about what a table costs, for choosing how many
_TERMS = 512
_SAME, _NEW, _OTHER = 0, 1, 2  # how a context's table is said
ABSENT = 63  # level of a symbol that a table does not hold
# Level l stands for the weight 2**(-l / 4), in integers: a payload must not hang on how a machine
# rounds powers of two.
_QUARTERS = np.array([1 << 24, 14107901, 11863283, 9975793], np.int64)
WEIGHTS = np.array([int(_QUARTERS[i % 4]) >> (i // 4) for i in range(ABSENT)] + [0], np.int64)


@kernel
def _cost(counts: np.ndarray, a: int, b: int, terms: np.ndarray) -> float:
    """Estimate the bits of rows ``a`` and ``b`` together, or of ``a`` alone if they are one."""
    total = 0
    bits = 0.0
    if a != b:
        for s in range(counts.shape[1]):
            n = counts[a, s] + counts[b, s]
            total += n
            bits += terms[np.uint64(n)] if n < terms.size else _BITS_A_SYMBOL - n * np.log2(n)
    else:
        for s in range(counts.shape[1]):
            n = counts[a, s]
            total += n
            bits += terms[np.uint64(n)] if n < terms.size else _BITS_A_SYMBOL - n * np.log2(n)
    return _BITS_A_TABLE + bits + total * np.log2(total) if total > 0 else 0.0


@kernel
def _merge(
    counts: np.ndarray,
    costs: np.ndarray,
    owner: np.ndarray,
    a: int,
    b: int,
    terms: np.ndarray,
) -> None:
    for s in range(counts.shape[1]):
        counts[a, s] += counts[b, s]
    costs[a] = _cost(counts, a, a, terms)
    for i in range(owner.size):
        if owner[i] == b:
            owner[i] = a


@kernel
def _join(
    counts: np.ndarray,
    size: int,
    group_of: np.ndarray,
    groups: int,
    terms: np.ndarray,
    owner: np.ndarray,
) -> float:
    """Join the first ``size`` histograms while that saves bits, and down to `MOST`.

    First neighbours within a group, then any two that are left.

    Parameters
    ----------
    counts : ndarray
        int64, shape (histograms, symbols); changed in place.
    group_of : ndarray
        int64: of each histogram.
    terms : ndarray
        As `terms_of` gives them.
    owner : ndarray
        int64: filled with the histogram whose row now holds the sum.

    Returns
    -------
    float
        Bits of all symbols and tables.
    """
    costs = np.empty(size)
    for i in range(size):
        costs[i] = _cost(counts, i, i, terms)
        owner[i] = i
    live = np.empty(size, np.int64)
    gains = np.empty(size)
    left = 0
    for group in range(groups):
        first = left
        for i in range(size):
            if group_of[i] == group:
                live[left] = i
                left += 1
        fresh = first  # gains from here on to the one before ``stale`` are to be found
        stale = left - 1
        while left - first > 1:
            for n in range(max(fresh, first), min(stale, left - 1)):
                a, b = live[n], live[n + 1]
                gains[n] = costs[a] + costs[b] - _cost(counts, a, b, terms)
            best = first
            for n in range(first, left - 1):
                if gains[n] > gains[best]:
                    best = n
            if gains[best] <= 0:
                break
            _merge(counts, costs, owner, live[best], live[best + 1], terms)
            left -= 1
            for n in range(best + 1, left):
                live[n] = live[n + 1]
                gains[n] = gains[n + 1] if n < left - 1 else 0.0
            fresh, stale = best - 1, best + 1
    any_two = np.empty((left, left))
    gone = np.zeros(left, np.bool_)
    a = -1  # whose gains are to be found: −1 for all
    remaining = left
    while remaining > 1:
        for i in range(left):
            for j in range(i + 1, left):
                if not gone[i] and not gone[j] and a in (-1, i, j):
                    x, y = live[i], live[j]
                    any_two[i, j] = costs[x] + costs[y] - _cost(counts, x, y, terms)
        best_gain, a, b = -np.inf, 0, 0
        for i in range(left):
            if not gone[i]:
                for j in range(i + 1, left):
                    if not gone[j] and any_two[i, j] > best_gain:
                        best_gain, a, b = any_two[i, j], i, j
        if best_gain <= 0 and remaining <= MOST:
            break
        _merge(counts, costs, owner, live[a], live[b], terms)
        gone[b] = True
        remaining -= 1
    total = 0.0
    for i in range(left):
        if not gone[i]:
            total += costs[live[i]]
    return total


@kernel
def fit(
    counts: np.ndarray,
    groups: int,
    by_level: bool,
    more_bits: float,
    far_bits: float,
    levels: np.ndarray,
    said: np.ndarray,
    table_of: np.ndarray,
    bits: np.ndarray,
) -> int:
    """Choose tables for the histograms of all contexts; gives how many.

    Parameters
    ----------
    counts : ndarray
        uint32, shape (2, classes × groups, alphabet): two parts of the histograms; the first
        takes their sum.
    by_level : bool
        Whether it may be better to put all symbols into one class and send no levels.
    more_bits, far_bits : float
        What is coded besides: with levels, and without.
    levels : ndarray
        int64, shape (`MOST`, alphabet): filled, for each table.
    said : ndarray
        int64: filled with the table of each context, −1 for none.
    table_of : ndarray
        uint8: filled with the table of each context by level, whether levels are sent or not.
    bits : ndarray
        float64: filled with the bits that all takes, and 1 where no levels are to be sent.
    """
    contexts, alphabet = counts.shape[1], counts.shape[2]
    context_of, symbol_of = np.empty(contexts, np.int64), np.empty(alphabet, np.int64)
    seen = np.zeros(alphabet, np.uint32)
    size = 0
    for i in range(contexts):
        total = 0
        for s in range(alphabet):
            counts[0, i, s] += counts[1, i, s]
            seen[s] |= counts[0, i, s]
            total += counts[0, i, s]
        if total > 0:
            context_of[size] = i
            size += 1
    width = 0
    for s in range(alphabet):
        if seen[s]:
            symbol_of[width] = s
            width += 1
    joined = np.empty((size, width), np.int64)
    flat = np.zeros((groups, width), np.int64)
    group_of, owner = np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(size):
        group_of[i] = context_of[i] % groups
        for s in range(width):
            joined[i, s] = counts[0, context_of[i], symbol_of[s]]
            flat[group_of[i], s] += joined[i, s]
    terms = np.empty(_TERMS, np.float64)
    terms_of(_BITS_A_SYMBOL, terms)
    first = (1 - FIRST) * groups
    trial, trial_contexts, trial_groups = joined, context_of, group_of
    trial_owner, trial_size = owner, size
    for flat_levels in range(2 if by_level else 1):
        if flat_levels:
            # All in one class: a histogram for each group that has symbols.
            trial, trial_owner = flat, np.empty(groups, np.int64)
            trial_contexts, trial_groups = np.empty(groups, np.int64), np.empty(groups, np.int64)
            trial_size = 0
            for g in range(groups):
                total = 0
                for s in range(width):
                    flat[trial_size, s] = flat[g, s]
                    total += flat[g, s]
                if total > 0:
                    trial_contexts[trial_size], trial_groups[trial_size] = first + g, g
                    trial_size += 1
        cost = _join(trial, trial_size, trial_groups, groups, terms, trial_owner)
        cost += far_bits if flat_levels else more_bits
        if flat_levels == 0 or cost < bits[0]:
            bits[0], bits[1] = cost, flat_levels
            joined, owner, context_of, size = trial, trial_owner, trial_contexts, trial_size
    for i in range(contexts):
        said[i] = -1
        table_of[i] = 0
    number = np.empty(size, np.int64)
    known = 0
    for i in range(size):
        number[i] = -1
    for i in range(size):
        a = owner[i]
        if number[a] < 0:
            number[a] = known
            _round(joined, a, symbol_of, width, levels, known)
            known += 1
        said[context_of[i]] = number[a]
        table_of[context_of[i]] = number[a]
    if bits[1]:
        for i in range(contexts):
            if said[first + i % groups] >= 0:
                table_of[i] = said[first + i % groups]
    return known


@kernel
def _round(
    counts: np.ndarray, a: int, symbol_of: np.ndarray, width: int, levels: np.ndarray, t: int
) -> None:
    """Round a histogram to levels: quarter octaves below its largest."""
    top = 0
    for s in range(width):
        top = max(top, counts[a, s])
    for s in range(levels.shape[1]):
        levels[t, s] = ABSENT
    for s in range(width):
        if counts[a, s] > 0:
            level = np.int64(np.rint(4 * np.log2(top / counts[a, s])))
            levels[t, symbol_of[s]] = min(level, ABSENT - 1)


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
def slots_for(levels: np.ndarray, slots: np.ndarray) -> bool:
    """Lay tables of levels out by slot; False where one is too small."""
    frequencies = np.empty(levels.shape, np.uint32)
    starts = np.empty(levels.shape, np.uint32)
    if not frequencies_of(levels, frequencies, starts):
        return False
    slots_of(frequencies, slots)
    return True


@kernel
def codes_for(levels: np.ndarray, codes: np.ndarray, reciprocals: np.ndarray) -> bool:
    """Lay tables of levels out for coding; False where one is too small."""
    frequencies = np.empty(levels.shape, np.uint32)
    starts = np.empty(levels.shape, np.uint32)
    if not frequencies_of(levels, frequencies, starts):
        return False
    codes_of(frequencies, starts, codes, reciprocals)
    return True


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
def spelled_size(reaches: np.ndarray) -> int:
    """Count the integers that spell tables of these reaches."""
    size = 0
    for t in range(reaches.size):
        size += 2 * reaches[t] + 3
    return size


@kernel
def contexts_of(reaches: np.ndarray, base: int, contexts: np.ndarray, at: int) -> None:
    """Give the context of each integer that `spell` writes: zero, −1, then + and −, far ones."""
    n = at
    for t in range(reaches.size):
        contexts[n] = base
        n += 1
        for s in range(1, 2 * reaches[t] + 1):
            contexts[n] = base + (1 if s == 1 else 2 + s % 2)
            n += 1
        contexts[n], contexts[n + 1] = base + 4, base + 4
        n += 2


@kernel
def spell(levels: np.ndarray, half: int, reaches: np.ndarray, values: np.ndarray, at: int) -> int:
    """Spell tables from ``at`` on: every level less what the ones nearer zero suggest.

    Returns the place behind the last.
    """
    n = at
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
    return n


@kernel
def say_tables(said: np.ndarray, groups: int, values: np.ndarray, at: int) -> int:
    """Say from ``at`` on which table each context has, as a change from the last of its group."""
    known = 0
    last = np.empty(groups, np.int64)
    for group in range(groups):
        last[group] = -1
    for i in range(said.size):
        group = i % groups
        values[at + i] = _SAME
        if said[i] >= 0 and said[i] == known:
            values[at + i] = _NEW
            known += 1
        elif said[i] >= 0 and said[i] != last[group]:
            values[at + i] = _OTHER + said[i]
        if said[i] >= 0:
            last[group] = said[i]
    return at + said.size


@kernel
def hear_tables(values: np.ndarray, groups: int, table_of: np.ndarray) -> int:
    """Undo `say_tables` into ``table_of`` (uint8); gives how many tables, −1 on damage.

    No table is named for contexts before the first that is used; damaged bytes may use them, so
    they have the first.
    """
    known = 0
    last = np.empty(groups, np.int64)
    for group in range(groups):
        last[group] = -1
    for i in range(values.size):
        group = i % groups
        if values[i] == _NEW:
            last[group] = known
            known += 1
        elif values[i] >= _OTHER:
            last[group] = values[i] - _OTHER
        if values[i] < 0 or last[group] >= known or known > MOST:
            return -1
        table_of[i] = max(last[group], 0)
    return known


@kernel
def unspell(values: np.ndarray, half: int, reaches: np.ndarray, levels: np.ndarray) -> bool:
    """Undo `spell`; False where a level is out of range."""
    n = 0
    for t in range(levels.shape[0]):
        table = levels[t]
        for s in range(table.size):
            table[s] = ABSENT
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
