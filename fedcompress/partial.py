"""Partial sums of a round: what an engine that adds updates itself agrees on with `Compressed`.

`Compressed` arms a grid with a `SumPlan` when it needs no more of the clients' arrays than their
weighted mean. The grid then may send back replies without arrays (see `hollow`), and gives the
`PartialSum`s that hold their updates. Replies that cannot be summed (errors, payloads that do not
verify, metrics that are not those of the others) come back whole, and `Compressed` reads them as
it always does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from flwr.app import Array, ArrayRecord, Message, MessageType
from torch import Tensor

from fedcompress.aggregation import Node, block_size
from fedcompress.flower_adapter import record_of, with_content
from fedcompress.sent import SentRound
from fedcompress.traffic import ClientTraffic

SUMMED_STYPE = "fedcompress.summed"
_PLACEHOLDER = Array("uint8", (0,), SUMMED_STYPE, b"")


@dataclass(frozen=True)
class SumPlan:
    """How the replies of one round are to be read and added; plain values, cheap to pickle.

    Attributes
    ----------
    server_round : int
        The round.
    node_ids : tuple of int
        The nodes in the order of the messages: a node's position is its place here.
    uplinks : tuple of str
        Spec of each node's compressor; empty where arrays come dense.
    layout : tuple of (name, shape, dtype)
        Arrays of the global model.
    weight_key : str
        Metric by which clients are weighed.
    measures : bool
        Whether the bytes of each reply message are to be counted.
    """

    server_round: int
    node_ids: tuple[int, ...]
    uplinks: tuple[str, ...]
    layout: tuple[tuple[str, tuple[int, ...], str], ...]
    weight_key: str
    measures: bool = False

    @property
    def block_size(self) -> int:
        """Positions in a block; whoever sums should be given whole blocks."""
        return block_size(len(self.node_ids))

    @property
    def is_dense(self) -> bool:
        """Whether clients send their models as they are."""
        return not any(self.uplinks)

    @property
    def entries(self) -> int:
        """Numbers in all arrays of the model."""
        return sum(math.prod(shape) for _, shape, _ in self.layout)

    def covers(self, messages: Sequence[Message]) -> bool:
        """Whether these are the messages that the plan was made for."""
        return len(messages) == len(self.node_ids) and all(
            message.metadata.dst_node_id == node_id
            and message.metadata.message_type.split(".")[0] == MessageType.TRAIN
            for message, node_id in zip(messages, self.node_ids, strict=True)
        )

    def to_json(self) -> list[object]:
        """Give the plan as lists of plain values."""
        specs = {spec: place for place, spec in enumerate(dict.fromkeys(self.uplinks))}
        places = [specs[spec] for spec in self.uplinks]
        values = [self.server_round, self.node_ids, list(specs), places if len(specs) > 1 else 0]
        return [*values, self.layout, self.weight_key, self.measures]

    @staticmethod
    def from_json(values: list[Any]) -> "SumPlan":
        """Undo `to_json`."""
        server_round, node_ids, specs, places, layout, weight_key, measures = values
        return SumPlan(
            server_round,
            tuple(node_ids),
            tuple(specs[place] for place in places) if places else (specs[0],) * len(node_ids),
            tuple((name, tuple(shape), dtype) for name, shape, dtype in layout),
            weight_key,
            measures,
        )

    def like(self) -> dict[str, Tensor]:
        """Give arrays of the model's layout, of no particular values."""
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype))
            for name, shape, dtype in self.layout
        }


def plan_for(server_round: int, sent: SentRound, weight_key: str) -> SumPlan | None:
    """Plan how to sum what these nodes answer; None where that cannot be done apart.

    Parameters
    ----------
    server_round : int
        The round.
    sent : SentRound
        What each node is sent.
    weight_key : str
        Metric by which clients are weighed.
    """
    common = sent.common
    uplinks = [one.compressor for one in sent.values()]
    if common is None or any(c is not None and c.recalls for c in uplinks):
        return None
    return SumPlan(
        server_round,
        node_ids=tuple(sent),
        uplinks=tuple("" if c is None else c.spec for c in uplinks),
        layout=layout_of(common),
        weight_key=weight_key,
    )


def layout_of(model: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Describe the arrays of a model for a plan."""
    return tuple(
        (name, tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in model.items()
    )


@dataclass(frozen=True)
class SummedReply:
    """The account of one reply whose update is in a partial sum.

    Attributes
    ----------
    position : int
        Of its message in the round.
    reply_to : str
        Id of that message, as the reply names it.
    weight : float
        The client's weight.
    traffic : ClientTraffic
        What `Compressed` notes of a client.
    payload_bytes, message_bytes : int
        Bytes of all arrays, and of all objects that Flower's transport sends for the reply as
        it was before its arrays were taken out; the latter 0 where the plan does not ask.
    decode_seconds : float
        Reading and adding.
    """

    position: int
    reply_to: str
    weight: float
    traffic: ClientTraffic
    payload_bytes: int
    message_bytes: int
    decode_seconds: float


@dataclass(frozen=True, eq=False)
class PartialSum:
    """Branches of the round's tree of sums, and the account of every reply in them.

    ``metrics`` are the keys of the metrics that all these replies hold. Should most of the
    round's clients turn out to hold others, then none of these replies is used, and so the
    whole partial sum is left out.
    """

    metrics: frozenset[str]
    rows: tuple[SummedReply, ...]
    nodes: tuple[Node, ...]


@runtime_checkable
class SummingGrid(Protocol):
    """A grid whose engine can add the updates of a round itself."""

    def sum_updates(self, plan: SumPlan | None) -> bool:
        """Arm for the next train messages; return whether the engine will sum. None disarms."""

    def take_sums(self) -> list[PartialSum]:
        """Take the sums of the last round; the grid is then no longer armed."""


def hollow(reply: Message) -> Message:
    """Copy a reply with one empty array of our own type in place of its arrays."""
    content = reply.content.copy()
    held = vars(content)["_data"]
    for key, record in held.items():
        if isinstance(record, ArrayRecord):
            held[key] = hollow_record()
    return with_content(reply, content)


def hollow_record() -> ArrayRecord:
    """Make what stands in a reply in place of arrays that were summed."""
    return record_of({"summed": _PLACEHOLDER})


def is_hollow_record(record: ArrayRecord) -> bool:
    """Whether a record is what `hollow_record` makes."""
    arrays = list(record.values())
    return len(arrays) == 1 and arrays[0] is _PLACEHOLDER and "summed" in record


def is_hollow(reply: Message) -> bool:
    """Whether the arrays of a reply have been taken out of it."""
    for record in reply.content.values():
        if isinstance(record, ArrayRecord):
            return any(array.stype == SUMMED_STYPE for array in record.values())
    return False
