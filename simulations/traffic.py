"""Counting what each message holds and what Flower's transport sends for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from simulations.engines.flower_internals import (
    build_message,
    copy_array,
    no_object_id_recompute,
    transport_bytes,
)
from simulations.grid_around import GridAround


@dataclass(frozen=True)
class MessageTraffic:
    """One message's bytes.

    Attributes
    ----------
    node_id : int
        The client, whichever way the message went.
    message_type : str
        "train", "evaluate" or "query", with its action.
    direction : str
        "downlink" from the server to the client, "uplink" back.
    payload_bytes : int
        Bytes of all `Array.data`: model, update or compressed payload.
    message_bytes : int
        Bytes of all objects that Flower's transport sends for the message: payload, names, shapes,
        configuration, metrics, metadata and the headers of each object.
    """

    node_id: int
    message_type: str
    direction: Literal["downlink", "uplink"]
    payload_bytes: int
    message_bytes: int


@final
class MeasuredGrid(GridAround):
    """Any Grid, with every message counted that passes through it.

    Parameters
    ----------
    grid : Grid
        One of ours, or the one that Flower gives a ServerApp.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._traffic: list[MessageTraffic] = []

    def take(self) -> list[MessageTraffic]:
        """Return what was counted since the last call, in order."""
        taken, self._traffic = self._traffic, []
        return taken

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        pushed = list(self.grid.push_messages(messages))
        self._count(messages, "downlink")
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        self._count(replies, "uplink")
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        self._count(messages, "downlink")
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        self._count(replies, "uplink")
        return replies

    def _count(self, messages: list[Message], direction: Literal["downlink", "uplink"]) -> None:
        meter = _Meter()
        for message in messages:
            metadata = message.metadata
            node_id = metadata.dst_node_id if direction == "downlink" else metadata.src_node_id
            payload_bytes = _payload_bytes(message.content) if message.has_content() else 0
            self._traffic.append(
                MessageTraffic(
                    node_id,
                    metadata.message_type,
                    direction,
                    payload_bytes,
                    meter.bytes_of(message),
                )
            )


class _Meter:
    """Measures messages; what several of them share is measured once.

    It measures copies, since Flower leaves caches in what it deflates.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[int, str, tuple[int, ...], str], tuple[Array, dict[str, int]]] = {}
        self._contents: dict[int, tuple[RecordDict, dict[str, int]]] = {}

    def bytes_of(self, message: Message) -> int:
        with no_object_id_recompute():
            sizes: dict[str, int] = {}
            content = None
            if message.has_content():
                content, sizes = self._content(message.content)
            error = message.error if message.has_error() else None
            alone = build_message(message.metadata, content, error)
            return len(alone.deflate()) + sum(sizes.values())

    def _content(self, content: RecordDict) -> tuple[RecordDict, dict[str, int]]:
        if id(content) not in self._contents:
            sizes: dict[str, int] = {}
            copied = RecordDict()
            for key, record in content.items():
                if isinstance(record, ArrayRecord):
                    arrays = ArrayRecord()
                    for name, array in record.items():
                        arrays[name], array_sizes = self._array(array)
                        sizes.update(array_sizes)
                    sizes[arrays.object_id] = len(arrays.deflate())
                    copied[key] = arrays
                else:
                    copied[key] = record
                    sizes.update(transport_bytes(record))
            sizes[copied.object_id] = len(copied.deflate())
            self._contents[id(content)] = copied, sizes
        return self._contents[id(content)]

    def _array(self, array: Array) -> tuple[Array, dict[str, int]]:
        key = (id(array.data), array.dtype, tuple(array.shape), array.stype)
        if key not in self._arrays:
            copied = copy_array(array)
            self._arrays[key] = copied, transport_bytes(copied)
        return self._arrays[key]


def _payload_bytes(content: RecordDict) -> int:
    return sum(
        len(array.data)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )
