"""The payload: a checked header, then sections with varint lengths.

====== ===== =====================================================================
offset bytes what
====== ===== =====================================================================
0      2     magic ``b"fc"``
2      1     wire version, 2; what version 1 wrote is still read
3      1     flags, 0
4      4     fingerprint of the spec (CRC-32 of its canonical text)
8      4     fingerprint of the layout (CRC-32 of names, shapes and dtypes, in order)
12     4     checksum: CRC-32 of all bytes but these four
16     rest  sections, each a varint length and as many bytes
====== ===== =====================================================================

Numbers are little-endian. Names and shapes are not sent: both sides know the global model.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedcompress.block import Block, BlockLayout
from fedcompress.errors import PayloadError

MAGIC = b"fc"
VERSION = 2  # 1 had fewer codings of symbols, positions and values, all of them still read
HEADER_BYTES = 16
_MAX_VARINT_BYTES = 9


@dataclass(frozen=True)
class Section:
    """The bytes of one stream, with the kind that the accounting books them under."""

    kind: str
    data: bytes

    @property
    def framed(self) -> bytes:
        """The bytes behind their length, as they stand in a payload."""
        return write_varint(len(self.data)) + self.data

    @property
    def bytes_by_kind(self) -> Mapping[str, int]:
        """What is booked, without the length."""
        return {self.kind: len(self.data)}


@dataclass(frozen=True)
class Framed:
    """Several sections as they stand in a payload, each behind its length."""

    framed: bytes
    bytes_by_kind: Mapping[str, int]


def write_varint(value: int) -> bytes:
    """Write a non-negative integer below 2**63 in base 128, low groups first."""
    if 0 <= value <= 0x7F:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Read a varint at ``position``; return it and the position behind it."""
    if position < len(data) and data[position] < 0x80:  # as most are
        return data[position], position + 1
    value = 0
    for i in range(_MAX_VARINT_BYTES):
        if position + i >= len(data):
            raise PayloadError("payload: ends within a length; it was cut short, send it again")
        byte = data[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    raise PayloadError("payload: a length has more than 63 bits; the bytes are damaged")


def write_signed(value: int) -> bytes:
    """Write an integer of either sign as a varint: 0, −1, 1, −2 and so on become 0, 1, 2, 3."""
    return write_varint(2 * value if value >= 0 else -2 * value - 1)


def read_signed(data: memoryview, position: int) -> tuple[int, int]:
    """Read what `write_signed` wrote at ``position``; return it and the position behind it."""
    folded, position = read_varint(data, position)
    return (folded >> 1 if folded % 2 == 0 else -((folded + 1) >> 1)), position


def fingerprint_spec(spec: str) -> int:
    """Fingerprint a canonical spec."""
    return zlib.crc32(spec.encode())


def fingerprint_layout(like: Mapping[str, Tensor]) -> int:
    """Fingerprint names, shapes and dtypes in their order."""
    if isinstance(like, Block):
        return _block_fingerprint(like.layout)
    return _fingerprint(tuple((name, x.shape, x.dtype) for name, x in like.items()))


@lru_cache(maxsize=64)
def _block_fingerprint(layout: BlockLayout) -> int:
    dtype = getattr(torch, str(layout.dtype))
    return _fingerprint(
        tuple((name, torch.Size(shape), dtype) for name, shape, _ in layout.described)
    )


@lru_cache(maxsize=256)
def _fingerprint(layout: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> int:
    text = "\x1e".join(f"{name}\x1f{tuple(shape)}\x1f{dtype}" for name, shape, dtype in layout)
    return zlib.crc32(text.encode())


def write_payload(
    sections: Iterable[Section | Framed], spec: str, like: Mapping[str, Tensor]
) -> bytes:
    """Frame sections as a payload."""
    head = (
        MAGIC
        + bytes((VERSION, 0))
        + fingerprint_spec(spec).to_bytes(4, "little")
        + fingerprint_layout(like).to_bytes(4, "little")
    )
    body = b"".join([section.framed for section in sections])
    checksum = zlib.crc32(body, zlib.crc32(head))
    return head + checksum.to_bytes(4, "little") + body


def payload_checksum(payload: bytes) -> str:
    """Give the checksum that a payload carries, in hexadecimal: equal payloads, equal checksums."""
    return payload[12:16][::-1].hex()


class SectionReader:
    """Reads the sections of a checked payload in order and books their bytes by kind.

    Raises
    ------
    PayloadError
        If magic, version, spec, layout or checksum are not those expected.
    """

    def __init__(self, payload: bytes, spec: str, like: Mapping[str, Tensor]) -> None:
        view = memoryview(payload)
        if len(view) < HEADER_BYTES:
            raise PayloadError(
                f"payload: {len(view)} bytes are fewer than a header's {HEADER_BYTES}; "
                "it was cut short, send it again"
            )
        if bytes(view[:2]) != MAGIC:
            raise PayloadError(
                f"payload: begins with {bytes(view[:2])!r}, not {MAGIC!r}; "
                "these are not bytes of fedcompress"
            )
        if not 1 <= view[2] <= VERSION or view[3] != 0:
            raise PayloadError(
                f"payload: wire version {view[2]}.{view[3]}, this side reads 1.0 to {VERSION}.0; "
                "install the same version of fedcompress on both sides"
            )
        body_checksum = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[:12]))
        if body_checksum != int.from_bytes(view[12:16], "little"):
            raise PayloadError("payload: checksum does not match; the bytes are damaged")
        if int.from_bytes(view[4:8], "little") != fingerprint_spec(spec):
            raise PayloadError(
                f"payload: was not made by {spec!r}; use the same spec on both sides"
            )
        if int.from_bytes(view[8:12], "little") != fingerprint_layout(like):
            raise PayloadError(
                "payload: was made for arrays of other names, shapes or dtypes; "
                "decode it with the global model that the client was sent"
            )
        self._view = view
        self._position = HEADER_BYTES
        self.memory: Mapping[str, Tensor] = {}  # see Part.memory; none but for predictive coding
        self.bytes_by_kind: Counter[str] = Counter(overhead=HEADER_BYTES)

    def take(self, kind: str) -> memoryview:
        """Read the next section, which holds a stream of ``kind``."""
        length, start = read_varint(self._view, self._position)
        if length > len(self._view) - start:
            raise PayloadError(
                f"payload: a section of {length} bytes does not fit in the "
                f"{len(self._view) - start} that are left; the bytes are damaged"
            )
        self.bytes_by_kind["overhead"] += start - self._position
        self.bytes_by_kind[kind] += length
        self._position = start + length
        return self._view[start : start + length]

    def place(self) -> tuple[int, Counter[str]]:
        """Give what `go_back` needs to read from here again."""
        return self._position, self.bytes_by_kind.copy()

    def go_back(self, place: tuple[int, Counter[str]]) -> None:
        """Forget what was read since `place` was asked."""
        self._position, self.bytes_by_kind = place

    def finish(self) -> None:
        """Check that nothing is left over."""
        left = len(self._view) - self._position
        if left:
            raise PayloadError(f"payload: {left} bytes are left over; the bytes are damaged")
