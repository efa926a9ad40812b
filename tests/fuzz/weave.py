"""Payloads woven section by section: the decoder names the stream it expects, and gets one.

Each section is of the form that the ones before it ask for, however hostile those are, so that
decoding reaches the stages behind the coders. It holds hostile values well coded, or well coded
by an encoder whose counts and integers are tampered with, or symbols forged to the grammar.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType

import hostile
import methods
import numpy as np
from corpus import Seed
from forge import forge_symbols
from mutate import join, split

from fedcompress.coder import Coder
from fedcompress.coders.adaptive import AdaptiveEncoder
from fedcompress.coders.entropy import Entropy
from fedcompress.errors import PayloadError
from fedcompress.registry import coders
from fedcompress.streams import Form, IndexForm, SymbolForm
from fedcompress.wire import SectionReader, write_varint

_HERE = Path(__file__).parent
_OF_STREAMS = {"index", "symbols", "floats", "scale", "seed"}
_BITMAP = 34  # behind n: the set is coded as symbols
_TAMPERED = ("write_varint", "write_signed", "encode_integers", "pack_bits", "ans_encode")


class _Loom(SectionReader):
    """A reader whose sections are made when they are asked for."""

    def __init__(self, seed: Seed, draw: np.random.Generator) -> None:
        super().__init__(seed.payload, seed.spec, seed.like)
        self.memory = seed.memory
        self.given = split(seed.payload)[1]
        self.draw = draw
        self.sections: list[bytes] = []

    def take(self, kind: str) -> memoryview:
        """Give the section that the payload has at this place; a coder asks for another."""
        at = len(self.sections)
        fits = kind not in _OF_STREAMS and at < len(self.given)
        self.sections.append(self.given[at] if fits else b"")
        return memoryview(self.sections[-1])

    def answer(self, coder: Coder, form: Form) -> memoryview:
        """Make the section that a coder is about to read."""
        self.sections[-1] = _section(coder, form, self.draw)
        return memoryview(self.sections[-1])


_looms: list[_Loom] = []


def weave(seed: Seed, draw: np.random.Generator) -> bytes:
    """Give a payload of hostile sections, each of the form that is expected there."""
    loom = _Loom(seed, draw)
    _looms.append(loom)
    try:
        for part in seed.compressor.read_sections(loom, seed.like).values():
            part.is_finite()
    except PayloadError:
        pass  # what is left of the payload goes unread
    except Exception as error:
        if Path(innermost(error).co_filename).parent == _HERE:
            raise  # a fault of ours; one of a decoder is found when the payload is decoded
    finally:
        _looms.pop()
    return join(seed.payload[:16], loom.sections)


def innermost(error: BaseException) -> CodeType:
    """Give the code that raised an error."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None:
        raise TypeError("an error that was not raised") from error
    return step.tb_frame.f_code


def tamper(seed: Seed, draw: np.random.Generator) -> bytes:
    """Encode the seed's update anew by an encoder that writes some other counts and integers."""
    from fedcompress import rng_for

    with _tampering(draw, 0.03):
        try:
            state = seed.compressor.init(seed.like)
            return seed.compressor.encode(seed.like, state, rng_for(1))[0]
        except Exception:  # noqa: BLE001  the encoder may trip over what it wrote
            return seed.payload


def listen() -> None:
    """Let every coder ask the loom, where there is one, for what it decodes."""
    for kind in coders().values():
        _listen(kind)


def _listen(kind: type[Coder]) -> None:
    decode = kind.decode

    def asked(self: Coder, data: memoryview, form: Form):  # type: ignore[no-untyped-def]
        if not _looms:
            return decode(self, data, form)
        loom = _looms.pop()  # coders inside this one decode what they are given
        try:
            return decode(self, loom.answer(self, form), form)
        finally:
            _looms.append(loom)

    kind.decode = asked  # type: ignore[method-assign]


def _section(coder: Coder, form: Form, draw: np.random.Generator) -> bytes:
    kind = draw.random()
    if isinstance(coder, Entropy) and kind < 0.45:
        if isinstance(form, SymbolForm):
            return forge_symbols(form.shape, form.states, draw)
        if isinstance(form, IndexForm) and kind < 0.15:
            bitmap = forge_symbols(form.shape or (form.n,), 0, draw)
            return write_varint(form.n + _BITMAP) + bitmap
    if kind > 0.98:
        return draw.bytes(int(draw.integers(0, 40)))
    stream = hostile.stream(form, draw)
    with _tampering(draw, 0.05 if kind > 0.7 else 0.0):
        try:
            if isinstance(coder, Entropy) and draw.random() < 0.5:
                return methods.encode(stream, draw)
            return coder.encode(stream)
        except Exception as error:
            if kind <= 0.7 and Path(innermost(error).co_filename).parent == _HERE:
                raise  # a fault of ours; an encoder may refuse such values
            return draw.bytes(int(draw.integers(0, 40)))


@contextlib.contextmanager
def _tampering(draw: np.random.Generator, odds: float) -> Iterator[None]:
    """Let encoders write, once in a while, another integer than they mean."""
    if odds == 0:
        yield
        return
    put = AdaptiveEncoder.put

    def tampered_put(self, values, context, contexts=None):  # type: ignore[no-untyped-def]
        if values.size and draw.random() < 4 * odds:
            values = values.astype(np.int64)
            flat = values.reshape(-1)
            for _ in range(int(draw.choice([1, 1, 3]))):
                flat[int(draw.integers(flat.size))] = hostile.edge(draw)
        put(self, values, context, contexts)

    AdaptiveEncoder.put = tampered_put  # type: ignore[method-assign]
    for module, name, real in _writers():
        setattr(module, name, _tampered(real, draw, odds))
    try:
        yield
    finally:
        AdaptiveEncoder.put = put  # type: ignore[method-assign]
        for module, name, real in _writers():
            setattr(module, name, real)


@cache
def _writers() -> list[tuple[object, str, Callable[..., object]]]:
    """Give all names by which modules call what writes integers, and what they stand for."""
    modules = [m for name, m in sys.modules.items() if name.startswith("fedcompress")]
    return [(m, name, getattr(m, name)) for m in modules for name in _TAMPERED if hasattr(m, name)]


def _tampered(real, draw: np.random.Generator, odds: float):  # type: ignore[no-untyped-def]
    def call(value, *rest):  # type: ignore[no-untyped-def]
        if draw.random() < odds:
            if isinstance(value, int):
                value = hostile.count(draw) % (1 << 62)
            elif isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
                value = value.astype(np.int64)
                value.reshape(-1)[int(draw.integers(value.size))] = hostile.edge(draw, 1 << 59)
        return real(value, *rest)

    return call
