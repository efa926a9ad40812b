"""Summing a round's updates where they arise: in a worker, or in LocalGrid.

How an engine uses it. Its grid is a `SummingGrid`: `sum_updates(plan)` is called before a round's
messages are sent, with a plan or with None. If ``plan.covers(messages)`` holds for the next
messages, the engine gives its workers whole blocks of ``plan.block_size`` neighbouring positions
(any blocks, in any order; runs of neighbours cost least) and sends them the plan, once a round:
`SumPlan.to_json` gives plain values. A worker then does ::

    sums = RangeSums(plan)                      # once a round
    for position, reply in ...:                 # each reply, errors too, in any order
        reply = sums.add(position, reply)       # without its arrays, if they are in the sum
        ...                                     # send it as any reply
    if sums.is_between_blocks:                  # now or then, and at the end of a range
        buffers = to_buffers(sums.take())

and sends ``buffers``: a small header, then a few flat arrays, at most two a level of the tree.
They belong together with all replies added since the last `take`: the engine must get both or
neither, as in one frame. It then does ::

    whole = RoundSums(plan)                     # once a round
    whole.take(from_buffers(buffers))           # the memory is free again afterwards
    ...
    whole.finish()                              # what the grid's `take_sums` gives

What a worker that died had not sent is run again by any worker. Blocks of which only a part is
run again are not summed in workers: their replies come back whole, and the server adds them, as it
does with all replies that cannot be summed. Whatever the ranges, the mean has the same bits.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from fedcompress.aggregation import Node, Sum, TreeSum
from fedcompress.compressor import Compressor
from fedcompress.errors import FedcompressError
from fedcompress.incoming import Expected, metric_keys, read_reply
from fedcompress.memories import Memories
from fedcompress.own_payloads import OwnPayloads
from fedcompress.partial import PartialSum, SummedReply, SumPlan, hollow
from fedcompress.sent import Sent, SentRound
from fedcompress.spec import parse
from fedcompress.traffic import ClientTraffic
from simulations.engines.message_bytes import message_bytes, payload_bytes

Buffer = bytes | memoryview


@lru_cache(maxsize=64)
def _parsed(spec: str) -> Compressor | None:
    return parse(spec) if spec else None


class RangeSums:
    """Adds the updates of some blocks of a round's positions.

    Parameters
    ----------
    plan : SumPlan
        The round's.
    """

    def __init__(self, plan: SumPlan) -> None:
        self._plan = plan
        self._like = plan.like()
        self._own_payloads = OwnPayloads()
        self._sum = TreeSum(self._like, len(plan.node_ids))
        self._rows: list[SummedReply] = []
        self._expected: Expected | None = None

    def add(self, position: int, reply: Message) -> Message:
        """Add one reply; return what is left to send of it.

        That is the reply without its arrays if they were added, else the reply as it is: an
        error, one that does not verify, one of other metrics than the first.
        """
        answer = None
        started = time.perf_counter()
        if reply.has_content():
            expected = self._expected
            if expected is None:
                expected = self._expect(metric_keys(reply))
            if reply.metadata.src_node_id == self._plan.node_ids[position]:
                with suppress(FedcompressError):  # the server finds the same, and notes why
                    answer = read_reply(reply, expected)
        if answer is None:
            self._sum.miss(position)
            return reply
        self._expected = expected
        self._sum.add(position, answer.parts, answer.weight)
        sent = payload_bytes(reply.content)
        weighs = message_bytes(reply) if self._plan.measures else 0
        self._rows.append(
            SummedReply(
                position,
                reply.metadata.reply_to_message_id,
                answer.weight,
                answer.traffic,
                sent,
                weighs,
                time.perf_counter() - started,
            )
        )
        return hollow(reply)

    @property
    def is_between_blocks(self) -> bool:
        """Whether every block that was begun is whole, so that none is torn by `take`."""
        return not self._sum.has_begun

    def take(self) -> PartialSum:
        """Take what was added since the last call; what its blocks lack counts as missing."""
        rows, self._rows = self._rows, []
        metrics = frozenset[str]() if self._expected is None else self._expected.metrics
        return PartialSum(metrics, tuple(rows), tuple(self._sum.take_nodes()))

    def _expect(self, metrics: frozenset[str]) -> Expected:
        plan = self._plan
        told = {spec: Sent(_parsed(spec), self._like) for spec in set(plan.uplinks)}
        uplinks = map(told.__getitem__, plan.uplinks)
        return Expected(
            plan.server_round,
            SentRound(dict(zip(plan.node_ids, uplinks, strict=True))),
            plan.weight_key,
            metrics,
            Memories(0),
            self._own_payloads,
            adds_dense=True,
        )


class RoundSums:
    """Joins the partial sums of a round as they come, in the memory of a few models.

    Parameters
    ----------
    plan : SumPlan
        The round's.
    """

    def __init__(self, plan: SumPlan) -> None:
        self.plan = plan
        self._sums: dict[frozenset[str], tuple[TreeSum, list[SummedReply]]] = {}

    def take(self, partial: PartialSum) -> None:
        """Take one partial sum.

        Raises
        ------
        PayloadError
            If blocks of it have been taken before.
        """
        if not partial.rows:
            return  # its blocks count as missing
        if partial.metrics not in self._sums:
            self._sums[partial.metrics] = TreeSum(self.plan.like(), len(self.plan.node_ids)), []
        total, rows = self._sums[partial.metrics]
        for node in partial.nodes:
            total.put(node)
        rows += partial.rows

    def finish(self) -> list[PartialSum]:
        """Give the sums of the round; there are several where clients sent other metrics."""
        return [
            PartialSum(metrics, tuple(rows), tuple(total.take_nodes()))
            for metrics, (total, rows) in self._sums.items()
        ]


def to_buffers(partial: PartialSum) -> list[Buffer]:
    """Write a partial sum as a small header and its flat arrays, which are not copied."""
    nodes: list[list[object]] = []
    arrays: list[Buffer] = []
    for node in partial.nodes:
        said: list[object] = [node.level, node.index]
        if node.total is not None:
            kinds = [[str(x.dtype).removeprefix("torch."), len(x)] for x in node.total.buffers]
            said += [node.total.exponent, node.total.share, kinds]
            arrays += [x.cpu().numpy().view(np.uint8).data for x in node.total.buffers]
        nodes.append(said)
    rows = [_row(row) for row in partial.rows]
    return [json.dumps([sorted(partial.metrics), rows, nodes]).encode(), *arrays]


def from_buffers(buffers: Sequence[Buffer]) -> PartialSum:
    """Undo `to_buffers`; the sums lie in the memory that is given, and are not changed."""
    metrics, rows, described = json.loads(bytes(buffers[0]))
    arrays = iter(buffers[1:])
    nodes = []
    for level, index, *said in described:
        total = None
        if said:
            exponent, share, kinds = said
            flat = [_tensor(next(arrays), dtype, size) for dtype, size in kinds]
            total = Sum(exponent, share, flat, is_own=False)
        nodes.append(Node(level, index, total))
    return PartialSum(frozenset(metrics), tuple(_unrow(row) for row in rows), tuple(nodes))


def _row(row: SummedReply) -> list[object]:
    """Write an account; all its numbers are finite, and JSON keeps their bits."""
    return [list(vars(row.traffic).values()), *[v for k, v in vars(row).items() if k != "traffic"]]


def _unrow(said: list[Any]) -> SummedReply:
    traffic, position, reply_to, weight, *rest = said
    return SummedReply(position, reply_to, weight, ClientTraffic(*traffic), *rest)


def _tensor(buffer: Buffer, dtype: str, size: int) -> Tensor:
    values = np.frombuffer(buffer, dtype=dtype, count=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it may be read-only; we only read
        return torch.from_numpy(values)
