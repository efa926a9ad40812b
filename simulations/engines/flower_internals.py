"""The one place where engines touch what Flower does not export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.app.message import make_message
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
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.constant import DEFAULT_SIMULATION_CONFIG
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedcompress.dense import share_array as copy_array
from fedcompress.dense import share_record

R = TypeVar("R", RecordDict, ArrayRecord, MetricRecord, ConfigRecord)

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
    "InflatableObject",
    "Run",
    "app_settings",
    "assume_server_identity",
    "build_message",
    "copy_array",
    "copy_records",
    "empty_run",
    "filled",
    "load_component",
    "merge_run_config",
    "no_object_id_recompute",
    "records_from_bytes",
    "records_to_bytes",
    "set_message_id",
    "transport_bytes",
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


def build_message(
    metadata: Metadata, content: RecordDict | None = None, error: Error | None = None
) -> Message:
    """Return a message with this metadata as it stands."""
    return make_message(metadata, content, error)


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, as Flower's own grids do when they push it."""
    message.metadata.__dict__["_message_id"] = message_id


def filled(record: R, items: Mapping[str, object]) -> R:
    """Fill an empty record with what came out of one, which Flower has checked already."""
    vars(record)["_data"].update(items)
    return record


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
    """Serialise records as Flower's protobuf message."""
    return bytes(recorddict_to_proto(records).SerializeToString())


def records_from_bytes(data: bytes) -> RecordDict:
    """Undo `records_to_bytes`."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def transport_bytes(thing: InflatableObject) -> dict[str, int]:
    """Bytes of every object that Flower's transport sends for one thing, by object id."""
    return {
        object_id: len(nested.deflate())
        for object_id, nested in get_all_nested_objects(thing).items()
    }


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
