"""Reading and checking the replies of a round."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message
from torch import Tensor

from fedcompress import protocol
from fedcompress.compressor import Compressor, Part
from fedcompress.errors import PayloadError
from fedcompress.traffic import ClientTraffic


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply whose payload verified, and its update, not yet expanded."""

    reply: Message
    parts: Mapping[str, Part]
    traffic: ClientTraffic


def read_reply(
    reply: Message,
    sent: Mapping[int, Compressor],
    reference: Mapping[str, Tensor],
    weight_key: str,
) -> Answer:
    """Read one reply.

    Raises
    ------
    FedcompressError
        If the reply was not asked for, holds no payload or one that does not verify, or its
        numbers or its weight are not finite.
    """
    node_id = reply.metadata.src_node_id
    if node_id not in sent:
        raise PayloadError(f"reply of node {node_id}: it was not asked in this round")
    _, record = protocol.single_array_record(reply.content, "reply")
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != 1:
        raise PayloadError(f"reply: holds {len(payloads)} payloads, expected one")
    parts, by_stream = sent[node_id].read(payloads[0], reference)
    for name, part in parts.items():
        if not part.is_finite():
            raise PayloadError(f"update of {name!r} holds NaN or infinity; training diverged")
    _check_weight(reply, weight_key)
    own = reply.content.config_records.get(protocol.RECORD, ConfigRecord())
    seconds = own.get(protocol.ENCODE_SECONDS_KEY)
    traffic = ClientTraffic(
        node_id=node_id,
        status="ok",
        uplink_payload_bytes=len(payloads[0]),
        uplink_bytes_by_stream=by_stream,
        encode_seconds=float(seconds) if isinstance(seconds, float) else None,
    )
    return Answer(reply, parts, traffic)


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


def _check_weight(reply: Message, key: str) -> None:
    for metrics in reply.content.metric_records.values():
        weight = metrics.get(key)
        if isinstance(weight, int | float) and not (math.isfinite(weight) and weight >= 0):
            raise PayloadError(f"metric {key!r} is {weight}; a weight is finite and not below 0")
