"""Reading and checking the replies of a round."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import cast

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedcompress import protocol
from fedcompress.aggregation import FlatArrays, FlatLayout, Given, Node
from fedcompress.compressor import FlatParts, memory_of
from fedcompress.dense import whole_block
from fedcompress.errors import ConfigError, PayloadError, diverged
from fedcompress.memories import Memories
from fedcompress.own_payloads import OwnPayloads
from fedcompress.partial import SUMMED_STYPE, PartialSum, SummedReply, is_hollow, layout_of
from fedcompress.sent import Sent, SentRound
from fedcompress.traffic import ClientTraffic
from fedcompress.wire import payload_checksum


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply that verified, and its update, not yet expanded; of dense arrays those, or nothing.

    ``memory`` is what decoding the same node's next payload needs, mostly nothing.
    """

    reply: Message
    parts: Given
    weight: float
    traffic: ClientTraffic
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def dense(self) -> dict[str, Tensor]:
        """Give the update of a payload, expanded."""
        assert not isinstance(self.parts, FlatArrays)
        return {name: part.dense() for name, part in self.parts.items()}


@dataclass(frozen=True, eq=False)
class Expected:
    """What the replies of a round are checked against.

    Attributes
    ----------
    server_round : int
        The round that is being aggregated.
    sent : SentRound
        What each node was sent, in the order of the messages.
    weight_key : str
        Metric by which the strategy weighs clients.
    metrics : frozenset of str
        Keys of the metrics that most clients sent; a strategy can average only these.
    memories : Memories
        What earlier payloads of the nodes left to be remembered.
    own_payloads : OwnPayloads, optional
        Where payloads are read in the process that made them.
    adds_dense : bool
        Whether dense arrays are to be added up here, not given to the strategy inside; all nodes
        then have one reference.
    """

    server_round: int
    sent: SentRound
    weight_key: str
    metrics: frozenset[str]
    memories: Memories
    own_payloads: OwnPayloads | None = None
    adds_dense: bool = False

    @cached_property
    def like(self) -> Mapping[str, Tensor]:
        """Arrays of the layout in which updates are added up."""
        common = self.sent.common
        assert common is not None
        return common

    @cached_property
    def layout(self) -> FlatLayout:
        """Where dense arrays lie when they are added up."""
        return FlatLayout(self.like)

    @cached_property
    def described(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of each array of the model."""
        return list(layout_of(self.like))

    @cached_property
    def positions(self) -> dict[int, int]:
        """Place of each node's message in the round."""
        return {node_id: position for position, node_id in enumerate(self.sent)}


def most_common_metrics(replies: Iterable[Message]) -> frozenset[str]:
    """Give the metric keys that most of the replies hold."""
    counts = Counter(metric_keys(reply) for reply in replies if reply.has_content())
    return counts.most_common(1)[0][0] if counts else frozenset()


def read_reply(reply: Message, expected: Expected) -> Answer:
    """Read one reply.

    Raises
    ------
    FedcompressError
        If the reply was not asked for in this round, holds no payload or one that does not
        verify, other metrics than the other clients', or numbers or a weight that are not finite.
    """
    sent = expected.sent.of(reply.metadata.src_node_id)
    _, record = protocol.single_array_record(reply.content, "reply")
    weight = read_weight(reply, expected)
    if sent.compressor is None:
        return _read_dense(reply, record, expected, weight)
    answer = read_payload(
        reply, sent, expected.server_round, expected.memories, expected.own_payloads
    )
    return replace(answer, weight=weight)


def read_payload(
    reply: Message,
    sent: Sent,
    server_round: int,
    memories: Memories,
    own_payloads: OwnPayloads | None = None,
) -> Answer:
    """Read the payload of one reply, whatever stands beside it; its weight is 1.

    One of those that this process made itself, and has kept, is not decoded again.

    Raises
    ------
    FedcompressError
        If the reply is of another round, holds no payload or one that does not verify, or
        numbers that are not finite.
    """
    node_id = reply.metadata.src_node_id
    compressor = sent.compressor
    assert compressor is not None
    _, record = protocol.single_array_record(reply.content, "reply")
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != 1:
        raise PayloadError(f"reply: holds {len(payloads)} payloads, expected one")
    own = protocol.kept_in(reply.content)
    if own.get(protocol.ROUND_KEY) != server_round:
        raise PayloadError(
            f"reply: is of round {own.get(protocol.ROUND_KEY)!r}, this is round "
            f"{server_round}; it came too late"
        )
    memory = memories.of(node_id, sent.group) if compressor.recalls else None
    like = sent.reference
    read = None if own_payloads is None else own_payloads.take(payloads[0], compressor, like)
    parts, by_stream = read or compressor.read(payloads[0], like, memory)
    if not isinstance(parts, FlatParts):
        for name, part in parts.items():
            if not part.is_finite():
                raise diverged(name)
    seconds = own.get(protocol.ENCODE_SECONDS_KEY)
    said = isinstance(seconds, float) and math.isfinite(seconds) and seconds >= 0
    traffic = ClientTraffic(
        node_id=node_id,
        status="ok",
        uplink_payload_bytes=len(payloads[0]),
        uplink_bytes_by_stream=by_stream,
        uplink_checksum=payload_checksum(payloads[0]),
        encode_seconds=float(cast(float, seconds)) if said else None,
    )
    return Answer(reply, parts, 1.0, traffic, memory_of(parts) if compressor.recalls else {})


@dataclass(frozen=True, eq=False)
class UsableSums:
    """What an engine has summed of a round, as far as it can be used.

    Attributes
    ----------
    rows : dict of str to SummedReply
        Accounts of the replies that are in the sums, by the id of the message that they answer.
    nodes : list of Node
        Branches of the tree of sums.
    unused : dict of str to int
        Payload bytes of replies whose sums are left out, by that same id.
    """

    rows: dict[str, SummedReply]
    nodes: list[Node]
    unused: dict[str, int]


def usable_sums(
    sums: Sequence[PartialSum], replies: Sequence[Message], expected: Expected
) -> UsableSums:
    """Choose the partial sums that hold what reading these replies one by one would sum.

    Raises
    ------
    ConfigError
        If replies were lost or changed since the engine summed them, and their arrays are gone.
    """
    usable = UsableSums({}, [], {})
    if not sums:
        return usable
    by_node: dict[int, list[Message]] = {}
    for reply in replies:
        by_node.setdefault(reply.metadata.src_node_id, []).append(reply)
    for partial in sums:
        if partial.metrics != expected.metrics:  # then none of these replies will be used
            usable.unused.update((row.reply_to, row.payload_bytes) for row in partial.rows)
            continue
        got = [(by_node.get(row.traffic.node_id, []), row) for row in partial.rows]
        if all(_is_as_summed(given, row, expected) for given, row in got):
            usable.rows.update((row.reply_to, row) for row in partial.rows)
            usable.nodes.extend(partial.nodes)
        elif any(is_hollow(reply) for given, _ in got for reply in given):
            raise ConfigError(
                "Compressed: replies were lost or changed on their way from the grid, which has "
                "summed their updates already; pass on what its send_and_receive returns"
            )
    return usable


def _is_as_summed(replies: Sequence[Message], row: SummedReply, expected: Expected) -> bool:
    """Whether a node's replies, mostly one, are the one that was summed."""
    return bool(replies) and all(
        reply.metadata.reply_to_message_id == row.reply_to
        and metric_keys(reply) == expected.metrics
        and _said_weight(reply, expected.weight_key) == row.weight
        and (is_hollow(reply) or _checksum(reply) == row.traffic.uplink_checksum)
        for reply in replies
    )


def _checksum(reply: Message) -> str:
    records = protocol.array_records(reply.content).values()
    return "".join(payload_checksum(x.data) for record in records for x in record.values())


def _read_dense(reply: Message, record: ArrayRecord, expected: Expected, weight: float) -> Answer:
    flat = _flat(record, expected) if expected.adds_dense else None
    if flat is None or not flat.is_finite():
        arrays = protocol.record_to_tensors(record)
        node_id = reply.metadata.src_node_id
        protocol.check_same_layout(arrays, expected.sent.of(node_id).reference)
        protocol.check_finite(arrays)
        flat = expected.layout.flatten(arrays) if expected.adds_dense else None
    size = protocol.data_bytes(reply.content)
    traffic = ClientTraffic(
        node_id=reply.metadata.src_node_id,
        status="ok",
        uplink_payload_bytes=size,
        uplink_bytes_by_stream={"dense": size},
    )
    return Answer(reply, {} if flat is None else flat, weight, traffic)


def _flat(record: ArrayRecord, expected: Expected) -> FlatArrays | None:
    """Take arrays as they lie, if that is how the model's are added up."""
    whole = whole_block(record)
    if whole is None or whole[1].described != expected.described:
        return None
    values = torch.from_numpy(whole[0])
    kinds = [dtype for dtype, _, _ in expected.layout.buffers]
    return FlatArrays([values]) if kinds == [values.dtype] else None


def in_order(replies: Iterable[Message], sent: Mapping[int, object]) -> list[Message]:
    """Put replies into the order in which their messages were sent.

    Sums of floats depend on their order; replies arrive in any.
    """
    place = {node_id: i for i, node_id in enumerate(sent)}
    return sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, len(place)))


