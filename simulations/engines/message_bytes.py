"""How many bytes Flower's transport sends for a message, without building and hashing them.

The transport sends a message as a set of objects, each once and named by its SHA-256: the
message, its RecordDict, the records, the arrays and the arrays' chunks. What one weighs depends
on the lengths of its parts and on which of its children are equal, so equal contents are found
by comparing, and what Flower makes of a kind of record is measured once and remembered.
"""

from __future__ import annotations

import json
from functools import lru_cache

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from fedcompress.dense import STYPE as DENSE_STYPE
from fedcompress.dense import array_bytes, head_of
from simulations.engines.flower_internals import MAX_CHUNK_BYTES, build_message

_ID = "0" * 64
_INT64_MAX = (1 << 63) - 1
_MOST_REMEMBERED = 10_000

Measured = dict[int, int]  # bytes of each object, by its number
Kind = tuple[object, ...]
Record = ArrayRecord | MetricRecord | ConfigRecord

_record_bytes: dict[Kind, int] = {}
_message_bytes: dict[Kind, int] = {}


class Meter:
    """Measures messages; what several of them share is measured once, and so kept alive."""

    def __init__(self) -> None:
        self._contents: dict[int, tuple[RecordDict, int]] = {}

    def bytes_of(self, message: Message) -> int:
        """Count the bytes of all objects of a message."""
        if not message.has_content():
            return len(build_message(message.metadata, None, message.error).deflate())
        content = message.content
        if id(content) not in self._contents:
            self._contents[id(content)] = content, content_bytes(content)
        return _alone(message.metadata) + self._contents[id(content)][1]


