"""What every symbol of a matrix is expected to be: levels, contexts, tables, and their cost."""

from dataclasses import dataclass

import numpy as np

from fedcompress.coders.adaptive import AdaptiveDecoder
from fedcompress.coders.tables import Tables, take_tables
from fedcompress.errors import PayloadError

# Contexts of the side information.
HEAD, BEYOND, LEVELS, TABLE, EXTRA, SYMBOLS = 0, 1, 2, 8, 15, 20
NO_REST = np.zeros((0, 0), np.int8)
NO_TRELLIS = np.zeros((0, 3), np.int64)
_NONE = np.zeros(0, np.int64)
_NO_HEAD = np.zeros((0, 2), np.int64)
_NO_TABLES = np.zeros((0, 0), np.int64)
_NO_CONTEXTS = np.zeros(0, np.uint8)
_LEVEL_0 = np.zeros(1, np.int16)
_MOST_HALF = 120
_BITS_A_LEVEL = 2.0
_BITS_A_FAR = 12.0
_LARGEST = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class Outline:
    """Levels, the symbols of a matrix (uint8), and the context of each, which the levels give.

    Contexts are classes times groups; ``counts`` are their histograms, in two parts.
    """

    rows: np.ndarray
    columns: np.ndarray
    sent: int
    symbols: np.ndarray
    contexts: np.ndarray
    counts: np.ndarray
    half: int
    beyond: int
    groups: int


@dataclass(frozen=True, eq=False)
class Model:
    """Tables for the contexts of a matrix; ``bits`` is what coding it will take, about.

    ``said`` is the table of each context (int64, −1 for none), ``table_of`` that of each context
    of the outline, whose levels need not be sent.
    """

    bits: float
    sent: int
    levels: np.ndarray
    said: np.ndarray
    table_of: np.ndarray


def outline_of(
    values: np.ndarray, rest: np.ndarray, transitions: np.ndarray, learnt: bool = False
) -> Outline | None:
    """Choose levels for integers (rows, columns); None if all of them are zero.

    What parts a class into groups is the rest of a prediction, or a trellis; either may be empty.
    """
    from fedcompress.kernels import classes, outline

    rows, columns = np.empty(len(values), np.int16), np.empty(values.shape[1], np.int16)
    symbols, contexts = np.empty(values.shape, np.uint8), np.empty(values.shape, np.uint8)
    found = np.empty(3, np.int64)
    counts = outline.outline(
        values,
        rest,
        classes.rest_groups(),
        transitions,
        learnt,
        rows,
        columns,
        symbols,
        contexts,
        found,
    )
    half, sent, beyond = found.tolist()
    if half == 0:
        return None
    groups = 4 if rest.size else 2 if transitions.size else 1
    return Outline(rows, columns, sent, symbols, contexts, counts, half, beyond, groups)


def model_of(outline: Outline, predicted: bool = False) -> Model:
    """Fit tables to the symbols of an outline."""
    from fedcompress.kernels import tables

    contexts, alphabet = outline.counts.shape[1:]
    levels = np.empty((tables.MOST, alphabet), np.int64)
    said, table_of = np.empty(contexts, np.int64), np.empty(contexts, np.uint8)
    bits = np.empty(2)
    sent = outline.sent
    far = _BITS_A_FAR * outline.beyond
    more = _BITS_A_LEVEL * (outline.rows.size * (sent & 1) + outline.columns.size * (sent >> 1))
    known = tables.fit(
        outline.counts,
        outline.groups,
        sent > 0 and not predicted,
        more + far,
        far,
        levels,
        said,
        table_of,
        bits,
    )
    total, flat = bits.tolist()
    return Model(total, 0 if flat else sent, levels[:known], said, table_of)


def put_model(
    first: list[tuple[int, int]],
    outline: Outline,
    model: Model,
    values: np.ndarray,
    row_lags: np.ndarray,
    lags: np.ndarray,
) -> bytes:
    """Give side information: ``first``, contexts and integers in them, then levels and tables."""
    from fedcompress.kernels import classes

    far = _NONE
    if outline.beyond:
        found = np.empty(outline.beyond, np.int64)
        classes.find_beyond(outline.symbols, outline.half, found)
        far = values.reshape(-1)[found].astype(np.int64)
        far -= np.sign(far) * outline.half
    rows, columns = outline.rows, outline.columns
    if outline.sent and not model.sent:
        rows, columns = _LEVEL_0, _LEVEL_0
    head = np.array(first, np.int64)
    lags_of_both = row_lags, lags
    tables = model.levels, model.said
    return _code(
        head, (rows, columns, model.sent), lags_of_both, outline, tables, far, _NO_CONTEXTS, BEYOND
    )


def put_learnt(
    outline: Outline, values: np.ndarray, row_lags: np.ndarray, lags: np.ndarray
) -> bytes:
    """Give levels and the integers of a small matrix, whose histograms are learnt on the way."""
    return _code(
        _NO_HEAD,
        (outline.rows, outline.columns, outline.sent),
        (row_lags, lags),
        outline,
        (_NO_TABLES, _NONE),
        values.reshape(-1).astype(np.int64),
        outline.contexts.reshape(-1),
        SYMBOLS,
    )


def _code(
    first: np.ndarray,
    levels: tuple[np.ndarray, np.ndarray, int],
    lags: tuple[np.ndarray, np.ndarray],
    outline: Outline,
    tables: tuple[np.ndarray, np.ndarray],
    rest: np.ndarray,
    contexts: np.ndarray,
    context: int,
) -> bytes:
    from fedcompress.kernels.classes import first_odds
    from fedcompress.kernels.learnt import code

    out = np.empty(1024 + 2 * (levels[0].size + levels[1].size + rest.size), np.uint8)
    while True:
        end = code(
            first,
            *levels,
            *lags,
            outline.half,
            *tables,
            rest,
            contexts,
            context,
            HEAD,
            LEVELS,
            TABLE,
            outline.groups,
            first_odds(),
            out,
        )
        if end >= 0:
            return out[:end].tobytes()
        out = np.empty(4 * out.size, np.uint8)


def take_half(side: AdaptiveDecoder) -> int:
    """Read the largest magnitude in the tables."""
    half = side.take_one(HEAD)
    if not 0 <= half <= _MOST_HALF:
        raise PayloadError("payload: an alphabet out of range; the bytes are damaged")
    return half


def take_model(
    side: AdaptiveDecoder, half: int, groups: int, size: int
) -> tuple[Tables, np.ndarray]:
    """Read tables, and the values beyond them (int64) in the order of their places."""
    from fedcompress.kernels.classes import CLASSES

    tables = take_tables(side, groups * CLASSES, half, groups, TABLE)
    count = side.take_one(HEAD)
    if not 0 <= count <= size:
        raise PayloadError("payload: more symbols than there are places; the bytes are damaged")
    if count == 0:
        return tables, _NONE
    far = side.take(count, BEYOND)
    far += np.sign(far) * half
    if int(np.abs(far).max()) > _LARGEST:
        raise PayloadError("payload: a symbol beyond 31 bits; the bytes are damaged")
    return tables, far
