"""Clients that hold a slice of the global model each, and the mean of what they hold (HeteroFL)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import ClassVar, final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedcompress import protocol
from fedcompress.errors import ConfigError, FedcompressError, LayoutError
from fedcompress.flower_adapter import (
    check_metrics_agree,
    mean_rule,
    metrics_from,
    with_content,
)
from fedcompress.slices import SliceMap, is_whole, mean_of_slices, take
from fedcompress.strategy_around import StrategyAround
from strategies.addressed import Addressed, metric_of

logger = logging.getLogger(__name__)


@final
class Slices(StrategyAround):
    """Each client is sent the first units of every layer only, as many as its level has.

    After Diao et al. (2021, HeteroFL) and Horvath et al. (2021, FjORD). Every entry of the global
    model becomes the mean over those clients that hold it, weighted as the strategy inside weighs
    clients; where nobody holds it, it stays. The strategy inside is given that mean as the one
    reply, so a server optimiser works as ever. A reply that is not finite, or not of its client's
    slice, is logged and left out.

    Both directions carry the slice alone, under any codec:
    ``Compressed(Slices(FedAvg(), ...), uplink="...")``.

    Parameters
    ----------
    strategy : FedAvg
        A strategy of ``flwr.serverapp.strategy`` that takes the clients' weighted mean.
    layouts : mapping of str to mapping
        Where the slice of each level lies, from `fedcompress.slices.slice_map`, by the level's
        name; clients find that name under ``fedcompress.group`` in their message's ConfigRecord.
    level_of : callable
        Level of a node in a round, ``(node id, round) -> str``.

    Raises
    ------
    ConfigError
        If the strategy inside needs every client's whole model, or there is no level.

    Notes
    -----
    The metrics of a round gain ``slices-<level>``, how many clients of a level were used.
    """

    sends_own_arrays: ClassVar[bool] = True
    strategy: FedAvg
    one_at_a_time: ClassVar[bool] = True

    def __init__(
        self,
        strategy: FedAvg,
        *,
        layouts: Mapping[str, SliceMap],
        level_of: Callable[[int, int], str],
    ) -> None:
        if mean_rule(strategy) is not strategy:
            raise ConfigError(
                f"Slices: {type(strategy).__name__} inside needs every client's whole model, which "
                "nobody has; use FedAvg, or another that takes the weighted mean"
            )
        if not layouts:
            raise ConfigError("Slices: there is no level, got layouts = {}; give at least one")
        self.strategy = strategy
        self.layouts = dict(layouts)
        self.level_of = level_of
        self._model: dict[str, Tensor] = {}
        self._levels: dict[int, str] = {}

    @property
    def takes_mean(self) -> bool:
        """Whether every client of this round holds all of the model: then their mean is enough."""
        return bool(self._levels) and all(
            is_whole(self._model, self.layouts[level]) for level in set(self._levels.values())
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy inside choose clients, and send each the slice of its level."""
        self._model = protocol.record_to_tensors(arrays)
        self._levels = {}
        addressed = Addressed()
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        for message in messages:
            node_id = message.metadata.dst_node_id
            level = self._levels[node_id] = self._level(node_id, server_round)
            addressed.send(message, level, partial(self._slice, level, arrays))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the strategy inside the mean of the slices, each entry over those that hold it."""
        if self.takes_mean:
            return self.strategy.aggregate_train(server_round, replies)
        usable: list[Message] = []
        errors: list[Message] = []
        mean = mean_of_slices(self._model, self._parts(replies, usable, errors))
        if not usable:
            logger.warning("round %d: no usable reply; the model is kept", server_round)
            return None, None
        contents = [reply.content for reply in usable]
        check_metrics_agree(self.strategy, contents)
        summed = RecordDict(
            {
                self.strategy.arrayrecord_key: protocol.tensors_to_record(mean),
                "metrics": MetricRecord({self.strategy.weighted_by_key: 1.0}),
            }
        )
        with metrics_from(self.strategy, contents):
            reply = with_content(usable[0], summed)
            arrays, metrics = self.strategy.aggregate_train(server_round, [reply, *errors])
        record = MetricRecord() if metrics is None else metrics
        for level in self.layouts:
            held = [r for r in usable if self._levels[r.metadata.src_node_id] == level]
            record[f"slices-{level}"] = len(held)
        return arrays, record

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure evaluation inside, on the slice that each client holds."""
        self._model = protocol.record_to_tensors(arrays)
        addressed = Addressed()
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        for message in messages:
            level = self._level(message.metadata.dst_node_id, server_round)
            addressed.send(message, level, partial(self._slice, level, arrays))
        return messages

    def summary(self) -> None:
        """Log the settings, and those of the strategy inside."""
        logger.info("\t├──> Slices settings:")
        logger.info("\t│\t└── levels: %s", ", ".join(self.layouts))
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here: nothing but what stands inside."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""

    def _level(self, node_id: int, server_round: int) -> str:
        level = self.level_of(node_id, server_round)
        if level not in self.layouts:
            raise ConfigError(
                f"Slices: node {node_id} is of level {level!r}; known: {', '.join(self.layouts)}"
            )
        return level

    def _slice(self, level: str, arrays: ArrayRecord) -> ArrayRecord:
        where = self.layouts[level]
        if is_whole(self._model, where):
            return arrays
        part = {name: x.contiguous() for name, x in take(self._model, where).items()}
        return protocol.tensors_to_record(part)

    def _parts(
        self, replies: Iterable[Message], usable: list[Message], errors: list[Message]
    ) -> Iterator[tuple[SliceMap, Mapping[str, Tensor], float]]:
        """Read the replies one by one; keep what is left of each without its arrays."""
        for reply in replies:
            if reply.has_error():
                errors.append(reply)
                continue
            node_id = reply.metadata.src_node_id
            try:
                part = self._read(reply, node_id)
            except FedcompressError as fault:
                logger.warning("node %d is left out: %s", node_id, fault)
                continue
            where = self.layouts[self._levels[node_id]]
            weight = metric_of(reply, self.strategy.weighted_by_key)
            usable.append(with_content(reply, protocol.without_arrays(reply.content)))
            yield where, part, 1.0 if weight is None else weight

    def _read(self, reply: Message, node_id: int) -> dict[str, Tensor]:
        if node_id not in self._levels:
            raise LayoutError("reply: it was not asked in this round")
        _, record = protocol.single_array_record(reply.content, "reply")
        part = protocol.record_to_tensors(record)
        wanted = take(self._model, self.layouts[self._levels[node_id]])
        if part.keys() != wanted.keys() or any(
            part[name].shape != x.shape for name, x in wanted.items()
        ):
            raise LayoutError("reply: its arrays are not those of its slice; return what was sent")
        protocol.check_finite(part)
        return part
