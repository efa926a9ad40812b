"""Messages as they travel between driver and workers: JSON, and array bytes as parts of a frame."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedcompress.block import BlockLayout, block_layout
from fedcompress.dense import block_record, plain_array, whole_block
from fedcompress.flower_adapter import filled
from fedcompress.partial import hollow_record, is_hollow_record
from simulations.engines.channel import Part

Json = Any  # what `json` writes and reads
Record = ArrayRecord | MetricRecord | ConfigRecord

# Below this the bytes travel with the message: a look-up costs more than it saves.
MIN_SHARED_BYTES = 1024

_ARRAYS, _METRICS, _CONFIG, _SUMMED, _BLOCK = 0, 1, 2, 3, 4


class SharedContents:
    """What more than one of a round's messages hold: each content, record and array once.

    Attributes
    ----------
    contents, records, arrays : dict of int to int
        Place of each shared content, record and array's bytes, or block, by the object's id.
    buffers : list of bytes or memoryview
        The shared arrays' bytes by their place.
    blocks : list of int
        Places of those that are blocks.
    """

    def __init__(self, contents: Iterable[RecordDict]) -> None:
        times = Counter[int]()
        distinct: dict[int, RecordDict] = {}
        for content in contents:
            times[id(content)] += 1
            distinct[id(content)] = content
        record_times, array_times = Counter[int](), Counter[int]()
        records: dict[int, Record] = {}
        arrays: dict[int, bytes | np.ndarray] = {}
        for key, content in distinct.items():
            for record in content.values():
                record_times[id(record)] += times[key]
                records[id(record)] = record
                for data in _data_of(record):
                    array_times[id(data)] += times[key]
                    arrays[id(data)] = data
        buffers = {key: _buffer(x) for key, x in arrays.items() if array_times[key] > 1}
        shared = [key for key, data in buffers.items() if len(data) >= MIN_SHARED_BYTES]
        self.arrays = {key: place for place, key in enumerate(shared)}
        self.buffers = [buffers[key] for key in shared]
        self.blocks = [
            place for key, place in self.arrays.items() if isinstance(arrays[key], np.ndarray)
        ]
        self._records = [record for key, record in records.items() if record_times[key] > 1]
        self.records = {id(record): place for place, record in enumerate(self._records)}
        self._contents = [content for key, content in distinct.items() if times[key] > 1]
        self.contents = {id(content): place for place, content in enumerate(self._contents)}

    def pack(self, packer: Packer) -> Json:
        """Pack the shared records and contents; the arrays' bytes travel by themselves."""
        return [
            [packer.record(record) for record in self._records],
            [packer.records(content) for content in self._contents],
        ]


def _data_of(record: Record) -> Sequence[bytes | np.ndarray]:
    """Give the block of a record, or else the bytes of its arrays."""
    if not isinstance(record, ArrayRecord):
        return ()
    whole = whole_block(record)
    return [array.data for array in record.values()] if whole is None else [whole[0]]


def _buffer(data: bytes | np.ndarray) -> bytes | memoryview:
    return data if isinstance(data, bytes) else data.data.cast("B")


@lru_cache(maxsize=64)
def say_layout(layout: BlockLayout) -> str:
    """Write the layout of a block as text."""
    return json.dumps([str(layout.dtype), layout.names, layout.shapes])


@lru_cache(maxsize=64)
def said_layout(said: str) -> BlockLayout:
    """Undo `say_layout`."""
    dtype, names, shapes = json.loads(said)
    return block_layout(np.dtype(dtype), tuple(names), tuple(map(tuple, shapes)))


_NOTHING_SHARED = SharedContents(())
_PLAIN = json.JSONEncoder(separators=(",", ":"))  # of what holds no bytes


