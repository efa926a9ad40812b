"""Matrices of symbols forged to the grammar: the decoder asks, hostile integers answer.

Bits flipped at random rarely survive the coder of side information, in which every integer moves
all that follow. So the decoder itself is run on a source that draws each integer that it asks
for and writes it down as the encoder would. What comes of it decodes, integer for integer, to
what was drawn: levels, tables that do not exist, lags, counts. The words behind it are those of
symbols under the forged tables.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from hostile import edge, integers

import fedcompress.coders.matrix
import fedcompress.kernels
from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.coders.symbol_arrays import decode_symbols
from fedcompress.coders.symbol_model import SYMBOLS
from fedcompress.errors import PayloadError
from fedcompress.kernels import adaptive, along, classes, dependent, rans, tables
from fedcompress.rows import row_width
from fedcompress.wire import write_varint

_TRIES = 40
_MOST_FOLLOWED = 10_500  # symbols up to which the words of a trellis are made to fit
_LOWEST = 1 << 16
_decode_matrix = fedcompress.coders.matrix.decode_matrix


class _Source:
    """Draws every integer that a decoder asks for, and notes it."""

    def __init__(self, draw: np.random.Generator, size: int, given: list[np.ndarray]) -> None:
        self.draw = draw
        self.size = size
        self.given = given  # what to say first
        self.drawn: list[tuple[np.ndarray, int, np.ndarray | None]] = []
        self.words = b""

    def take(  # type: ignore[no-untyped-def]
        self, registers, data, odds, counts, values, base, contexts, columns, transitions
    ) -> bool:
        """Do as the kernel of this name, which fills ``values``."""
        said = self.given[len(self.drawn)] if len(self.drawn) < len(self.given) else None
        if said is not None and said.size == values.size:
            values[:] = said
        elif values.size == 1 and self.draw.random() < 0.1:
            values[0] = self.size + int(self.draw.integers(-1, 2))
        elif values.size > 3 and self.draw.random() < 0.5:
            values[:] = self.draw.random(values.size) < self.draw.choice([0, 0.05, 0.2, 1])
        else:
            values[:] = integers(self.draw, values.size)
        found = contexts.reshape(-1).astype(np.int64) if contexts.size else None
        if len(transitions):
            found = _of_states(values.reshape(-1, columns), contexts, transitions)
        self.drawn.append((values.copy(), base, found))  # decoders go on in the same array
        return True

    def bytes(self, odds: np.ndarray) -> bytes:
        """Write what was drawn as an encoder does, whose symbols begin with ``odds``."""
        side = AdaptiveEncoder()
        side.expect(odds, SYMBOLS)
        for values, base, contexts in self.drawn:
            side.put(values, base, contexts)
        return side.bytes()

    def draw_tables(self, half: int, reaches: np.ndarray, levels: np.ndarray) -> None:
        """Draw tables, mostly such as there are."""
        draw = self.draw
        levels[:] = tables.ABSENT
        for table, reach in zip(levels, reaches.tolist(), strict=True):
            steps = draw.integers(0, int(draw.choice([2, 8, 64])), 2 * reach + 1)
            table[half - reach : half + reach + 1] = steps
            table[-2:] = draw.choice([0, 30, 62, 63], 2) if draw.random() < 0.4 else tables.ABSENT
            if draw.random() < 0.3:
                table[draw.random(table.size) < 0.5] = tables.ABSENT
            if draw.random() < 0.95:  # an empty table is refused
                table[half] = 0

    def note_words(self, states: np.ndarray, words: np.ndarray) -> None:
        self.words = states.astype("<u4").tobytes() + words.astype("<u2").tobytes()


def _of_states(values: np.ndarray, contexts: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """Give contexts, 2 × class + quantizer, as the trellis runs through rows."""
    states = np.zeros(len(values), np.int64)
    found = 2 * contexts.reshape(values.shape).astype(np.int64)
    for column, levels in enumerate(values.T):
        found[:, column] += transitions[states, 2]
        states = transitions[states, levels & 1]
    return found.reshape(-1)


def forge_matrix(
    rows: int, columns: int, transitions: np.ndarray | None, draw: np.random.Generator
) -> bytes:
    """Give bytes for `decode_matrix` that are in its grammar as far as hostile values allow."""
    best = _Source(draw, rows * columns, [])
    for _ in range(int(draw.integers(1, 8 if _is_learnt(rows, columns) else _TRIES))):
        # Say again what was said to the furthest, but for the last few integers.
        left = len(best.drawn) - int(draw.choice([1, 1, 1, 1, 2, 3]))
        given = [values for values, _, _ in best.drawn[: max(left, 0)]]
        source = _Source(draw, rows * columns, given)
        if _decodes(source, rows, columns, transitions):
            best = source
            break
        best = source if len(source.drawn) >= len(best.drawn) else best
    if _is_learnt(rows, columns):
        return best.bytes(np.repeat(classes.first_odds(), 1 if transitions is None else 2))
    side = best.bytes(np.zeros(0, np.int64))
    words = best.words
    if not words and draw.random() < 0.5:
        words = draw.bytes(2 * int(draw.integers(8, 30)))
    return write_varint(len(side)) + side + words


def _is_learnt(rows: int, columns: int) -> bool:
    return rows * columns < fedcompress.coders.matrix._LEARNT_BELOW


def load() -> None:
    """Import every kernel, and note which of them read integers by themselves."""
    for found in pkgutil.iter_modules(fedcompress.kernels.__path__):
        importlib.import_module(f"fedcompress.kernels.{found.name}")
    _readers()


def _decodes(source: _Source, rows: int, columns: int, transitions: np.ndarray | None) -> bool:
    with _answering(source):
        try:
            # As few bytes as are asked for: a claim of none before the states of the coder.
            data = bytes(4 if _is_learnt(rows, columns) else 17)
            _decode_matrix(memoryview(data), rows, columns, transitions)
        except PayloadError:
            return False
        except Exception:  # noqa: BLE001  a fault, which decoding what comes of it shows again
            return True
    return True


def forge_symbols(shape: tuple[int, ...], states: int, draw: np.random.Generator) -> bytes:
    """Give bytes for `decode_symbols`: a method, then matrices for as many as it decodes."""
    found: list[bytes] = []

    def forged(
        data: memoryview,
        rows: int,
        columns: int,
        transitions: np.ndarray | None = None,
        as_entries: bool = False,
    ) -> np.ndarray:
        del data, as_entries
        found.append(forge_matrix(rows, columns, transitions, draw))
        return np.zeros((rows, columns), np.int16)

    with (
        _patched(fedcompress.coders.symbol_arrays, "decode_matrix", forged),
        contextlib.suppress(PayloadError),
    ):
        decode_symbols(memoryview(b"\2\0"), shape, states)
    size = int(np.prod(shape, dtype=np.int64))
    ragged = size % max(row_width(shape), 1) != 0
    lengths = [
        write_varint(len(part)) if ragged and i == 0 else b"" for i, part in enumerate(found)
    ]
    return b"\2" + b"".join(n + part for n, part in zip(lengths, found, strict=True))


@contextlib.contextmanager
def _answering(source: _Source) -> Iterator[None]:
    """Let decoders draw from ``source``, and kernels that read words write them."""

    def unspell(values: np.ndarray, half: int, reaches: np.ndarray, levels: np.ndarray) -> bool:
        if len(source.drawn) > len(source.given):
            source.draw_tables(half, reaches, levels)
            tables.spell(levels, half, reaches, values, 0)
        if source.draw.random() < 0.03:
            values[int(source.draw.integers(values.size))] = edge(source.draw)
        _, base, contexts = source.drawn.pop()
        source.drawn.append((values.copy(), base, contexts))
        return real_unspell(values, half, reaches, levels)

    class Listening(AdaptiveDecoder):
        def check_end(self) -> None:
            pass

    real_unspell = tables.unspell
    real, of_trellis, by_row = rans.decode, dependent.decode, along.decode

    def decode(tables_of, slots, words, position, states, symbols):  # type: ignore[no-untyped-def]
        room = _room(source, states, symbols.size)
        source.note_words(states, room[:-4])  # in case that reading them fails
        real(tables_of, slots, room, 0, states.copy(), symbols)
        return _write(source, tables_of, slots, words, states, symbols)

    def decode_of_trellis(  # type: ignore[no-untyped-def]
        kinds, still, offsets, slots, follow, stands_for, words, states, entries
    ):
        room = _room(source, states, entries.size)
        source.note_words(states, room[:-4])
        end = of_trellis(kinds, still, offsets, slots, follow, stands_for, room, states, entries)
        beyond = bool((entries == dependent._BEYOND).any())
        if entries.size > _MOST_FOLLOWED or beyond or source.draw.random() < 0.8:
            return end
        tables_of, symbols = np.empty(kinds.shape, np.uint8), np.empty(kinds.shape, np.uint8)
        for row in range(len(symbols)):
            state = 0
            for column in range(symbols.shape[1]):
                quantizer = state & 1
                tables_of[row, column] = offsets[2 * kinds[row, column] + quantizer] // rans.TOTAL
                found = stands_for[256 * quantizer : 256 * quantizer + 256]
                symbols[row, column] = np.flatnonzero(found == entries[row, column])[0]
                state = int(follow[(state & 0xFF00) + symbols[row, column]])
        return _write(source, tables_of, slots.reshape(-1, rans.TOTAL), words, states, symbols)

    def decode_along(*arguments):  # type: ignore[no-untyped-def]
        *head, _, states, values = arguments
        room = _room(source, states, values.size)
        source.note_words(states, room[:-4])
        return by_row(*head, room, states, values)  # type: ignore[call-arg]

    with (
        _patched(fedcompress.coders.matrix, "AdaptiveDecoder", Listening),
        _patched(tables, "unspell", unspell),
        _patched(rans, "decode", decode),
        _patched(dependent, "decode", decode_of_trellis),
        _patched(along, "decode", decode_along),
        _patched(adaptive, "take", source.take),
        contextlib.ExitStack() as stack,
    ):
        for module, name, plain in _readers():
            stack.enter_context(_patched(module, name, plain or source.take))
        yield


@cache
def _readers() -> list[tuple[object, str, Callable[..., object] | None]]:
    """Give kernels that read integers by themselves, as plain Python; None is the reading."""
    found: list[tuple[object, str, Callable[..., object] | None]] = []
    for path, module in list(sys.modules.items()):
        inside = path.startswith("fedcompress.kernels.") and module is not adaptive
        if not inside or getattr(module, "take", None) is not adaptive.take:
            continue
        plain = {
            name: value.py_func
            for name, value in vars(module).items()
            if hasattr(value, "py_func") and value.py_func.__module__ == path
        }
        reading = {"take"}
        for _ in plain:  # those that call one that reads
            reading |= {n for n, code in plain.items() if reading & set(code.__code__.co_names)}
        found += [(module, name, plain.get(name)) for name in reading]
    return found


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
    every = np.arange(256, dtype=np.uint8)
    codes = np.zeros(256 * len(slots), np.uint32)
    reciprocals = np.zeros(256 * len(slots), np.uint64)
    rans.codes_of(frequencies, starts, codes, reciprocals)
    start = rans.encode(tables_of, every, symbols, codes, reciprocals, ends, out)
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