def is_dense(reply: Message) -> bool:
    """Whether a reply holds arrays where a payload should be."""
    records = protocol.array_records(reply.content).values()
    return any(
        array.stype not in (protocol.STYPE, SUMMED_STYPE)
        for record in records
        for array in record.values()
    )


def metric_keys(reply: Message) -> frozenset[str]:
    """Give the keys of all metrics of a reply."""
    records = reply.content.values()
    keys = [record.keys() for record in records if isinstance(record, MetricRecord)]
    return frozenset(keys[0] if len(keys) == 1 else chain(*keys))


def read_weight(reply: Message, expected: Expected) -> float:
    """Read a client's weight; `PayloadError` for none, or metrics that are not as expected."""
    keys = metric_keys(reply)
    if keys != expected.metrics:
        raise PayloadError(
            f"reply: holds the metrics {sorted(keys)}, most clients sent "
            f"{sorted(expected.metrics)}; a strategy can average only what all have"
        )
    weight = _said_weight(reply, expected.weight_key)
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise PayloadError(
            f"metric {expected.weight_key!r} is {weight!r}; a weight is one number, finite and "
            "not below 0"
        )
    return float(weight)


def _said_weight(reply: Message, key: str) -> object:
    for record in reply.content.values():
        if isinstance(record, MetricRecord):
            return record.get(key, 1.0)
    return 1.0
