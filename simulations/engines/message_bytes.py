"""How many bytes Flower's transport sends for a message, without building and hashing them.

The transport sends a message as a set of objects, each once and named by its SHA-256: the
message, its RecordDict, the records, the arrays and the arrays' chunks. What one weighs depends
on the lengths of its parts and on which of its children are equal, so equal contents are found
by comparing, and what Flower makes of a kind of record is measured once and remembered.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from fedcompress.block import BlockLayout
from fedcompress.dense import STYPE as DENSE_STYPE
from fedcompress.dense import record_bytes, whole_block
from fedcompress.flower_adapter import message_of
from simulations.engines.flower_internals import MAX_CHUNK_BYTES

_ID = "0" * 64
_INT64_MAX = (1 << 63) - 1
_MOST_REMEMBERED = 10_000

Measured = dict[int, int]  # bytes of each object, by its number
Kind = tuple[object, ...]
Record = ArrayRecord | MetricRecord | ConfigRecord

_record_bytes: dict[Kind, int] = {}
_message_bytes: dict[Kind, int] = {}
_content_bytes: dict[Kind, int] = {}


class Meter:
    """Measures messages; what several of them share is measured once, and so kept alive."""

    def __init__(self) -> None:
        self._contents: dict[int, tuple[RecordDict, int]] = {}

    def bytes_of(self, message: Message) -> int:
        """Count the bytes of all objects of a message."""
        if not message.has_content():
            return message_bytes(message)
        content = message.content
        if id(content) not in self._contents:
            self._contents[id(content)] = content, content_bytes(content)
        return _alone(message.metadata) + self._contents[id(content)][1]


def payload_bytes(content: RecordDict) -> int:
    """Count the bytes of all arrays of a content."""
    return sum(
        record_bytes(record) for record in content.values() if isinstance(record, ArrayRecord)
    )


def message_bytes(message: Message) -> int:
    """Count the bytes of all objects of one message, of which nothing is kept."""
    if not message.has_content():
        return len(message_of(message.metadata, None, message.error).deflate())
    return _alone(message.metadata) + content_bytes(message.content)


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of a content and of all objects in it."""
    kinds = [_kind(record) for record in content.values()]
    # Two ArrayRecords may share arrays; of others, those that are of two kinds are not alike.
    blocks = sum(isinstance(kind, BlockLayout) for kind in kinds)
    if None in kinds or blocks > 1 or len(set(kinds)) < len(kinds):
        return _compared_bytes(content)
    kind = tuple(content), *kinds
    if kind not in _content_bytes:
        if len(_content_bytes) >= _MOST_REMEMBERED:
            _content_bytes.clear()
        _content_bytes[kind] = _compared_bytes(content)
    return _content_bytes[kind]


def _kind(record: Record) -> object:
    """Give what a record's bytes are counted by, other than for any other; None if they matter."""
    if not isinstance(record, ArrayRecord):
        return _plain_kind(record)
    whole = whole_block(record)
    return None if whole is None or _block_bytes(whole[1]) is None else whole[1]


def _compared_bytes(content: RecordDict) -> int:
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
    """Count a record whose arrays' bytes are not made yet, if their headers tell them apart."""
    whole = whole_block(record)
    return None if whole is None else _block_bytes(whole[1])


@lru_cache(maxsize=64)
def _block_bytes(layout: BlockLayout) -> int | None:
    if len(set(layout.heads)) < len(layout.heads):
        return None
    total = _framed(
        "ArrayRecord",
        len(layout.names),
        _references_bytes(tuple(layout.names)),
    )
    for (_, shape, dtype), head in zip(layout.described, layout.heads, strict=True):
        size = len(head) + math.prod(shape) * np.dtype(dtype).itemsize
        if size > MAX_CHUNK_BYTES:
            return None
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
    kind = _plain_kind(record)
    return len(record.deflate()) if kind is None else _remembered(_record_bytes, kind, record)


def _plain_kind(record: MetricRecord | ConfigRecord) -> Kind | None:
    """Give what a record's size depends on; None where a list needs a closer look."""
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
            return None
    return tuple(parts)


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
        return _remembered(_message_bytes, kind, message_of(metadata, RecordDict()))
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
