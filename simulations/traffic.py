"""Counting what each message holds and what Flower's transport sends for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

from flwr.app import Message
from flwr.serverapp import Grid

from fedcompress.grid_around import GridAround
from fedcompress.partial import PartialSum, SummedReply, SummingGrid, SumPlan
from simulations.engines.message_bytes import Meter, payload_bytes


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
        self._is_armed = False
        self._sums: list[PartialSum] = []

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
        self._count_replies(replies)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        self._count(messages, "downlink")
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        self._count_replies(replies)
        return replies

    def sum_updates(self, plan: SumPlan | None) -> bool:
        """Arm the wrapped grid, if it can sum, to measure what it sums."""
        self._sums = []
        self._is_armed = isinstance(self.grid, SummingGrid) and self.grid.sum_updates(
            None if plan is None else replace(plan, measures=True)
        )
        return self._is_armed

    def take_sums(self) -> list[PartialSum]:
        """Take the sums of the last round."""
        taken, self._sums = self._sums, []
        return taken

    def _count_replies(self, replies: list[Message]) -> None:
        if self._is_armed and isinstance(self.grid, SummingGrid):
            self._sums += self.grid.take_sums()
        rows = {row.reply_to: row for partial in self._sums for row in partial.rows}
        self._count(replies, "uplink", rows)

    def _count(
        self,
        messages: list[Message],
        direction: Literal["downlink", "uplink"],
        rows: Mapping[str, SummedReply] | None = None,
    ) -> None:
        """Count messages; ``rows`` says what replies weighed before their arrays were taken out."""
        meter = Meter()
        for message in messages:
            metadata = message.metadata
            row = None if rows is None else rows.get(metadata.reply_to_message_id)
            if row is not None:
                sizes = row.payload_bytes, row.message_bytes
            else:
                payload = payload_bytes(message.content) if message.has_content() else 0
                sizes = payload, meter.bytes_of(message)
            node_id = metadata.dst_node_id if direction == "downlink" else metadata.src_node_id
            self._traffic.append(MessageTraffic(node_id, metadata.message_type, direction, *sizes))