class Packer:
    """Collects one frame: values as JSON, bytes as parts.

    Parameters
    ----------
    shared : SharedContents, optional
        What the receiver has of this round beforehand, to which contents may refer.
    """

    def __init__(self, shared: SharedContents | None = None) -> None:
        self._shared = _NOTHING_SHARED if shared is None else shared
        self._parts: list[Part] = []

    def part(self, data: Part) -> int:
        """Add bytes as a part and return its number, counted from 1: part 0 is the JSON."""
        self._parts.append(data)
        return len(self._parts)

    def content(self, records: RecordDict) -> Json:
        """Pack a message's content; no array byte is copied."""
        place = self._shared.contents.get(id(records))
        return self.records(records) if place is None else place

    def records(self, records: RecordDict) -> Json:
        """Pack the records of a content."""
        places = self._shared.records
        return [
            [key, self.record(record) if (place := places.get(id(record))) is None else place]
            for key, record in records.items()
        ]

    def record(self, record: Record) -> Json:
        """Pack one record."""
        if isinstance(record, ArrayRecord):
            if is_hollow_record(record):
                return [_SUMMED]
            whole = whole_block(record)
            if whole is not None:
                flat, layout = whole
                return [_BLOCK, say_layout(layout), self._place(flat)]
            return [_ARRAYS, [(name, *self._array(array)) for name, array in record.items()]]
        kind = _METRICS if isinstance(record, MetricRecord) else _CONFIG
        return [kind, list(record.keys()), list(record.values())]

    def _array(self, array: Array) -> Json:
        return array.dtype, array.shape, array.stype, self._place(array.data)

    def _place(self, data: bytes | np.ndarray) -> int:
        """Say where bytes lie; places of shared ones count down from -1, parts up from 1."""
        place = self._shared.arrays.get(id(data))
        return self.part(_buffer(data)) if place is None else ~place

    def finish(self, value: Json) -> list[Part]:
        """Return the frame's parts: `value`, and what was added on the way."""
        try:
            packed = _PLAIN.encode(value)
        except TypeError:
            packed = json.dumps(value, default=self._bytes, separators=(",", ":"))
        return [packed.encode(), *self._parts]

    def _bytes(self, value: object) -> Json:
        # Nothing else is packed as a dict, so none can be mistaken for bytes.
        if not isinstance(value, bytes):
            raise TypeError(f"a record holds a {type(value).__name__}, which no Flower record can")
        return {"part": self.part(value)}


class Unpacker:
    """Reads one frame of a `Packer`.

    Parameters
    ----------
    parts : sequence of memoryview
        The frame's parts.

    Attributes
    ----------
    value
        What was given to `Packer.finish`.
    """

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts
        self._arrays: Sequence[bytes | np.ndarray] = ()
        self._records: list[Record] = []
        self._contents: list[RecordDict] = []
        self._flats: dict[int, np.ndarray] = {}
        self.value: Json = self.json(parts[0])

    def json(self, packed: memoryview) -> Json:
        """Read a part that is JSON."""
        text = str(packed, "utf-8")
        if "{" not in text:  # as most are: to make a decoder takes longer than to decode
            return json.loads(text)
        return json.loads(text, object_hook=lambda held: bytes(self._parts[held["part"]]))

    def part(self, number: int) -> memoryview:
        """Return a part by its number."""
        return self._parts[number]

    def take_shared(self, packed: Json, arrays: Sequence[bytes | np.ndarray]) -> None:
        """Unpack what `SharedContents.pack` gave; later contents may refer to it.

        Of the arrays, blocks are numpy arrays of bytes, which nobody else may change.
        """
        records, contents = packed
        self._arrays = arrays
        self._records = [self.record(record) for record in records]
        self._contents = [self.content(content) for content in contents]

    def shared_with(self, other: Unpacker) -> Unpacker:
        """Refer to what another frame brought."""
        self._arrays = other._arrays
        self._records = other._records
        self._contents = other._contents
        self._flats = other._flats
        return self

    def content(self, packed: Json) -> RecordDict:
        """Unpack a message's content; what is shared is the same object each time."""
        if isinstance(packed, int):
            return self._contents[packed]
        records = {
            key: self._records[record] if isinstance(record, int) else self.record(record)
            for key, record in packed
        }
        return filled(RecordDict(), records)

    def record(self, packed: Json) -> Record:
        """Unpack one record."""
        if packed[0] == _ARRAYS:
            arrays = {}
            for name, dtype, shape, stype, data in packed[1]:
                content = self._parts[data] if data > 0 else self._arrays[~data]
                arrays[name] = plain_array(dtype, tuple(shape), stype, bytes(content))
            return filled(ArrayRecord(), arrays)
        if packed[0] == _BLOCK:
            layout = said_layout(packed[1])
            return block_record(layout, self._flat(packed[2], layout.dtype))
        if packed[0] == _SUMMED:
            return hollow_record()
        items = dict(zip(packed[1], packed[2], strict=True))
        if packed[0] == _METRICS:
            return filled(MetricRecord(), items)
        return filled(ConfigRecord(), items)

    def _flat(self, data: int, dtype: np.dtype) -> np.ndarray:
        """Give a block, the same object each time where it is shared."""
        if data > 0:  # copied, because it may lie anywhere in the frame
            return np.frombuffer(self._parts[data], dtype).copy()
        flat = self._flats.get(data)
        if flat is None:
            flat = self._flats[data] = np.asarray(self._arrays[~data]).view(dtype)
        return flat
