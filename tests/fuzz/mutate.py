"""Payloads changed byte by byte and section by section, the checksum repaired."""

from __future__ import annotations

import zlib

import numpy as np
from hostile import count

from fedcompress.errors import PayloadError
from fedcompress.wire import HEADER_BYTES, read_varint, write_varint

_CHECKSUM = slice(12, 16)


def with_checksum(payload: bytes) -> bytes:
    """Repair the checksum, as one who forges payloads would."""
    if len(payload) < HEADER_BYTES:
        return payload
    body = payload[HEADER_BYTES:]
    value = zlib.crc32(body, zlib.crc32(payload[: _CHECKSUM.start]))
    return payload[: _CHECKSUM.start] + value.to_bytes(4, "little") + body


def join(header: bytes, sections: list[bytes]) -> bytes:
    """Frame sections behind the header of another payload."""
    return with_checksum(header + b"".join(write_varint(len(s)) + s for s in sections))


def split(payload: bytes) -> tuple[bytes, list[bytes]]:
    """Give the header and the sections, as far as they can be told apart."""
    view = memoryview(payload)
    sections, position = [], HEADER_BYTES
    while position < len(view):
        try:
            length, position = read_varint(view, position)
        except PayloadError:
            break
        sections.append(bytes(view[position : position + length]))
        position += length
    return payload[:HEADER_BYTES], sections


def mutate(payload: bytes, other: bytes, draw: np.random.Generator) -> bytes:
    """Change a payload in one to three places; ``other`` lends sections to splice in."""
    kind = draw.random()
    if kind < 0.04:
        return _change_header(payload, draw)
    if kind < 0.12:
        body = _change(payload[HEADER_BYTES:], draw)
        return with_checksum(payload[:HEADER_BYTES] + body)
    header, sections = split(payload)
    if not sections:
        return with_checksum(header + draw.bytes(int(draw.integers(0, 40))))
    for _ in range(int(draw.choice([1, 1, 1, 2, 3]))):
        if sections:
            _change_sections(sections, other, draw)
    return join(header, sections)


def _change_header(payload: bytes, draw: np.random.Generator) -> bytes:
    out = bytearray(payload)
    if len(out) < HEADER_BYTES or draw.random() < 0.5:
        return bytes(out[: int(draw.integers(0, len(out) + 1))])
    out[int(draw.integers(HEADER_BYTES))] ^= 1 << int(draw.integers(8))
    return with_checksum(bytes(out)) if draw.random() < 0.5 else bytes(out)


def _change_sections(sections: list[bytes], other: bytes, draw: np.random.Generator) -> None:
    at = int(draw.integers(len(sections)))
    kind = draw.random()
    if kind < 0.8:
        sections[at] = _change(sections[at], draw)
    elif kind < 0.84:
        sections[at] = draw.bytes(int(draw.integers(0, 64)))
    elif kind < 0.94:
        lent = split(other)[1] or [b""]
        theirs = lent[int(draw.integers(len(lent)))]
        mine = sections[at]
        cut = int(draw.integers(0, len(mine) + 1)) if draw.random() < 0.5 else 0
        sections[at] = mine[:cut] + theirs[min(cut, len(theirs)) :]
    elif kind < 0.96:
        del sections[at]
    elif kind < 0.98:
        sections.insert(at, sections[at])
    else:
        to = int(draw.integers(len(sections)))
        sections[at], sections[to] = sections[to], sections[at]


def _change(data: bytes, draw: np.random.Generator) -> bytes:
    if not data:
        return draw.bytes(int(draw.integers(0, 9)))
    out = bytearray(data)
    # Counts, methods and tables stand in front, so half of the changes go there.
    near = min(len(out), 12) if draw.random() < 0.5 else len(out)
    at = int(draw.integers(near))
    kind = int(draw.integers(8))
    if kind <= 1:
        out[at] ^= 1 << int(draw.integers(8))
    elif kind == 2:
        for _ in range(int(draw.integers(1, 9))):
            byte = int(draw.choice([0, 1, 127, 128, 255])) if draw.random() < 0.5 else None
            out[int(draw.integers(near))] = int(draw.integers(256)) if byte is None else byte
    elif kind == 3:
        del out[at : at + int(draw.integers(1, 9))]
    elif kind == 4:
        out[at:at] = draw.bytes(int(draw.integers(1, 9)))
    elif kind == 5:
        del out[at:]
        out += draw.bytes(int(draw.integers(0, 2)) * int(draw.integers(0, 40)))
    elif kind == 6:
        out[at : at + 1] = write_varint(count(draw))
    else:
        size = int(draw.integers(1, 33))
        out[at : at + size] = bytes(size) if draw.random() < 0.5 else b"\xff" * size
    return bytes(out)
