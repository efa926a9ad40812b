"""The one place where engines touch what Flower does not export."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    Message,
    RecordDict,
    UserConfig,
)
from flwr.common.config import (
    flatten_dict,
    fuse_dicts,
    get_project_config,
    parse_config_args,
)
from flwr.common.constant import (
    FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE,
    SUPERLINK_NODE_ID,
    ErrorCode,
)
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import Array as ArrayProto
from flwr.proto.recorddict_pb2 import ArrayRecord as ArrayRecordProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import fedavg, strategy_utils
from flwr.supercore.constant import DEFAULT_SIMULATION_CONFIG
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedcompress.dense import plain_array, share_record
from fedcompress.flower_adapter import record_of
from fedcompress.wire import read_varint, write_varint

T = TypeVar("T")

CLIENT_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CLIENT_CRASHED: int = ErrorCode.CLIENT_APP_CRASHED
REPLY_REFUSED: int = ErrorCode.MOD_FAILED_PRECONDITION
SERVER_NODE_ID: int = SUPERLINK_NODE_ID
MAX_CHUNK_BYTES: int = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

DEFAULT_CLIENTS: int = DEFAULT_SIMULATION_CONFIG.num_supernodes or 2

__all__ = [
    "CLIENT_CRASHED",
    "CLIENT_RAISED",
    "DEFAULT_CLIENTS",
    "MAX_CHUNK_BYTES",
    "REPLY_REFUSED",
    "SERVER_NODE_ID",
    "Run",
    "app_settings",
    "assume_server_identity",
    "copy_records",
    "empty_run",
    "load_component",
    "merge_run_config",
    "records_from_bytes",
    "records_to_buffers",
    "records_to_bytes",
    "sample_without_copies",
    "set_message_id",
]


def empty_run(run_id: int, run_config: Mapping[str, bool | float | int | str]) -> Run:
    """Return a run that says no more than its id and its configuration."""
    run = Run.create_empty(run_id)
    run.override_config = dict(run_config)
    return run


def assume_server_identity(run_id: int) -> None:
    """Let this process build messages: `Message(...)` asks who is sending."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, as Flower's own grids do when they push it."""
    message.metadata.__dict__["_message_id"] = message_id


def sample_without_copies() -> None:
    """Let Flower's strategies draw from the ids of a grid of ours without listing all of them.

    They copy what `get_node_ids` gives twice a round, which takes 35 ms for a million clients.
    A `range` is left as it is, with the same draws; other grids' ids are treated as ever.
    """
    for name, replacement in (("list", _unless_a_range), ("sample_nodes", _sample_nodes)):
        setattr(fedavg, name, replacement)


def _unless_a_range(values: Iterable[T] = ()) -> Sequence[T] | range:
    return values if isinstance(values, range) else list(values)


def _sample_nodes(
    grid: Grid, min_available_nodes: int, sample_size: int
) -> tuple[list[int], Sequence[int]]:
    ids = grid.get_node_ids()
    if isinstance(ids, range) and len(ids) >= max(min_available_nodes, sample_size):
        return random.sample(ids, sample_size), ids
    return strategy_utils.sample_nodes(grid, min_available_nodes, sample_size)


def copy_records(records: RecordDict) -> RecordDict:
    """Copy records and Array objects; the bytes, which nobody can change, are shared."""
    copied = RecordDict()
    held = vars(copied)["_data"]  # what comes from a RecordDict need not be checked again
    for key, record in records.items():
        if isinstance(record, ArrayRecord):
            held[key] = share_record(record)
        else:
            held[key] = alike = record.copy()
            for name, value in record.items():
                if isinstance(value, list):
                    vars(alike)["_data"][name] = value.copy()
    return copied


def records_to_bytes(records: RecordDict) -> bytes:
    """Serialise records as Flower's protobuf message; array bytes are copied once."""
    return b"".join(records_to_buffers(records))


