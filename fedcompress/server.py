"""The server's end: a strategy around any Flower strategy."""

import logging
import time
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic, Strategy

from fedcompress import protocol
from fedcompress.aggregation import TreeSum
from fedcompress.block import as_block
from fedcompress.broadcasts import Broadcasts
from fedcompress.checks import check_integer
from fedcompress.compressor import Compressor
from fedcompress.dense_replies import dense_reply
from fedcompress.dtypes import restore_dtypes
from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import (
    check_metrics_agree,
    is_weighted_mean,
    mean_metrics,
    mean_rule,
    metrics_from,
    sends_own_arrays,
    strategies_inside,
    takes_one_at_a_time,
    tell_server_momentum,
    uses_weighted_mean,
    weight_key,
    with_content,
)
from fedcompress.incoming import Answer, in_order
from fedcompress.links import Uplink, read_links
from fedcompress.memories import Memories
from fedcompress.outgoing import Outgoing
from fedcompress.partial import PartialSum, SummingGrid, plan_for
from fedcompress.reading import RoundReader
from fedcompress.sent import SentRound
from fedcompress.spec import parse
from fedcompress.starts import Starts
from fedcompress.strategy_around import StrategyAround
from fedcompress.traffic import RoundTraffic

logger = logging.getLogger(__name__)