def payload_bytes(content: RecordDict) -> int:
    """Count the bytes of all arrays of a content."""
    return sum(
        array_bytes(array)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of a content and of all objects in it."""
    distinct = _Distinct()
    total, children = 0, set[int]()
    is_alone = sum(isinstance(record, ArrayRecord) for record in content.values()) == 1
    for record in content.values():
        size = _late_bytes(record) if is_alone and isinstance(record, ArrayRecord) else None
        total += size or 0
        children.add(distinct.record(record) if size is None else -1)
    body = _references_bytes(tuple(content))
    return total + distinct.total + _framed("RecordDict", len(children), body)


def _late_bytes(record: ArrayRecord) -> int | None:
    """Count a record whose arrays' bytes are not made yet, and need not be to tell them apart."""
    arrays = record.values()
    kinds = tuple(
        (array.dtype, array.shape, array_bytes(array), head_of(array)) for array in arrays
    )
    return _different_bytes(tuple(record), kinds)


@lru_cache(maxsize=256)
def _different_bytes(
    names: tuple[str, ...], kinds: tuple[tuple[str, tuple[int, ...], int, bytes | None], ...]
) -> int | None:
    """Count a record of arrays of these headers; None where their bytes may be alike."""
    heads = [head for _, _, _, head in kinds]
    if None in heads or len(set(heads)) < len(heads):
        return None
    if any(size > MAX_CHUNK_BYTES for _, _, size, _ in kinds):
        return None
    total = _framed("ArrayRecord", len(names), _references_bytes(names))
    for dtype, shape, size, _ in kinds:
        total += _framed("ArrayChunk", 0, size)
        total += _framed("Array", 1, _array_body_bytes(dtype, shape, DENSE_STYPE, (0,)))
    return total


class _Distinct:
    """Gives equal objects of one content the same number, and adds up what different ones weigh."""

    def __init__(self) -> None:
        self.total = 0
        self._numbers: dict[Kind, int] = {}
        self._chunks: dict[int, list[tuple[bytes, int]]] = {}  # by length
        self._others: dict[tuple[type, int], list[tuple[Record, int]]] = {}  # by type and bytes
        self._count = 0

    def record(self, record: Record) -> int:
        if not isinstance(record, ArrayRecord):
            return self._plain_record(record)
        arrays = tuple(self._array(array) for array in record.values())
        names = tuple(record)
        kind = (names, arrays)
        if kind not in self._numbers:
            body = _references_bytes(names)
            self._numbers[kind] = self._next(_framed("ArrayRecord", len(set(arrays)), body))
        return self._numbers[kind]

    def _plain_record(self, record: MetricRecord | ConfigRecord) -> int:
        size = _plain_record_bytes(record)
        same_size = self._others.setdefault((type(record), size), [])
        deflated = record.deflate() if same_size else b""
        for other, number in same_size:
            if other.deflate() == deflated:
                return number
        same_size.append((record, self._next(size)))
        return same_size[-1][1]

    def _array(self, array: Array) -> int:
        data = array.data
        chunks = [
            self._chunk(data[start : start + MAX_CHUNK_BYTES])
            for start in range(0, len(data), MAX_CHUNK_BYTES)
        ]
        unique = list(dict.fromkeys(chunks))
        kind = (array.dtype, tuple(array.shape), array.stype, tuple(chunks))
        if kind not in self._numbers:
            places = tuple(unique.index(chunk) for chunk in chunks)
            body = _array_body_bytes(array.dtype, tuple(array.shape), array.stype, places)
            self._numbers[kind] = self._next(_framed("Array", len(unique), body))
        return self._numbers[kind]

    def _chunk(self, data: bytes) -> int:
        same_length = self._chunks.setdefault(len(data), [])
        for other, number in same_length:
            if other is data or other == data:
                return number
        same_length.append((data, self._next(_framed("ArrayChunk", 0, len(data)))))
        return same_length[-1][1]

    def _next(self, size: int) -> int:
        self.total += size
        self._count += 1
        return self._count


def _framed(kind: str, children: int, body_bytes: int) -> int:
    """Count an object: kind, ids of its children and length of its body in front of the body."""
    ids = 65 * children - 1 if children else 0
    return len(kind) + 1 + ids + 1 + len(str(body_bytes)) + 1 + body_bytes


@lru_cache(maxsize=1024)
def _references_bytes(names: tuple[str, ...]) -> int:
    return len(json.dumps(dict.fromkeys(names, _ID)).encode())


@lru_cache(maxsize=4096)
def _array_body_bytes(
    dtype: str, shape: tuple[int, ...], stype: str, places: tuple[int, ...]
) -> int:
    body = {"dtype": dtype, "shape": shape, "stype": stype, "arraychunk_ids": places}
    return len(json.dumps(body).encode())


def _plain_record_bytes(record: MetricRecord | ConfigRecord) -> int:
    parts: list[object] = [type(record)]
    for key, value in record.items():
        if isinstance(value, bool | float):
            parts += (key, type(value))
        elif isinstance(value, int):
            is_unsigned = value > _INT64_MAX
            zigzag = value if is_unsigned else (value << 1) ^ (value >> 63)
            parts += (key, is_unsigned, _varint_bytes(zigzag))
        elif isinstance(value, str | bytes):
            parts += (key, type(value), len(value.encode() if isinstance(value, str) else value))
        else:
            return len(record.deflate())
    return _remembered(_record_bytes, tuple(parts), record)


def _alone(metadata: Metadata) -> int:
    """Count a message of this metadata and some content, apart from the content."""
    ids = (metadata.run_id, metadata.src_node_id, metadata.dst_node_id)
    texts = (metadata.reply_to_message_id, metadata.group_id, metadata.message_type)
    kind = (
        *map(_varint_bytes, ids),
        *(len(text.encode()) for text in texts),
        *(metadata.ttl == 0, metadata.created_at == 0),
        *(metadata.src_task_id, metadata.dst_task_id),
    )
    if kind not in _message_bytes:
        return _remembered(_message_bytes, kind, build_message(metadata, RecordDict()))
    return _message_bytes[kind]


def _remembered(known: dict[Kind, int], kind: Kind, like: Record | Message) -> int:
    if kind not in known:
        if len(known) >= _MOST_REMEMBERED:
            known.clear()
        known[kind] = len(like.deflate())
    return known[kind]


def _varint_bytes(value: int) -> int:
    """Count the bytes of a non-negative integer as protobuf writes it, but none for 0."""
    return (value.bit_length() + 6) // 7
