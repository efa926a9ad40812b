"""A Grid that notes each round's messages, bytes and seconds, whatever the ServerApp does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from flwr.app import Message, MessageType

from fedcompress import protocol
from fedcompress.errors import FedcompressError
from fedcompress.grid_around import GridAround
from simulations.message_rounds import MessageRounds
from simulations.traffic import MeasuredGrid, MessageTraffic


@final
@dataclass
class RoundRecord:
    """One round.

    Attributes
    ----------
    number : int
        From 1; 0 holds what was sent before the first training.
    messages, replies, failed : int
        Messages sent, replies that came back, and those among them that hold an error.
    uplink_bytes, downlink_bytes : int
        All that Flower's transport sends for them, evaluation and queries included.
    uplink_payload_bytes, downlink_payload_bytes : int
        The part of it that is arrays or compressed payloads.
    evaluate_downlink_bytes : int
        The part of ``downlink_bytes`` that carries models to evaluation.
    dense_uplink_bytes, dense_downlink_bytes : int
        What the same messages take with dense arrays.
    seconds : float
        From the round's first message to the next round's.
    client_seconds : float
        The part of it in which clients were at work.
    """

    number: int
    messages: int = 0
    replies: int = 0
    failed: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uplink_payload_bytes: int = 0
    downlink_payload_bytes: int = 0
    evaluate_downlink_bytes: int = 0
    dense_uplink_bytes: int = 0
    dense_downlink_bytes: int = 0
    seconds: float = 0.0
    client_seconds: float = 0.0

    @property
    def clients_per_second(self) -> float:
        """Replies per second in which clients were at work."""
        return self.replies / self.client_seconds if self.client_seconds else 0.0


@final
class RecordedGrid(GridAround):
    """Notes what passes through the grid that it is around.

    Parameters
    ----------
    dense : MeasuredGrid
        Around which this stands; it sees what the ServerApp sends.
    sent : MeasuredGrid
        The one that sees what is really sent; the same one where nothing compresses.

    Attributes
    ----------
    refusal : FedcompressError or None
        The first error of ours, which the ServerApp may have swallowed.
    compresses_itself : bool
        Whether the ServerApp sends payloads of its own: then nobody knows the dense bytes.
    """

    def __init__(self, dense: MeasuredGrid, sent: MeasuredGrid) -> None:
        super().__init__(dense)
        self._dense = dense
        self._real = sent
        self._rounds = MessageRounds()
        self._records: dict[int, RoundRecord] = {}
        self._round_of: dict[str, RoundRecord] = {}
        self._began = time.perf_counter()
        self.refusal: FedcompressError | None = None
        self.compresses_itself = False

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        record = self._record(messages)
        try:
            pushed = list(self.grid.push_messages(messages))
        except FedcompressError as error:
            self.refusal = self.refusal or error
            raise
        self._round_of |= dict.fromkeys(pushed, record)
        self._count(record, [])
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = list(message_ids)
        started = time.perf_counter()
        replies = list(self.grid.pull_messages(wanted))
        records = [self._round_of.pop(known) for known in wanted if known in self._round_of]
        record = records[-1] if records else self._record([])
        record.client_seconds += time.perf_counter() - started
        self._count(record, replies)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        record = self._record(messages)
        started = time.perf_counter()
        try:
            replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        except FedcompressError as error:
            self.refusal = self.refusal or error
            raise
        record.client_seconds += time.perf_counter() - started
        self._count(record, replies)
        return replies

    def finish(self) -> list[RoundRecord]:
        """Give the rounds in order; the last one ends now."""
        self._end_round()
        return [self._records[number] for number in sorted(self._records)]

    def _record(self, messages: list[Message]) -> RoundRecord:
        before = self._rounds.number
        number = self._rounds.number_of(messages)
        if number != before or not self._records:
            self._end_round()
        record = self._records.setdefault(number, RoundRecord(number))
        record.messages += len(messages)
        return record

    def _end_round(self) -> None:
        now = time.perf_counter()
        if self._records:
            self._records[max(self._records)].seconds = now - self._began
        self._began = now

    def _count(self, record: RoundRecord, replies: list[Message]) -> None:
        sent = self._real.take()
        dense = sent if self._dense is self._real else self._dense.take()
        record.replies += len(replies)
        record.failed += sum(reply.has_error() for reply in replies)
        record.uplink_bytes += _bytes(sent, "uplink")
        record.downlink_bytes += _bytes(sent, "downlink")
        record.uplink_payload_bytes += _payload(sent, "uplink")
        record.downlink_payload_bytes += _payload(sent, "downlink")
        record.evaluate_downlink_bytes += _bytes(
            [one for one in sent if one.message_type.split(".")[0] == MessageType.EVALUATE],
            "downlink",
        )
        record.dense_uplink_bytes += _bytes(dense, "uplink")
        record.dense_downlink_bytes += _bytes(dense, "downlink")
        if not self.compresses_itself:
            self.compresses_itself = any(_holds_payload(reply) for reply in replies)


def total_of(records: list[RoundRecord]) -> RoundRecord:
    """Add up rounds."""
    total = RoundRecord(0)
    for record in records:
        summed = {name: getattr(total, name) + value for name, value in vars(record).items()}
        total = replace(total, **summed)
    return total


def _bytes(traffic: list[MessageTraffic], direction: str) -> int:
    return sum(one.message_bytes for one in traffic if one.direction == direction)


def _payload(traffic: list[MessageTraffic], direction: str) -> int:
    return sum(one.payload_bytes for one in traffic if one.direction == direction)


def _holds_payload(reply: Message) -> bool:
    return reply.has_content() and any(
        array.stype == protocol.STYPE
        for record in reply.content.array_records.values()
        for array in record.values()
    )
