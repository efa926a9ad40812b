"""Reading the replies of a round: each is checked, counted, and added up or kept."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

from flwr.app import Message

from fedcompress import protocol
from fedcompress.aggregation import TreeSum
from fedcompress.broadcasts import Broadcasts
from fedcompress.errors import ConfigError, FedcompressError, PayloadError, StaleMemoryError
from fedcompress.incoming import (
    Answer,
    Expected,
    is_dense,
    most_common_metrics,
    read_reply,
    usable_sums,
)
from fedcompress.memories import Memories
from fedcompress.partial import PartialSum
from fedcompress.reference import NEEDS_WHOLE_MODEL
from fedcompress.sent import SentRound
from fedcompress.traffic import ClientTraffic, RoundTraffic

logger = logging.getLogger(__name__)


@final
class RoundReader:
    """Reads the replies of one round, and notes bytes and outcome of every client.

    Parameters
    ----------
    sent : SentRound
        What each node was sent.
    traffic : RoundTraffic
        Where to note.
    memories : Memories
        What the server remembers of each client.
    broadcasts : Broadcasts or None
        The compressed downlink, if there is one.
    weight_key : str
        Metric by which the strategy weighs clients.
    takes_mean : bool
        Whether the mean of the updates is all that is needed; all then have one reference.
    keeps_updates : bool
        Whether decoded updates are kept for those who will ask; otherwise their payloads are
        decoded again one by one.
    """

    def __init__(
        self,
        sent: SentRound,
        traffic: RoundTraffic,
        memories: Memories,
        broadcasts: Broadcasts | None,
        *,
        weight_key: str,
        takes_mean: bool,
        keeps_updates: bool,
    ) -> None:
        self._sent = sent
        self._traffic = traffic
        self._memories = memories
        self._broadcasts = broadcasts
        self._weight_key = weight_key
        self._takes_mean = takes_mean
        self._keeps_updates = keeps_updates

    def read(
        self, replies: list[Message], sums: Sequence[PartialSum]
    ) -> tuple[list[Answer], TreeSum | None]:
        """Read the replies one by one; under a weighted mean, keep only their sum.

        Raises
        ------
        ConfigError
            If clients were to send payloads, and all of them sent dense arrays.
        """
        expected = Expected(
            self._traffic.server_round,
            self._sent,
            self._weight_key,
            most_common_metrics(replies),
            self._memories,
            adds_dense=self._takes_mean,
        )
        summed = usable_sums(sums, replies, expected)
        self._traffic.decode_seconds = sum(r.decode_seconds for r in summed.rows.values())
        common = self._sent.common
        total: TreeSum | None = None
        if self._takes_mean and common is not None:
            total = TreeSum(common, len(self._sent))
            for node in summed.nodes:
                total.put(node)
        answers: list[Answer] = []
        answered: set[int] = set()
        dense = 0
        for reply in replies:
            node_id = reply.metadata.src_node_id
            message_id = reply.metadata.reply_to_message_id
            row = summed.rows.get(message_id)
            try:
                if node_id in answered:
                    raise PayloadError(f"reply of node {node_id}: it has answered already")
                if row is not None:
                    answer = Answer(reply, {}, row.weight, row.traffic)
                else:
                    answer = self._read_one(reply, expected, total)
            except FedcompressError as error:
                if isinstance(error, StaleMemoryError):
                    self._memories.forget(node_id)
                dense += is_dense(reply)
                size = summed.unused.get(message_id, protocol.data_bytes(reply.content))
                self._note(reply, "rejected", str(error), size)
                continue
            answered.add(node_id)
            answers.append(self._without_memory(answer, node_id))
            self._traffic.clients.append(answer.traffic)
            if self._broadcasts is not None:
                self._broadcasts.confirm(node_id)
        self._memories.make_room()
        if dense and not answers and any(sent.compressor for sent in self._sent.values()):
            raise ConfigError(
                f"Compressed: {dense} clients sent dense arrays and none a payload; put "
                "compression_mod first in ClientApp(mods=[...]), or wrap the app by compress()"
            )
        return answers, total

    def note_error(self, reply: Message) -> None:
        """Note a reply that says why there is no update."""
        reason = reply.error.reason or "no reason given"
        if self._broadcasts is not None and NEEDS_WHOLE_MODEL in reason:
            self._broadcasts.forget(reply.metadata.src_node_id)
        ours = reason.startswith(protocol.ERROR_PREFIX)
        self._note(reply, "rejected" if ours else "error", reason, 0)

    def warn_of_faults(self) -> None:
        """Warn once for each reason why updates were not used, however many clients gave it."""
        clients = self._traffic.clients
        faults = Counter(" ".join(str(c.reason).split()) for c in clients if c.status != "ok")
        for reason, count in faults.items():
            logger.warning(
                "round %d: %d of %d clients: %s",
                *(self._traffic.server_round, count, len(self._sent), reason),
            )

    def _read_one(self, reply: Message, expected: Expected, total: TreeSum | None) -> Answer:
        answer = read_reply(reply, expected)
        if total is not None:
            position = expected.positions[reply.metadata.src_node_id]
            total.no_more_before(position)
            total.add(position, answer.parts, answer.weight)
        # An update that was predicted from a memory cannot be decoded again once that has moved on.
        elif self._keeps_updates or answer.memory:
            return answer
        return replace(answer, parts={})

    def _without_memory(self, answer: Answer, node_id: int) -> Answer:
        if not answer.memory:
            return answer
        group = self._sent.of(node_id).group
        self._memories.keep(node_id, self._traffic.server_round, answer.memory, group)
        return replace(answer, memory={})

    def _note(
        self, reply: Message, status: Literal["rejected", "error"], reason: str, size: int
    ) -> None:
        node_id = reply.metadata.src_node_id
        self._traffic.clients.append(ClientTraffic(node_id, status, reason, size))
        logger.debug("round %d: node %d: %s", self._traffic.server_round, node_id, reason)
