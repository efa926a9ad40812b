"""Pruning on the server: masks by schedule and importance, and models that travel packed."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, final

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedcompress import protocol
from fedcompress.array_rules import canonical, matches
from fedcompress.flower_adapter import tell_server_momentum, with_content
from fedcompress.packing import mask_settings
from fedcompress.pruning import (
    Importance,
    Pattern,
    Schedule,
    by_layer,
    magnitude,
    masked,
    pack,
    remember,
    unpack,
    with_regrown,
)
from fedcompress.strategy_around import StrategyAround
from strategies.inside import check_inside

logger = logging.getLogger(__name__)


@final
class Pruned(StrategyAround):
    """Prune the global model during training, and send no more than what is left of it.

    Behind each round of the schedule the least important entries of the global model are set to
    0, for good or until they regrow. From then on messages hold the kept entries of each pruned
    array as one vector; clients answer in kind, so that both directions carry only what is left,
    under whatever codec. The mask travels once to each client in each of its versions, coded.
    The model that the strategy gives back is whole, with zeros.

    Clients need `fedcompress.packing.packing_mod` behind `compression_mod`. Compression stands
    outside: ``Compressed(Pruned(FedAvg(), schedule=Schedule(0.9, 5, 20, 5)), uplink="...")``.

    With ``schedule.regrow`` the rounds that are pruned after send the whole model, so that
    clients train pruned entries, too: those whose mean update is largest come back (PruneFL;
    Jiang et al., 2022). Such a round costs the bytes of an unpruned one.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of ``flwr.serverapp.strategy`` that combines models, `Distilled` among them.
    schedule : Schedule
        When to prune, and how far.
    importance : Importance
        What an entry is worth: `magnitude`, `taylor` or `fisher`.
    pattern : Pattern
        Which entries are kept by their worth: `by_layer`, `across_layers`, `rows`, `n_of_m(2, 4)`.
    only : str
        Rule for the arrays that are pruned, as in `route`.
    remembers : bool
        Whether the clients' mean updates are remembered, which takes two models of memory;
        `taylor` and `fisher` need it, and `adaptive_uplink` does.

    Raises
    ------
    ConfigError
        If compression stands inside, or a setting cannot work.

    Notes
    -----
    The metrics of a round gain ``prune-sparsity``, the share of zeros among the entries that may
    be pruned, and ``prune-kept``, how many entries are left.
    """

    takes_mean: ClassVar[bool] = True
    sends_own_arrays: ClassVar[bool] = True

    def __init__(
        self,
        strategy: Strategy,
        *,
        schedule: Schedule,
        importance: Importance = magnitude,
        pattern: Pattern = by_layer,
        only: str = "ndim>=2",
        remembers: bool | None = None,
    ) -> None:
        check_inside("Pruned", strategy)
        self.strategy = strategy
        self.schedule = schedule
        self.importance = importance
        self.pattern = pattern
        self.only = canonical("Pruned: only", only)
        self.remembers = importance is not magnitude if remembers is None else remembers
        self._mask: dict[str, Tensor] = {}
        self._version = 0
        self._sparsity = 0.0  # that the mask was made for
        self._holders: set[int] = set()  # nodes that were sent this version of the mask
        self._unheard: set[int] = set()  # of them those of a round that nothing usable came of
        self._state: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}  # what this round's clients start from
        self._packed_by: dict[str, Tensor] = {}  # the mask of this round's messages

    @property
    def mask(self) -> Mapping[str, Tensor]:
        """What is kept: bool, by the names of pruned arrays; empty before anything is pruned."""
        return self._mask

    @property
    def updates(self) -> Mapping[str, Tensor]:
        """What is remembered of the clients' mean updates, as `remember` gives it."""
        return self._state

    @property
    def one_at_a_time(self) -> bool:
        """Whether the strategy inside goes through the replies once, and keeps none of them."""
        return bool(getattr(self.strategy, "one_at_a_time", False))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the round inside, and pack the model in each message."""
        self._before = protocol.record_to_tensors(arrays)
        self._holders -= self._unheard
        self._unheard = set()
        tell_server_momentum(self.strategy, arrays)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        whole = self.schedule.regrow > 0 and self.schedule.changes_at(server_round)
        self._packed_by = {} if whole else self._mask
        if not self._packed_by:
            return messages
        record = protocol.tensors_to_record(pack(self._before, self._mask))
        self._unheard = {message.metadata.dst_node_id for message in messages}
        lacking = self._unheard - self._holders
        coded = mask_settings(self._mask) if lacking else {}
        contents: dict[tuple[int, bool], tuple[RecordDict, RecordDict]] = {}
        for message in messages:
            given, lacks = message.content, message.metadata.dst_node_id in lacking
            if (id(given), lacks) not in contents:
                content = self._packed_content(given, record, coded if lacks else {})
                contents[id(given), lacks] = given, content
            message.content = contents[id(given), lacks][1]
        self._holders |= lacking
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Unpack the replies, combine them inside, and prune the result when it is time."""
        self._unheard = set()
        unpacked = self._unpacked(replies)
        start, metrics = self.strategy.aggregate_train(
            server_round, unpacked if self.one_at_a_time else list(unpacked)
        )
        if start is None:
            return None, metrics
        arrays = protocol.record_to_tensors(start)
        update = {
            name: arrays[name].to(x.dtype) - x
            for name, x in self._before.items()
            if x.is_floating_point() and name in arrays
        }
        if self.remembers:
            self._state = remember(self._state, update)
        # Also where the round that was to prune had no usable reply.
        late = self.schedule.sparsity_at(server_round) > self._sparsity
        if late or self.schedule.changes_at(server_round):
            self._prune(server_round, arrays, update)
        arrays = masked(arrays, self._mask)
        record = MetricRecord() if metrics is None else metrics
        kept, size = self._counts(arrays)
        record["prune-sparsity"] = 1 - kept / size if size else 0.0
        record["prune-kept"] = kept
        return protocol.tensors_to_record(arrays), record

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        logger.info("\t├──> Pruning:")
        logger.info("\t│\t├── sparsity: %s of %s", self.schedule.sparsity, self.only)
        logger.info("\t│\t└── rounds: %d to %d", self.schedule.first, self.schedule.last)
        self.strategy.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here (not of the inside)."""
        return {
            "mask": {name: x.numpy() for name, x in self._mask.items()},
            "version": self._version,
            "sparsity": self._sparsity,
            "holders": sorted(self._holders - self._unheard),
            "updates": {name: x.numpy() for name, x in self._state.items()},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        self._unheard = set()
        self._mask, self._state = _tensors(state["mask"]), _tensors(state["updates"])
        self._version = int(str(state["version"]))
        self._sparsity = float(str(state["sparsity"]))
        holders = state["holders"]
        self._holders = {int(x) for x in holders} if isinstance(holders, list) else set()

    def _packed_content(
        self, given: RecordDict, record: ArrayRecord, coded: Mapping[str, str | bytes]
    ) -> RecordDict:
        """Copy a content with a packed model, and settings that say by which mask."""
        key, _ = protocol.single_array_record(given, "message")
        configs = [(name, one) for name, one in given.items() if isinstance(one, ConfigRecord)]
        place, theirs = configs[0] if configs else ("config", ConfigRecord())
        # Each mask is a layout of its own: what clients and server remember is of its entries.
        settings = {
            protocol.MASK_VERSION_KEY: self._version,
            protocol.GROUP_KEY: f"mask-{self._version}",
            **coded,
        }
        config = ConfigRecord({**dict(theirs), **settings})
        return RecordDict({**dict(given.items()), key: record, place: config})

    def _unpacked(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            if reply.has_error():
                # Whatever went wrong: a mask sent twice costs little, one that lacks a round.
                self._holders.discard(reply.metadata.src_node_id)
                yield reply
            elif not self._packed_by:
                yield reply
            else:
                packed = protocol.record_to_tensors(
                    protocol.single_array_record(reply.content, "reply")[1]
                )
                content = protocol.with_model(reply.content, unpack(packed, self._packed_by))
                yield with_content(reply, content)

    def _prune(
        self, server_round: int, arrays: Mapping[str, Tensor], update: Mapping[str, Tensor]
    ) -> None:
        weights = {name: arrays[name] for name in self._prunable(arrays)}
        before = {
            name: self._mask.get(name, torch.ones(x.shape, dtype=torch.bool))
            for name, x in weights.items()
        }
        # Only whole models tell what the entries that are not there would do.
        share = 0.0 if self._packed_by else self.schedule.regrow
        scores = with_regrown(self.importance(weights, self._state), update, before, share)
        self._sparsity = self.schedule.sparsity_at(server_round)
        mask = self.pattern(scores, 1 - self._sparsity)
        if all(torch.equal(mask[name], x) for name, x in before.items()):
            return
        self._mask = mask
        self._version += 1
        self._holders = set()

    def _prunable(self, arrays: Mapping[str, Tensor]) -> list[str]:
        return [
            name
            for name, x in self._before.items()
            if name in arrays and x.is_floating_point() and matches(self.only, name, x)
        ]

    def _counts(self, arrays: Mapping[str, Tensor]) -> tuple[int, int]:
        """Count the entries that are left of those that may be pruned, and those."""
        sizes = {name: arrays[name].numel() for name in self._prunable(arrays)}
        kept = {name: int(x.sum()) for name, x in self._mask.items()}
        return sum({**sizes, **kept}.values()), sum(sizes.values())


def _tensors(arrays: object) -> dict[str, Tensor]:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"state: expected arrays by name, got a {type(arrays).__name__}")
    return {str(name): torch.from_numpy(np.array(x)) for name, x in arrays.items()}
