"""Bytes of each finished cell, added up from its round and client records."""

from dataclasses import dataclass
from typing import final

import pandas as pd

from simulations.report.run import Run, rows_of


@final
@dataclass(frozen=True)
class Traffic:
    """What one cell sent, over all its rounds.

    Attributes
    ----------
    dense_bytes
        Payload of one uncompressed model.
    uplink_messages, downlink_messages
        Training messages that carried a payload.
    update_messages
        Downlink messages that carried more than catch-up.
    uplink_payload_bytes, downlink_payload_bytes
        Payloads, catch-up included.
    catchup_bytes
        The part of the downlink payload that only brings a client up to the reference model: the
        first model, and updates of rounds that it missed.
    uplink_message_bytes, downlink_message_bytes
        Whole Flower messages, payload included.
    """

    dense_bytes: int
    uplink_messages: int
    downlink_messages: int
    update_messages: int
    uplink_payload_bytes: int
    downlink_payload_bytes: int
    catchup_bytes: int
    uplink_message_bytes: int
    downlink_message_bytes: int

    @property
    def update_bytes(self) -> int:
        """Downlink payload without catch-up."""
        return self.downlink_payload_bytes - self.catchup_bytes

    def __add__(self, other: "Traffic") -> "Traffic":
        """Add the traffic of two cells of one model."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__dataclass_fields__
            if name != "dense_bytes"
        }
        return Traffic(dense_bytes=max(self.dense_bytes, other.dense_bytes), **sums)

    @property
    def uplink_ratio(self) -> float:
        """Dense bytes ÷ sent bytes, uplink payloads."""
        return _ratio(self.dense_bytes * self.uplink_messages, self.uplink_payload_bytes)

    @property
    def both_ways_ratio(self) -> float:
        """Dense bytes ÷ sent bytes, both directions, each round's update payload only."""
        messages = self.uplink_messages + self.update_messages
        return _ratio(self.dense_bytes * messages, self.uplink_payload_bytes + self.update_bytes)

    @property
    def all_traffic_ratio(self) -> float:
        """Dense bytes ÷ sent bytes, both directions, first model and catch-up included."""
        messages = self.uplink_messages + self.downlink_messages
        sent = self.uplink_payload_bytes + self.downlink_payload_bytes
        return _ratio(self.dense_bytes * messages, sent)


def traffic_by_label(run: Run) -> dict[str, Traffic]:
    """Return the traffic of each strategy, added over its finished seeds."""
    totals: dict[str, Traffic] = {}
    rounds = training_rounds(run)
    for label, seed in run.finished:
        own = rows_of(rounds, label, seed)
        if own.empty:
            continue
        traffic = _cell_traffic(own, rows_of(run.clients, label, seed))
        totals[label] = totals[label] + traffic if label in totals else traffic
    return totals


def training_rounds(run: Run) -> pd.DataFrame:
    """Return the rows of rounds in which clients trained (round 0 only evaluates)."""
    return run.rounds if run.rounds.empty else run.rounds[run.rounds["round"] > 0]


def _cell_traffic(rounds: pd.DataFrame, clients: pd.DataFrame) -> Traffic:
    up, down, updates = _messages(rounds, clients)
    return Traffic(
        dense_bytes=int(rounds["dense_bytes"].max()),
        uplink_messages=up,
        downlink_messages=down,
        update_messages=updates,
        uplink_payload_bytes=int(rounds["uplink_payload_bytes"].sum()),
        downlink_payload_bytes=int(rounds["downlink_payload_bytes"].sum()),
        catchup_bytes=int(rounds["downlink_catchup_bytes"].sum()),
        uplink_message_bytes=int(rounds["uplink_message_bytes"].sum()),
        downlink_message_bytes=int(rounds["downlink_message_bytes"].sum()),
    )


def _messages(rounds: pd.DataFrame, clients: pd.DataFrame) -> tuple[int, int, int]:
    """Count payloads up, payloads down, and those down that carried a round's update."""
    if clients.empty:
        answered = int((rounds["clients_sampled"] - rounds["clients_failed"]).sum())
        with_update = rounds["downlink_payload_bytes"] > rounds["downlink_catchup_bytes"]
        sampled = rounds["clients_sampled"]
        return answered, int(sampled.sum()), int(sampled[with_update].sum())
    down = clients["downlink_payload_bytes"].fillna(0)
    catchup = clients["downlink_catchup_bytes"].fillna(0)
    up = clients["uplink_payload_bytes"].fillna(0)
    return int((up > 0).sum()), int((down > 0).sum()), int((down > catchup).sum())


def _ratio(dense_bytes: int, sent_bytes: int) -> float:
    return dense_bytes / sent_bytes if sent_bytes else float("nan")
