"""Reading and checking the replies of a round."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from fedcompress import protocol
from fedcompress.compressor import Compressor, Part, memory_of
from fedcompress.errors import PayloadError
from fedcompress.memories import Memories
from fedcompress.traffic import ClientTraffic
from fedcompress.wire import payload_checksum


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply that verified, and its update, not yet expanded; none where arrays came dense.

    ``memory`` is what decoding the same node's next payload needs, mostly nothing.
    """

    reply: Message
    parts: Mapping[str, Part]
    weight: float
    traffic: ClientTraffic
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Expected:
    """What the replies of a round are checked against.

    Attributes
    ----------
    server_round : int
        The round that is being aggregated.
    sent : Mapping[int, Compressor or None]
        The compressor that each node was told to use, in the order of the messages; None where
        arrays come dense.
    reference : Mapping[str, Tensor]
        The model that updates are taken against.
    weight_key : str
        Metric by which the strategy weighs clients.
    metrics : frozenset of str
        Keys of the metrics that most clients sent; a strategy can average only these.
    memories : Memories
        What earlier payloads of the nodes left to be remembered.
    """

    server_round: int
    sent: Mapping[int, Compressor | None]
    reference: Mapping[str, Tensor]
    weight_key: str
    metrics: frozenset[str]
    memories: Memories


def most_common_metrics(replies: Iterable[Message]) -> frozenset[str]:
    """Give the metric keys that most of the replies hold."""
    counts = Counter(_metric_keys(reply) for reply in replies if reply.has_content())
    return counts.most_common(1)[0][0] if counts else frozenset()


def largest_weight(replies: Iterable[Message], key: str) -> float:
    """Give the largest usable weight among replies, 1 where there is none above 0."""
    weights = [
        float(weight)
        for reply in replies
        for metrics in reply.content.metric_records.values()
        if isinstance(weight := metrics.get(key, 1.0), int | float) and 0 < weight < math.inf
    ]
    return max(weights, default=1.0)


def read_reply(reply: Message, expected: Expected) -> Answer:
    """Read one reply.

    Raises
    ------
    FedcompressError
        If the reply was not asked for in this round, holds no payload or one that does not
        verify, other metrics than the other clients', or numbers or a weight that are not finite.
    """
    node_id = reply.metadata.src_node_id
    if node_id not in expected.sent:
        raise PayloadError(f"reply of node {node_id}: it was not asked in this round")
    _, record = protocol.single_array_record(reply.content, "reply")
    weight = _read_weight(reply, expected)
    compressor = expected.sent[node_id]
    if compressor is None:
        return _read_dense(reply, record, expected.reference, weight)
    answer = read_payload(
        reply, compressor, expected.server_round, expected.reference, expected.memories
    )
    return replace(answer, weight=weight)


def read_payload(
    reply: Message,
    compressor: Compressor,
    server_round: int,
    reference: Mapping[str, Tensor],
    memories: Memories,
) -> Answer:
    """Read the payload of one reply, whatever stands beside it; its weight is 1.

    Raises
    ------
    FedcompressError
        If the reply is of another round, holds no payload or one that does not verify, or
        numbers that are not finite.
    """
    node_id = reply.metadata.src_node_id
    _, record = protocol.single_array_record(reply.content, "reply")
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != 1:
        raise PayloadError(f"reply: holds {len(payloads)} payloads, expected one")
    own = reply.content.config_records.get(protocol.RECORD, ConfigRecord())
    if own.get(protocol.ROUND_KEY) != server_round:
        raise PayloadError(
            f"reply: is of round {own.get(protocol.ROUND_KEY)!r}, this is round "
            f"{server_round}; it came too late"
        )
    memory = memories.of(node_id) if compressor.recalls else None
    parts, by_stream = compressor.read(payloads[0], reference, memory)
    for name, part in parts.items():
        if not part.is_finite():
            raise protocol.not_finite(name)
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


def _read_dense(
    reply: Message, record: ArrayRecord, reference: Mapping[str, Tensor], weight: float
) -> Answer:
    arrays = protocol.record_to_tensors(record)
    protocol.check_same_layout(arrays, reference)
    protocol.check_finite(arrays)
    size = protocol.data_bytes(reply.content)
    traffic = ClientTraffic(
        node_id=reply.metadata.src_node_id,
        status="ok",
        uplink_payload_bytes=size,
        uplink_bytes_by_stream={"dense": size},
    )
    return Answer(reply, {}, weight, traffic)


def in_order(replies: Iterable[Message], sent: Mapping[int, object]) -> list[Message]:
    """Put replies into the order in which their messages were sent.

    Sums of floats depend on their order; replies arrive in any.
    """
    place = {node_id: i for i, node_id in enumerate(sent)}
    return sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, len(place)))


def is_dense(reply: Message) -> bool:
    """Whether a reply holds arrays where a payload should be."""
    records = reply.content.array_records.values()
    return any(array.stype != protocol.STYPE for record in records for array in record.values())


def _metric_keys(reply: Message) -> frozenset[str]:
    return frozenset(key for metrics in reply.content.metric_records.values() for key in metrics)


def _read_weight(reply: Message, expected: Expected) -> float:
    keys = _metric_keys(reply)
    if keys != expected.metrics:
        raise PayloadError(
            f"reply: holds the metrics {sorted(keys)}, most clients sent "
            f"{sorted(expected.metrics)}; a strategy can average only what all have"
        )
    for metrics in reply.content.metric_records.values():
        weight = metrics.get(expected.weight_key, 1.0)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise PayloadError(
                f"metric {expected.weight_key!r} is {weight!r}; a weight is one number, finite and "
                "not below 0"
            )
        return float(weight)
    return 1.0
