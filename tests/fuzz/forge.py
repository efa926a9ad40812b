"""Matrices of symbols forged to the grammar: the decoder asks, hostile integers answer.

Bits flipped at random rarely survive the coder of side information, in which every integer moves
all that follow. So the decoder itself is run on a source that draws each integer that it asks
for and writes it down as the encoder would. What comes of it decodes, integer for integer, to
what was drawn: levels, tables that do not exist, lags, counts. The words behind it are those of
symbols under the forged tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

import fedcompress.coders.matrix
from fedcompress.coders.adaptive import AdaptiveEncoder
from fedcompress.coders.symbol_arrays import decode_symbols
from fedcompress.errors import PayloadError
from fedcompress.kernels import along, classes, rans, tables
from fedcompress.rows import row_width
from fedcompress.wire import write_varint
from hostile import edge, integers

_NO_CONTEXTS = np.zeros(0, np.uint8)
_MOST_FOLLOWED = 2000  # symbols up to which the words of a trellis are made to fit
_LOWEST = 1 << 16
_decode_matrix = fedcompress.coders.matrix.decode_matrix


class _Source:
    """Stands in for `AdaptiveDecoder`: draws what is asked for, and notes it."""

    def __init__(self, draw: np.random.Generator, size: int) -> None:
        self.draw = draw
        self.size = size
        self.side = AdaptiveEncoder()
        self.words = b""

    def __call__(self, data: memoryview, contexts: int) -> _Source:
        del data, contexts
        return self

    def expect(self, odds: np.ndarray, context: int) -> None:
        self.side.expect(odds, context)

    def take(self, count: int, context: int, contexts: np.ndarray = _NO_CONTEXTS) -> np.ndarray:
        values = integers(self.draw, min(count, 4 * self.size))
        if count == 1 and self.draw.random() < 0.1:
            values[0] = self.size + int(self.draw.integers(-1, 2))
        self.side.put(values, context, contexts if contexts.size else None)
        return values

    def take_one(self, context: int) -> int:
        return int(self.take(1, context)[0])

    def take_trellis(self, contexts: np.ndarray, base: int, transitions: np.ndarray) -> np.ndarray:
        values = integers(self.draw, contexts.size).reshape(contexts.shape)
        paired = contexts.copy()
        classes.groups_of_state(values, transitions, paired)
        self.side.put(values, base, paired)
        return values

    def check_end(self) -> None:
        pass

    def draw_tables(self, half: int, reaches: np.ndarray, levels: np.ndarray) -> None:
        """Draw tables, mostly such as there are."""
        draw = self.draw
        levels[:] = tables.ABSENT
        for table, reach in zip(levels, reaches.tolist(), strict=True):
            steps = draw.integers(0, int(draw.choice([2, 8, 64])), 2 * reach + 1)
            table[half - reach : half + reach + 1] = steps
            table[-2:] = draw.choice([0, 30, 62, 63], 2)
            if draw.random() < 0.3:
                table[draw.random(table.size) < 0.5] = tables.ABSENT

    def note_words(self, states: np.ndarray, words: np.ndarray) -> None:
        self.words = states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def forge_matrix(
    rows: int, columns: int, transitions: np.ndarray | None, draw: np.random.Generator
) -> bytes:
    """Give bytes for `decode_matrix` that are in its grammar as far as hostile values allow."""
    source = _Source(draw, rows * columns)
    with _answering(source), contextlib.suppress(PayloadError):
        _decode_matrix(memoryview(b"\0" + bytes(16)), rows, columns, transitions)
    side = source.side.bytes()
    return write_varint(len(side)) + side + source.words


def forge_symbols(shape: tuple[int, ...], states: int, draw: np.random.Generator) -> bytes:
    """Give bytes for `decode_symbols`: a method, then matrices for as many as it decodes."""
    found: list[bytes] = []

    def forged(
        data: memoryview, rows: int, columns: int, transitions: np.ndarray | None = None
    ) -> np.ndarray:
        del data
        found.append(forge_matrix(rows, columns, transitions, draw))
        return np.zeros((rows, columns), np.int16)

    with (
        _patched(fedcompress.coders.symbol_arrays, "decode_matrix", forged),
        contextlib.suppress(PayloadError),
    ):
        decode_symbols(memoryview(b"\2\0"), shape, states)
    size = int(np.prod(shape, dtype=np.int64))
    ragged = size % max(row_width(shape), 1) != 0
    lengths = [write_varint(len(part)) if ragged and i == 0 else b"" for i, part in enumerate(found)]
    return b"\2" + b"".join(n + part for n, part in zip(lengths, found, strict=True))


@contextlib.contextmanager
def _answering(source: _Source) -> Iterator[None]:
    """Let decoders draw from ``source``, and kernels that read words write them."""

    def unspell(values: np.ndarray, half: int, reaches: np.ndarray, levels: np.ndarray) -> bool:
        # Changes the integers that were drawn, of which the source has noted the array itself.
        source.draw_tables(half, reaches, levels)
        tables.spell(levels, half, reaches, values)
        if source.draw.random() < 0.03:
            values[int(source.draw.integers(values.size))] = edge(source.draw)
        return real_unspell(values, half, reaches, levels)

    real_unspell = tables.unspell
    real, dependent, by_row = rans.decode, rans.decode_dependent, along.decode

    def decode(tables_of, slots, words, position, states, symbols):  # type: ignore[no-untyped-def]
        room = _room(source, states, symbols.size)
        real(tables_of, slots, room, 0, states.copy(), symbols)
        return _write(source, tables_of, slots, words, states, symbols)

    def decode_dependent(  # type: ignore[no-untyped-def]
        kinds, pairs, slots, transitions, moves, words, position, states, symbols
    ):
        room = _room(source, states, symbols.size)
        end = dependent(
            kinds, pairs, slots, transitions, moves, room, 0, states, symbols
        )
        if symbols.size > _MOST_FOLLOWED:
            source.note_words(np.full(states.size, _LOWEST), room)
            return end
        tables_of = np.empty(symbols.shape, np.uint8)
        for row in range(len(symbols)):
            state = 0
            for column in range(symbols.shape[1]):
                tables_of[row, column] = pairs[kinds[row, column], transitions[state, 2]]
                state = transitions[state, moves[symbols[row, column]]]
        return _write(source, tables_of, slots, words, states, symbols)

    def decode_along(*arguments):  # type: ignore[no-untyped-def]
        *head, words, states, values = arguments
        room = _room(source, states, values.size)
        source.note_words(states, room)
        return by_row(*head, np.append(room, np.zeros(4, np.uint16)), states, values)

    with (
        _patched(fedcompress.coders.matrix, "AdaptiveDecoder", source),
        _patched(tables, "unspell", unspell),
        _patched(rans, "decode", decode),
        _patched(rans, "decode_dependent", decode_dependent),
        _patched(along, "decode", decode_along),
    ):
        yield


def _room(source: _Source, states: np.ndarray, size: int) -> np.ndarray:
    """Draw states, and words enough for so many symbols."""
    draw = source.draw
    low, end = [(0, 1), (0, 1 << 32), (_LOWEST, 1 << 32)][int(draw.choice(3, p=[0.05, 0.05, 0.9]))]
    states[:] = draw.integers(low, end, states.size, dtype=np.uint64)
    return draw.integers(0, 1 << 16, size + 4, dtype=np.uint16)


def _write(  # type: ignore[no-untyped-def]
    source: _Source, tables_of, slots, words, states, symbols
) -> int:
    """Encode the symbols that were read, so that they end as they should."""
    mask = np.uint32(rans.TOTAL - 1)
    symbol = slots >> np.uint32(24)
    width = int(symbol.max()) + 1
    frequencies = np.zeros((len(slots), width), np.uint32)
    starts = np.zeros((len(slots), width), np.uint32)
    for t in range(len(slots)):
        slot = np.arange(rans.TOTAL, dtype=np.uint32)
        frequencies[t, symbol[t]] = ((slots[t] >> np.uint32(12)) & mask) + np.uint32(1)
        starts[t, symbol[t]] = slot - (slots[t] & mask)
    ends = np.full(states.size, _LOWEST, np.uint32)
    out = np.empty(symbols.size + 1, np.uint16)
    start = rans.encode(tables_of, symbols, frequencies, starts, ends, out)
    source.note_words(ends, out[start:])
    states[:] = _LOWEST
    return int(words.size - 4)


@contextlib.contextmanager
def _patched(module: object, name: str, by: object) -> Iterator[None]:
    before: Callable[..., object] = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, before)

