"""Reading and checking the replies of a round."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from fedcompress import protocol
from fedcompress.compressor import Compressor, Part
from fedcompress.errors import NotFiniteError, PayloadError
from fedcompress.traffic import ClientTraffic
from fedcompress.wire import payload_checksum


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply that verified, and its update, not yet expanded; none where arrays came dense."""

    reply: Message
    parts: Mapping[str, Part]
    traffic: ClientTraffic


def read_reply(
    reply: Message,
    sent: Mapping[int, Compressor | None],
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
    _check_weight(reply, weight_key)
    compressor = sent[node_id]
    if compressor is None:
        return _read_dense(reply, record, reference)
    payloads = protocol.record_to_payloads(record)
    if len(payloads) != 1:
        raise PayloadError(f"reply: holds {len(payloads)} payloads, expected one")
    parts, by_stream = compressor.read(payloads[0], reference)
    for name, part in parts.items():
        if not part.is_finite():
            raise _not_finite(name)
    own = reply.content.config_records.get(protocol.RECORD, ConfigRecord())
    seconds = own.get(protocol.ENCODE_SECONDS_KEY)
    traffic = ClientTraffic(
        node_id=node_id,
        status="ok",
        uplink_payload_bytes=len(payloads[0]),
        uplink_bytes_by_stream=by_stream,
        uplink_checksum=payload_checksum(payloads[0]),
        encode_seconds=float(seconds) if isinstance(seconds, float) else None,
    )
    return Answer(reply, parts, traffic)


def _read_dense(reply: Message, record: ArrayRecord, reference: Mapping[str, Tensor]) -> Answer:
    arrays = protocol.record_to_tensors(record)
    protocol.check_same_layout(arrays, reference)
    for name, x in arrays.items():
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise _not_finite(name)
    size = protocol.data_bytes(reply.content)
    traffic = ClientTraffic(
        node_id=reply.metadata.src_node_id,
        status="ok",
        uplink_payload_bytes=size,
        uplink_bytes_by_stream={"dense": size},
    )
    return Answer(reply, {}, traffic)


def _not_finite(name: str) -> NotFiniteError:
    return NotFiniteError(
        f"update of {name!r} holds NaN or infinity: training has diverged; "
        "lower the learning rate or clip gradients"
    )


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
