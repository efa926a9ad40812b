"""What `Compressed` notes of a round: bytes and outcome of every client."""

from dataclasses import dataclass, field
from typing import Literal

from flwr.app import MetricRecord

# Of a round, among the metrics that Flower shows.
UPLINK_METRIC = "uplink-payload-bytes"
DOWNLINK_METRIC = "downlink-payload-bytes"
REJECTED_METRIC = "rejected-clients"


@dataclass(frozen=True)
class ClientTraffic:
    """One client's answer in one round."""

    node_id: int
    status: Literal["ok", "rejected", "error"]
    reason: str | None = None
    uplink_payload_bytes: int = 0
    uplink_bytes_by_stream: dict[str, int] = field(default_factory=dict)
    uplink_checksum: str | None = None  # of the payload, as its header holds it, in hexadecimal
    encode_seconds: float | None = None


@dataclass(frozen=True)
class ClientDownlink:
    """What one client was sent in one round.

    ``catchup_bytes`` is the part of ``payload_bytes`` that only brings a client that missed
    rounds, or a new one, up to the model that the others hold.
    """

    node_id: int
    payload_bytes: int
    catchup_bytes: int


@dataclass
class RoundTraffic:
    """All clients of one round."""

    server_round: int
    clients: list[ClientTraffic] = field(default_factory=list)
    downlink: list[ClientDownlink] = field(default_factory=list)
    decode_seconds: float = 0.0
    aggregate_seconds: float = 0.0

    def add_to_metrics(self, metrics: MetricRecord | None) -> MetricRecord:
        """Put the sums into the metrics that Flower shows for the round."""
        both = MetricRecord() if metrics is None else metrics
        both[UPLINK_METRIC] = sum(c.uplink_payload_bytes for c in self.clients)
        both[DOWNLINK_METRIC] = sum(d.payload_bytes for d in self.downlink)
        both[REJECTED_METRIC] = sum(c.status != "ok" for c in self.clients)
        return both
