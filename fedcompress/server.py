"""The server's end: a strategy around any Flower strategy."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedXgbBagging, FedXgbCyclic, Strategy
from torch import Tensor

from fedcompress import protocol
from fedcompress.aggregation import TreeSum
from fedcompress.checks import check_integer
from fedcompress.compressor import Compressor
from fedcompress.downlink import Broadcast
from fedcompress.dtypes import restore_dtypes
from fedcompress.errors import ConfigError, FedcompressError, PayloadError, StaleMemoryError
from fedcompress.flower_adapter import (
    check_metrics_agree,
    metrics_from,
    strategies_inside,
    tell_server_momentum,
    uses_weighted_mean,
    weight_key,
    with_content,
)
from fedcompress.incoming import (
    Answer,
    Expected,
    in_order,
    is_dense,
    most_common_metrics,
    read_reply,
    usable_sums,
)
from fedcompress.links import Uplink, read_links
from fedcompress.memories import Memories
from fedcompress.outgoing import Outgoing
from fedcompress.partial import PartialSum, SummingGrid, SumPlan, layout_of
from fedcompress.reference import NEEDS_WHOLE_MODEL
from fedcompress.spec import parse
from fedcompress.traffic import ClientTraffic, RoundTraffic

logger = logging.getLogger(__name__)


class Compressed(Strategy):
    """Any Flower strategy over compressed updates.

    The clients' apps carry `compression_mod` (or are wrapped by `compress`). Each round the
    spec travels in the message's ConfigRecord; the client answers with one payload, which is
    checked, decoded and handed to the strategy inside. Strategies that take the weighted mean
    of the clients' arrays are given that mean alone: payloads are added up, sparse ones touching
    only the entries they hold, here or where the clients run (see `SummingGrid`), with the same
    bits either way. All others are given every decoded model. Either way the result is that of
    the strategy inside on the decoded models.

    A client whose payload does not verify, or whose numbers are not finite, is left out and
    recorded in `last_round`; a round in which nothing usable came back keeps the model.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of ``flwr.serverapp.strategy``, or one that wraps it.
    uplink : str, Compressor or callable, optional
        Spec of the clients' compressor, or a function of (node id, round) that gives one. None
        leaves the clients' arrays dense, as without compression; they are still checked, counted
        and, for a weighted mean, added up (a baseline). Default:
        ``quantize(step=0.4) | entropy()``.
    downlink : str or Compressor, optional
        Spec for what the server sends. A lossy one should carry ``error_feedback(...)``, which
        remembers on the server what the broadcast left out; without an uplink of its own it
        makes that ``raw()``. Default: dense arrays.
    seed : int
        Of 64 bits. Keys all randomness of compression, together with round and client.
    memory_bytes : int
        Most that the server remembers of the clients' payloads under an uplink of `delta` or
        `ef21`, one model for each client; beyond it those not heard for longest start anew.

    Attributes
    ----------
    last_round : RoundTraffic
        Bytes and outcome of every client of the last round.

    Raises
    ------
    ConfigError
        If a spec cannot work, or the strategy inside is already compressed.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from fedcompress import Compressed
    >>> strategy = Compressed(
    ...     FedAvg(), uplink="error_feedback(top_k(0.01) | quantize(4) | entropy())"
    ... )
    """

    def __init__(
        self,
        strategy: Strategy,
        uplink: Uplink | None = "quantize(step=0.4) | entropy()",
        downlink: str | Compressor | None = None,
        seed: int = 0,
        memory_bytes: int = 500_000_000,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise ConfigError(
                f"Compressed: strategy must be a flwr.serverapp.strategy.Strategy, got {strategy!r}"
            )
        for inside in strategies_inside(strategy):
            if isinstance(inside, Compressed):
                raise ConfigError("Compressed: the strategy is compressed already; wrap it once")
            if isinstance(inside, FedXgbBagging | FedXgbCyclic):
                raise ConfigError(
                    f"Compressed: {type(inside).__name__} exchanges trees, which have no update "
                    "to compress; use it as it is"
                )
        self.strategy = strategy
        check_integer("Compressed", "seed", seed, -(1 << 63), (1 << 63) - 1)
        self.uplink, self.downlink = read_links("Compressed", uplink, downlink)
        check_integer("Compressed", "memory_bytes", memory_bytes, 0, (1 << 63) - 1)
        self.seed = seed
        self.last_round = RoundTraffic(server_round=0)
        self._memories = Memories(memory_bytes)
        self._broadcast = None if self.downlink is None else Broadcast(self.downlink, seed)
        self._reference: dict[str, Tensor] = {}
        self._sent: dict[int, Compressor | None] = {}  # by node id, in this round and in its order
        self._summing: SummingGrid | None = None  # the grid that sums this round's updates itself

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure training inside, and add the spec (and a compressed model) to each message."""
        model = protocol.record_to_tensors(arrays)
        if self._broadcast is not None:
            self._broadcast.advance_to(model, server_round)
            model = self._broadcast.reference
            arrays = protocol.tensors_to_record(model)
            tell_server_momentum(self.strategy, arrays)
        self._reference = model
        self._sent = {}
        self.last_round = RoundTraffic(server_round=server_round)
        outgoing = Outgoing(server_round, self.seed, self._broadcast, self._memories)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        for message in messages:
            node_id = message.metadata.dst_node_id
            compressor = self._compressor_for(node_id, server_round)
            self._sent[node_id] = compressor
            self.last_round.downlink.append(outgoing.prepare(message, compressor))
        self._arm(server_round, messages, grid, outgoing)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and decode the payloads, and aggregate inside."""
        started = time.perf_counter()
        ordered = in_order(replies, self._sent)
        errors = [reply for reply in ordered if reply.has_error()]
        for reply in errors:
            self._note_error(reply)
        answers, total = self._read_all(server_round, [r for r in ordered if r.has_content()])
        self.last_round.decode_seconds += time.perf_counter() - started
        self._warn_of_faults()
        started = time.perf_counter()
        arrays, metrics = None, None
        if sum(answer.weight for answer in answers) > 0:
            arrays, metrics = self._aggregate(server_round, answers, total, errors)
        else:
            logger.warning(
                "round %d: nothing usable came back from %d clients; the model stays as it is",
                *(server_round, len(self._sent)),
            )
        if arrays is not None:
            dtypes = {name: x.dtype for name, x in self._reference.items()}
            restored = restore_dtypes(protocol.record_to_tensors(arrays), dtypes)
            arrays = protocol.tensors_to_record(restored)
        elif self._broadcast is not None:
            self._broadcast.model_stays()
        self.last_round.aggregate_seconds = time.perf_counter() - started
        return arrays, self.last_round.add_to_metrics(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure evaluation inside; these messages are not compressed."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate evaluation inside."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        logger.info("\t├──> Compression:")
        logger.info("\t│\t├── Uplink: %s", self.uplink or "dense")
        logger.info("\t│\t└── Downlink: %s", self.downlink or "dense")
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs of the protocol to go on from here (not of the inside)."""
        state = {} if self._broadcast is None else self._broadcast.state_dict()
        memories = self._memories.state_dict()
        return {**state, "memories": memories} if memories else state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        memories = state.get("memories", {})
        if not isinstance(memories, Mapping):
            raise TypeError(f"state: memories is a {type(memories).__name__}, expected a mapping")
        self._memories.load_state_dict(memories)
        if self._broadcast is not None and state.keys() - {"memories"}:
            self._broadcast.load_state_dict(state)

    def _compressor_for(self, node_id: int, server_round: int) -> Compressor | None:
        if self.uplink is None:
            return None
        return parse(self.uplink(node_id, server_round) if callable(self.uplink) else self.uplink)

    def _arm(
        self, server_round: int, messages: list[Message], grid: Grid, outgoing: Outgoing
    ) -> None:
        """Let an engine that can do so add the updates, where their mean is all that is needed."""
        self._summing = None
        if not isinstance(grid, SummingGrid):
            return
        plan = None
        summed = [c for c in self._sent.values() if c is None or not c.recalls]
        if uses_weighted_mean(self.strategy) and messages and len(summed) == len(messages):
            plan = SumPlan(
                server_round,
                node_ids=tuple(self._sent),
                uplinks=tuple("" if c is None else outgoing.spec(c) for c in summed),
                layout=layout_of(self._reference),
                weight_key=weight_key(self.strategy),
            )
        if grid.sum_updates(plan) and plan is not None:
            self._summing = grid

    def _take_sums(self) -> list[PartialSum]:
        taken = [] if self._summing is None else self._summing.take_sums()
        self._summing = None
        return taken

    def _read_all(
        self, server_round: int, replies: list[Message]
    ) -> tuple[list[Answer], TreeSum | None]:
        """Read the replies one by one; under a weighted mean, keep only their sum."""
        takes_mean = uses_weighted_mean(self.strategy)
        expected = Expected(
            server_round,
            dict(self._sent),
            self._reference,
            weight_key(self.strategy),
            most_common_metrics(replies),
            self._memories,
            adds_dense=takes_mean,
        )
        summed = usable_sums(self._take_sums(), replies, expected)
        self.last_round.decode_seconds = sum(r.decode_seconds for r in summed.rows.values())
        total: TreeSum | None = None
        if takes_mean:
            total = TreeSum(self._reference, len(self._sent))
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
                    answer = _read_and_add(reply, expected, total)
            except FedcompressError as error:
                if isinstance(error, StaleMemoryError):
                    self._memories.forget(node_id)
                dense += is_dense(reply)
                size = summed.unused.get(message_id, protocol.data_bytes(reply.content))
                self._note(reply, "rejected", str(error), size)
                continue
            answered.add(node_id)
            if answer.memory:
                self._memories.keep(node_id, server_round, answer.memory)
                answer = replace(answer, memory={})
            answers.append(answer)
            self.last_round.clients.append(answer.traffic)
            if self._broadcast is not None:
                self._broadcast.confirm(node_id)
        self._memories.make_room()
        if dense and not answers and self.uplink is not None:
            raise ConfigError(
                f"Compressed: {dense} clients sent dense arrays and none a payload; put "
                "compression_mod first in ClientApp(mods=[...]), or wrap the app by compress()"
            )
        return answers, total

    def _note_error(self, reply: Message) -> None:
        reason = reply.error.reason or "no reason given"
        if self._broadcast is not None and NEEDS_WHOLE_MODEL in reason:
            self._broadcast.forget(reply.metadata.src_node_id)
        ours = reason.startswith(protocol.ERROR_PREFIX)
        self._note(reply, "rejected" if ours else "error", reason, 0)

    def _note(
        self, reply: Message, status: Literal["rejected", "error"], reason: str, size: int
    ) -> None:
        node_id = reply.metadata.src_node_id
        self.last_round.clients.append(ClientTraffic(node_id, status, reason, size))
        logger.debug("round %d: node %d: %s", self.last_round.server_round, node_id, reason)

    def _warn_of_faults(self) -> None:
        """Warn once for each reason why updates were not used, however many clients gave it."""
        clients = self.last_round.clients
        faults = Counter(" ".join(str(c.reason).split()) for c in clients if c.status != "ok")
        for reason, count in faults.items():
            logger.warning(
                "round %d: %d of %d clients: %s",
                *(self.last_round.server_round, count, len(self._sent), reason),
            )

    def _aggregate(
        self,
        server_round: int,
        answers: list[Answer],
        total: TreeSum | None,
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if total is None or not isinstance(self.strategy, FedAvg):
            is_dense = self.uplink is None
            replies = [a.reply if is_dense else self._dense_reply(a) for a in answers]
            return self.strategy.aggregate_train(server_round, replies + errors)
        model = total.average() if self.uplink is None else total.mean()
        if not all(bool(x.isfinite().all()) for x in model.values()):
            logger.warning(
                "round %d: the mean of %d clients is not finite; the model stays as it is",
                *(server_round, len(answers)),
            )
            return None, None
        contents = [protocol.without_arrays(answer.reply.content) for answer in answers]
        check_metrics_agree(self.strategy, contents)
        summed = RecordDict(
            {
                self.strategy.arrayrecord_key: protocol.tensors_to_record(model),
                "metrics": MetricRecord({self.strategy.weighted_by_key: 1.0}),
            }
        )
        logger.info("round %d: one mean of %d clients follows", server_round, len(answers))
        with metrics_from(self.strategy, contents):
            reply = with_content(answers[0].reply, summed)
            return self.strategy.aggregate_train(server_round, [reply, *errors])

    def _dense_reply(self, answer: Answer) -> Message:
        model = protocol.advance(self._reference, answer.dense())
        # Integers go in as float64, which holds every counter exactly: rules such as q-FedAvg
        # compute in place and fail on integer arrays.
        floats = {name: x if x.is_floating_point() else x.double() for name, x in model.items()}
        content = protocol.with_model(answer.reply.content, floats)
        return with_content(answer.reply, content)


def _read_and_add(reply: Message, expected: Expected, total: TreeSum | None) -> Answer:
    answer = read_reply(reply, expected)
    if total is None:
        return answer
    position = expected.positions[reply.metadata.src_node_id]
    total.no_more_before(position)
    total.add(position, answer.parts, answer.weight)
    return replace(answer, parts={})
