"""Records as Ray carries them: array bytes as buffers that the object store maps without a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Buffer = np.ndarray[Any, np.dtype[np.uint8]]
# dtype, shape, stype, and the bytes or their place among the round's shared buffers
PackedArray = tuple[str, tuple[int, ...], str, Buffer | int]
PackedRecord = tuple[str, str, dict[str, Any]]  # key, kind, items
PackedRecords = list[PackedRecord]

# Below this the bytes travel with the message: a look-up costs more than it saves.
MIN_SHARED_BYTES = 1024


class SharedBuffers:
    """Array bytes that more than one of a round's messages hold, each stored once."""

    def __init__(self, contents: Iterable[RecordDict]) -> None:
        uses: Counter[int] = Counter()
        data: dict[int, bytes] = {}
        for content in contents:
            for array in _arrays(content):
                uses[id(array.data)] += 1
                data[id(array.data)] = array.data
        shared = [
            key for key, count in uses.items() if count > 1 and len(data[key]) >= MIN_SHARED_BYTES
        ]
        self.places = {key: place for place, key in enumerate(shared)}
        self.buffers = [np.frombuffer(data[key], np.uint8) for key in shared]


def _arrays(records: RecordDict) -> Iterable[Array]:
    for record in records.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def pack_records(records: RecordDict, shared: SharedBuffers | None = None) -> PackedRecords:
    """Take records apart into plain values; no array byte is copied."""
    places = shared.places if shared is not None else {}
    packed: PackedRecords = []
    for key, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays: dict[str, PackedArray] = {}
            for name, array in record.items():
                place = places.get(id(array.data))
                data = np.frombuffer(array.data, np.uint8) if place is None else place
                arrays[name] = (array.dtype, tuple(array.shape), array.stype, data)
            packed.append((key, "arrays", arrays))
        elif isinstance(record, MetricRecord):
            packed.append((key, "metrics", dict(record)))
        else:
            packed.append((key, "config", dict(record)))
    return packed


def unpack_records(
    packed: Sequence[PackedRecord], shared: Callable[[int], bytes] | None = None
) -> RecordDict:
    """Undo `pack_records`; `shared` gives the bytes of a shared buffer by its place."""
    records = RecordDict()
    for key, kind, items in packed:
        if kind == "arrays":
            arrays = ArrayRecord()
            for name, (dtype, shape, stype, data) in items.items():
                if isinstance(data, int):
                    assert shared is not None
                    content = shared(data)
                else:
                    content = data.tobytes()
                arrays[name] = Array(dtype, shape, stype, content)
            records[key] = arrays
        elif kind == "metrics":
            records[key] = MetricRecord(items)
        else:
            records[key] = ConfigRecord(items)
    return records