def records_to_buffers(records: RecordDict) -> list[bytes]:
    """Serialise records as Flower's protobuf message, in pieces of which no array is copied."""
    pieces: list[bytes] = []
    for key, record in records.items():
        if not isinstance(record, ArrayRecord):
            alone = RecordDict({key: record})
            pieces.append(bytes(recorddict_to_proto(alone).SerializeToString()))
            continue
        arrays: list[bytes] = []
        for name, array in record.items():
            head = _array_head(array.dtype, tuple(array.shape), array.stype)
            if array.data:
                head += _begin(_DATA, len(array.data))
            value = _begin(_VALUE, len(head) + len(array.data))
            name_field = _text(name)
            size = len(name_field) + len(value) + len(head) + len(array.data)
            arrays += [_begin(_ITEMS, size) + name_field + value + head, array.data]
        size = sum(map(len, arrays))
        item = _text(key) + _begin(_ARRAY_RECORD, size)
        pieces += [_begin(_ITEMS, len(item) + size) + item, *arrays]
    return pieces


def records_from_bytes(data: bytes) -> RecordDict:
    """Undo `records_to_bytes`."""
    records = RecordDict()
    view = memoryview(data)
    for number, start, end in _fields(view):
        fields = list(_fields(view[start:end]))
        if number == _ITEMS and [field for field, _, _ in fields] == [_KEY, _ARRAY_RECORD]:
            (_, key_start, key_end), (_, record_start, record_end) = fields
            item = view[start:end]
            key = str(item[key_start:key_end], "utf-8")
            records[key] = _arrays_from(item[record_start:record_end])
        else:
            whole = _begin(number, end - start) + bytes(view[start:end])
            records.update(recorddict_from_proto(RecordDictProto.FromString(whole)))
    return records


def _arrays_from(view: memoryview) -> ArrayRecord:
    arrays: dict[str, Array] = {}
    for _, start, end in _fields(view):
        item = view[start:end]
        name, value = "", memoryview(b"")
        for number, first, last in _fields(item):
            if number == _KEY:
                name = str(item[first:last], "utf-8")
            else:
                value = item[first:last]
        head, content = len(value), b""
        before = 0
        for number, first, last in _fields(value):
            if number == _DATA:
                head, content = before, bytes(value[first:last])
            before = last
        arrays[name] = plain_array(*_read_array_head(bytes(value[:head])), content)
    return record_of(arrays)


# How protobuf lays out what is long: a tag, a length, and as many bytes. The numbers of the
# fields are Flower's own; a test compares the bytes with those that protobuf writes.
_ITEMS = RecordDictProto.DESCRIPTOR.fields_by_name["items"].number
_KEY = RecordDictProto.Item.DESCRIPTOR.fields_by_name["key"].number
_ARRAY_RECORD = RecordDictProto.Item.DESCRIPTOR.fields_by_name["array_record"].number
_VALUE = ArrayRecordProto.Item.DESCRIPTOR.fields_by_name["value"].number
_DATA = ArrayProto.DESCRIPTOR.fields_by_name["data"].number


def _begin(number: int, size: int) -> bytes:
    return write_varint(number << 3 | 2) + write_varint(size)


def _text(text: str) -> bytes:
    data = text.encode()
    return _begin(_KEY, len(data)) + data if data else b""


def _fields(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Give number, start and end of each field; all of ours have a length."""
    position = 0
    while position < len(view):
        tag, position = read_varint(view, position)
        if tag & 7 != 2:
            raise ValueError(f"client state: a field of kind {tag & 7}; the bytes are damaged")
        size, position = read_varint(view, position)
        if size > len(view) - position:
            raise ValueError("client state: the bytes are cut short")
        yield tag >> 3, position, position + size
        position += size


@lru_cache(maxsize=1024)
def _array_head(dtype: str, shape: tuple[int, ...], stype: str) -> bytes:
    return bytes(ArrayProto(dtype=dtype, shape=shape, stype=stype).SerializeToString())


@lru_cache(maxsize=1024)
def _read_array_head(head: bytes) -> tuple[str, tuple[int, ...], str]:
    array = ArrayProto.FromString(head)
    return array.dtype, tuple(array.shape), array.stype


def app_settings(folder: Path) -> dict[str, Any]:
    """Read and check an app's ``pyproject.toml`` as `flwr run` does; ValueError says what lacks."""
    return get_project_config(folder)


def merge_run_config(defaults: Mapping[str, Any], overrides: Sequence[str]) -> UserConfig:
    """Merge ``key=value`` texts over an app's nested settings; ValueError names an unknown key."""
    return fuse_dicts(flatten_dict(dict(defaults)), parse_config_args(list(overrides)))


def load_component(reference: str, folder: Path) -> object:
    """Import ``module:attribute`` of an app as Flower does; its folder joins the path."""
    component: object = load_app(reference, ImportError, folder)
    return component