class Compressed(StrategyAround):
    """Any Flower strategy over compressed updates.

    The clients' apps carry `compression_mod` (or are wrapped by `compress`). Each round the
    spec travels in the message's ConfigRecord; the client answers with one payload, which is
    checked, decoded and handed to the strategy inside. Strategies that take the weighted mean
    of the clients' arrays are given that mean alone: payloads are added up, sparse ones touching
    only the entries they hold, here or where the clients run (see `SummingGrid`), with the same
    bits either way; `FedAvg` and `FedProx`, which would give it back, are not asked. All others are
    given every decoded model. Either way the result is that of the strategy inside on the decoded
    models.

    A client whose payload does not verify, or whose numbers are not finite, is left out and
    recorded in `last_round`; a round in which nothing usable came back keeps the model. Messages of
    evaluation are the strategy's inside, and are not compressed.

    A strategy may put other arrays than the model into a message, and name their layout under
    ``"fedcompress.group"`` in its ConfigRecord: that client's update is then against those, and
    what it is given back is of their layout. A strategy of yours says what it needs by these
    attributes, all False where they are missing: ``sends_own_arrays``, that it does so, and is to
    be given the model as it is also under a lossy downlink; ``takes_mean``, that it passes what it
    is given to the strategy that it wraps, to which the mean of all clients is enough;
    ``one_at_a_time``, that it goes through the replies once, so that they are decoded one by one.

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
        self._sends_own = sends_own_arrays(strategy)
        self._broadcasts: Broadcasts | None = None
        if self.downlink is not None:
            self._broadcasts = Broadcasts(self.downlink, seed, remembers=not self._sends_own)
        self._dtypes: dict[str, torch.dtype] = {}
        self._sent = SentRound()
        self._summing: SummingGrid | None = None  # the grid that sums this round's updates itself

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure training inside, and add the spec (and a compressed model) to each message."""
        starts = Starts(server_round, arrays, self._broadcasts, self._sends_own)
        if starts.arrays is not arrays:
            tell_server_momentum(self.strategy, starts.arrays)
        self._dtypes = starts.dtypes
        self._sent = SentRound()
        self.last_round = RoundTraffic(server_round=server_round)
        outgoing = Outgoing(server_round, self.seed, self._memories)
        messages = list(self.strategy.configure_train(server_round, starts.arrays, config, grid))
        for message in messages:
            node_id = message.metadata.dst_node_id
            start = starts.of(message.content)
            compressor = self._compressor_for(node_id, server_round)
            self._sent.note(node_id, start.sent(compressor))
            if self._broadcasts is not None and start.broadcast is not None:
                self._broadcasts.ask(node_id, start.broadcast)
            downlink = outgoing.prepare(message, compressor, start.broadcast, start.group)
            self.last_round.downlink.append(downlink)
        self._arm(grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and decode the payloads, and aggregate inside."""
        started = time.perf_counter()
        ordered = in_order(replies, self._sent)
        reader = self._reader()
        errors = [reply for reply in ordered if reply.has_error()]
        for reply in errors:
            reader.note_error(reply)
        whole = [reply for reply in ordered if reply.has_content()]
        answers, total = reader.read(whole, self._take_sums())
        self.last_round.decode_seconds += time.perf_counter() - started
        reader.warn_of_faults()
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
            arrays = self._restored(arrays)
        elif self._broadcasts is not None:
            self._broadcasts.model_stays()
        self.last_round.aggregate_seconds = time.perf_counter() - started
        return arrays, self.last_round.add_to_metrics(metrics)

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        logger.info("\t├──> Compression:")
        logger.info("\t│\t├── Uplink: %s", self.uplink or "dense")
        logger.info("\t│\t└── Downlink: %s", self.downlink or "dense")
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs of the protocol to go on from here (not of the inside)."""
        state = {} if self._broadcasts is None else self._broadcasts.state_dict()
        memories = self._memories.state_dict()
        return {**state, "memories": memories} if memories else state

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        memories = state.get("memories", {})
        if not isinstance(memories, Mapping):
            raise TypeError(f"state: memories is a {type(memories).__name__}, expected a mapping")
        self._memories.load_state_dict(memories)
        if self._broadcasts is not None and state.keys() - {"memories"}:
            self._broadcasts.load_state_dict(state)

    def _compressor_for(self, node_id: int, server_round: int) -> Compressor | None:
        if self.uplink is None:
            return None
        return parse(self.uplink(node_id, server_round) if callable(self.uplink) else self.uplink)

    def _arm(self, grid: Grid) -> None:
        """Let an engine that can do so add the updates, where their mean is all that is needed."""
        self._summing = None
        if not isinstance(grid, SummingGrid):
            return
        plan = None
        if uses_weighted_mean(self.strategy):
            key = weight_key(self.strategy)
            plan = plan_for(self.last_round.server_round, self._sent, key)
        if grid.sum_updates(plan) and plan is not None:
            self._summing = grid

    def _reader(self) -> RoundReader:
        return RoundReader(
            self._sent,
            self.last_round,
            self._memories,
            self._broadcasts,
            weight_key=weight_key(self.strategy),
            takes_mean=uses_weighted_mean(self.strategy) and self._sent.common is not None,
            keeps_updates=not takes_one_at_a_time(self.strategy),
        )

    def _restored(self, arrays: ArrayRecord) -> ArrayRecord:
        block = protocol.record_to_block(arrays)
        if block is not None and {self._dtypes.get(name) for name in block} == {torch.float32}:
            return arrays
        restored = restore_dtypes(protocol.record_to_tensors(arrays), self._dtypes)
        return protocol.tensors_to_record(as_block(restored) or restored)

    def _take_sums(self) -> list[PartialSum]:
        taken = [] if self._summing is None else self._summing.take_sums()
        self._summing = None
        return taken

    def _aggregate(
        self,
        server_round: int,
        answers: list[Answer],
        total: TreeSum | None,
        errors: list[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        rule = mean_rule(self.strategy)
        if total is None or rule is None:
            decoded = (
                dense_reply(answer, self._sent.of(answer.traffic.node_id), server_round)
                for answer in answers
            )
            one_by_one = takes_one_at_a_time(self.strategy)
            replies = chain(decoded, errors) if one_by_one else [*decoded, *errors]
            return self.strategy.aggregate_train(server_round, replies)
        model = total.average() if self.uplink is None else total.mean()
        if protocol.not_finite(model) is not None:
            logger.warning(
                "round %d: the mean of %d clients is not finite; the model stays as it is",
                *(server_round, len(answers)),
            )
            return None, None
        contents = [protocol.without_arrays(answer.reply.content) for answer in answers]
        check_metrics_agree(rule, contents)
        mean = protocol.tensors_to_record(model)
        if is_weighted_mean(self.strategy):
            # Which would copy the mean three times to give it back.
            failed = len(errors)
            logger.info(
                "round %d: the mean of %d clients, %d failed", server_round, len(answers), failed
            )
            return mean, mean_metrics(rule, contents)
        summed = RecordDict(
            {
                rule.arrayrecord_key: mean,
                "metrics": MetricRecord({rule.weighted_by_key: 1.0}),
            }
        )
        logger.info("round %d: one mean of %d clients follows", server_round, len(answers))
        with metrics_from(self.strategy, contents):
            reply = with_content(answers[0].reply, summed)
            return self.strategy.aggregate_train(server_round, [reply, *errors])
