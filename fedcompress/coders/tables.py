"""Tables of frequencies as side information, and which context uses which."""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder
from fedcompress.errors import PayloadError

_FAULTS = (
    "",
    "symbols are cut short; the bytes are damaged",
    "a table of symbols that does not exist; it is damaged",
    "symbols without a table; the bytes are damaged",
    "a table wider than its alphabet; the bytes are damaged",
    "a frequency out of range; the bytes are damaged",
)

_FAULTS_OF_MATRIX = (
    "",
    "symbols are cut short; the bytes are damaged",
    "unknown coding of symbols; the bytes are damaged",
    "a level out of range; the bytes are damaged",
    "an alphabet out of range; the bytes are damaged",
    "more symbols than there are places; the bytes are damaged",
    "a symbol beyond 31 bits; the bytes are damaged",
    "an empty table of symbols; the bytes are damaged",
    "symbols do not end where they should; the bytes are damaged",
    "symbols beyond the tables do not match; damaged bytes",
    "bytes left over behind symbols; they are damaged",
)


@dataclass(frozen=True, eq=False)
class Tables:
    """Levels (int64, (tables, alphabet)) and the table of each context (uint8)."""

    levels: np.ndarray
    of_context: np.ndarray


def take_tables(
    side: AdaptiveDecoder, contexts: int, half: int, groups: int, context: int
) -> Tables:
    """Read tables; takes the contexts from ``context`` to + 6.

    A context that says nothing new uses its group's last table.
    """
    from fedcompress.kernels.read_tables import read_tables

    of_context, fault = np.empty(contexts, np.uint8), np.zeros(1, np.int64)
    levels = read_tables(*side.memory, half, groups, context, of_context, fault)
    if fault[0]:
        raise PayloadError(f"payload: {_FAULTS[fault[0]]}")
    return Tables(levels, of_context)


def slots_of(tables: Tables) -> np.ndarray:
    """Lay tables out for decoding (uint32, (tables, slots))."""
    from fedcompress.kernels import rans
    from fedcompress.kernels.tables import slots_for

    slots = np.empty((len(tables.levels), rans.TOTAL), np.uint32)
    if not slots_for(tables.levels, slots):
        raise PayloadError("payload: an empty table of symbols; the bytes are damaged")
    return slots


def fault_of_matrix(number: int) -> str:
    """Say what is wrong with a matrix, as `kernels.dependent.read` numbers it."""
    from fedcompress.kernels.dependent import TABLES

    return _FAULTS[number - TABLES] if number > TABLES else _FAULTS_OF_MATRIX[number]
