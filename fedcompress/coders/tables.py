"""Tables of frequencies as side information, and which context uses which."""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.errors import PayloadError

MOST_TABLES = 32
BITS_A_SYMBOL, BITS_A_TABLE = 2.5, 10.0  # about what a table costs, for choosing how many
_SAME, _NEW, _OTHER = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Tables:
    """Levels (int64, (tables, alphabet)) and the table of each context (int64, −1 for none)."""

    levels: np.ndarray
    of_context: np.ndarray


def fit(counts: np.ndarray, groups: int) -> tuple[Tables, float]:
    """Choose tables for a histogram (contexts, alphabet), and estimate the bits of it all."""
    from fedcompress.kernels import tables as kernels

    joined = counts.astype(np.float64)
    owner = np.empty(len(joined), np.int64)
    bits = kernels.join(joined, groups, MOST_TABLES, BITS_A_SYMBOL, BITS_A_TABLE, owner)
    owners, first = np.unique(owner[owner >= 0], return_index=True)
    owners = owners[np.argsort(first)]  # numbered as they first appear
    number = np.full(len(joined) + 1, -1, np.int64)
    number[owners] = np.arange(owners.size)
    levels = np.empty((owners.size, joined.shape[1]), np.int64)
    kernels.levels_of(joined[owners], levels)
    return Tables(levels, number[owner]), float(bits)


def put_tables(out: AdaptiveEncoder, tables: Tables, half: int, groups: int, context: int) -> None:
    """Add tables to side information; takes the contexts from ``context`` to + 6."""
    known = 0
    last = [-1] * groups
    said = [_SAME] * len(tables.of_context)
    for i, table in enumerate(tables.of_context.tolist()):
        if table < 0:
            continue
        if table == known:
            said[i] = _NEW
            known += 1
        elif table != last[i % groups]:
            said[i] = _OTHER + table
        last[i % groups] = table
    from fedcompress.kernels import tables as kernels

    out.put(np.array(said, np.int64), context)
    reaches = np.empty(len(tables.levels), np.int64)
    kernels.reaches_of(tables.levels, half, reaches)
    out.put(reaches, context + 1)
    contexts = np.empty(_spelled(reaches), np.uint8)
    kernels.contexts_of(reaches, contexts)
    values = np.empty(contexts.size, np.int64)
    kernels.spell(tables.levels, half, reaches, values)
    out.put(values, context + 2, contexts)


def take_tables(
    data: AdaptiveDecoder, contexts: int, half: int, groups: int, context: int
) -> Tables:
    """Read tables back; a context that says nothing new uses its group's last table."""
    of_context = [-1] * contexts
    last = [-1] * groups
    known = 0
    for i, said in enumerate(data.take(contexts, context).tolist()):
        if said == _NEW:
            last[i % groups] = known
            known += 1
        elif said >= _OTHER:
            last[i % groups] = said - _OTHER
        if said < 0 or last[i % groups] >= known or known > MOST_TABLES:
            raise PayloadError("payload: a table of symbols that does not exist; it is damaged")
        of_context[i] = last[i % groups]
    if known == 0:
        raise PayloadError("payload: symbols without a table; the bytes are damaged")
    from fedcompress.kernels import tables as kernels

    reaches = data.take(known, context + 1)
    if int(reaches.min()) < 0 or int(reaches.max()) > half:
        raise PayloadError("payload: a table wider than its alphabet; the bytes are damaged")
    contexts_said = np.empty(_spelled(reaches), np.uint8)
    kernels.contexts_of(reaches, contexts_said)
    values = data.take(contexts_said.size, context + 2, contexts_said)
    levels = np.empty((known, 2 * half + 3), np.int64)
    if not kernels.unspell(values, half, reaches, levels):
        raise PayloadError("payload: a frequency out of range; the bytes are damaged")
    # No table is named for contexts before the first that is used; damaged bytes may use them.
    return Tables(levels, np.maximum(np.array(of_context, np.int64), 0))


def _spelled(reaches: np.ndarray) -> int:
    """Count the integers that spell tables of these reaches."""
    return int((2 * reaches + 3).sum())
