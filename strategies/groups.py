"""Clients of several architectures in one federation: each group of them has a model of its own."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcompress import protocol
from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import record_of, strategies_inside
from fedcompress.grid_around import GridAround
from fedcompress.server import Compressed
from strategies.addressed import Addressed

logger = logging.getLogger(__name__)

SEPARATOR = "/"
"""Stands between the name of a group and that of its array, as in ``"lenet/conv1.weight"``."""


@final
class Groups(Strategy):
    """Each group of clients trains a model of its own, by a rule of its own.

    The global arrays are those of all groups, by the names ``<group>/<array>``. A client is sent
    the arrays of its group under their own names; its reply goes to the rule of its group, which
    has never heard of the others. A group from which nothing usable came keeps its model.

    Both directions carry one group's arrays, under any codec: ``Compressed(Groups(...), ...)``.
    To let the groups learn from each other, wrap it in `GroupsDistilled`.

    Parameters
    ----------
    rules : mapping of str to Strategy
        By the name of the group: any strategy of ``flwr.serverapp.strategy`` that takes a
        network's arrays. It chooses among its group's clients, so its fractions and least numbers
        of nodes are of these.
    group_of : callable
        Group of a node, ``node id -> str``, the same in every round. Clients find its name under
        ``fedcompress.group`` in their message's ConfigRecord.

    Raises
    ------
    ConfigError
        If there is no group, a name is empty or holds a slash, one rule stands for two groups, or
        compression stands inside.

    Notes
    -----
    The metrics of a round are those of each rule, by the names ``<group>/<metric>``.
    """

    sends_own_arrays: ClassVar[bool] = True

    def __init__(self, rules: Mapping[str, Strategy], *, group_of: Callable[[int], str]) -> None:
        _check_rules(rules)
        self.rules = dict(rules)
        self.group_of = group_of
        self._arrays = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let every rule choose among its group's clients, and send them its model."""
        self._arrays = arrays
        messages: list[Message] = []
        for group, own in self.split(arrays).items():
            told = ConfigRecord(dict(config))
            rule, nodes = self.rules[group], self._nodes_of(group, grid)
            messages += _named(group, rule.configure_train(server_round, own, told, nodes))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let every rule combine the replies of its group, and put the groups' models together."""
        of_group: dict[str, list[Message]] = {group: [] for group in self.rules}
        for reply in replies:
            of_group[self.group(reply.metadata.src_node_id)].append(reply)
        models = self.split(self._arrays)
        record = MetricRecord()
        changed = False
        for group, rule in self.rules.items():
            if not of_group[group]:
                continue
            arrays, metrics = rule.aggregate_train(server_round, of_group[group])
            if arrays is None:
                logger.warning("round %d: group %s keeps its model", server_round, group)
                continue
            models[group], changed = arrays, True
            for name, value in (metrics or {}).items():
                record[f"{group}{SEPARATOR}{name}"] = value
        return (self.join(models), record) if changed else (None, None)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure evaluation by every rule, each client on its group's model."""
        messages: list[Message] = []
        for group, own in self.split(arrays).items():
            told = ConfigRecord(dict(config))
            rule, nodes = self.rules[group], self._nodes_of(group, grid)
            messages += _named(group, rule.configure_evaluate(server_round, own, told, nodes))
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Combine evaluation metrics by every rule."""
        of_group: dict[str, list[Message]] = {group: [] for group in self.rules}
        for reply in replies:
            of_group[self.group(reply.metadata.src_node_id)].append(reply)
        record = MetricRecord()
        for group, own in of_group.items():
            metrics = self.rules[group].aggregate_evaluate(server_round, own) if own else None
            for name, value in (metrics or {}).items():
                record[f"{group}{SEPARATOR}{name}"] = value
        return record or None

    def summary(self) -> None:
        """Log the settings of every rule."""
        for group, rule in self.rules.items():
            logger.info("\t├──> Group %s:", group)
            rule.summary()

    def state_dict(self) -> dict[str, object]:
        """Give what a later run needs to go on from here: nothing but what its rules do."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""

    def group(self, node_id: int) -> str:
        """Give the group of a node; `ConfigError` for one that there is not."""
        group = self.group_of(node_id)
        if group not in self.rules:
            raise ConfigError(
                f"Groups: node {node_id} is of group {group!r}; known: {', '.join(self.rules)}"
            )
        return group

    def split(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        """Part global arrays into those of each group, under their own names.

        Raises
        ------
        ConfigError
            If a name is of no group, or a group has no arrays.
        """
        parts: dict[str, dict[str, object]] = {group: {} for group in self.rules}
        for name, array in arrays.items():
            group, found, own = name.partition(SEPARATOR)
            if not found or group not in parts:
                raise ConfigError(
                    f"Groups: the global array {name!r} is of no group; name it "
                    f"<group>{SEPARATOR}<array>, the group one of {', '.join(parts)}"
                )
            parts[group][own] = array
        if missing := [group for group, part in parts.items() if not part]:
            raise ConfigError(f"Groups: there are no global arrays of {', '.join(missing)}")
        return {group: record_of(part) for group, part in parts.items()}  # type: ignore[arg-type]

    def join(self, models: Mapping[str, ArrayRecord]) -> ArrayRecord:
        """Put the groups' arrays together as global arrays."""
        return join_groups(models)

    def _nodes_of(self, group: str, grid: Grid) -> Grid:
        return _NodesOf(grid, [node for node in grid.get_node_ids() if self.group(node) == group])


def join_groups(models: Mapping[str, ArrayRecord]) -> ArrayRecord:
    """Name the arrays of each group's model as `Groups` does, in one record."""
    return record_of(
        {
            f"{group}{SEPARATOR}{name}": array
            for group, record in models.items()
            for name, array in record.items()
        }
    )


def _check_rules(rules: Mapping[str, Strategy]) -> None:
    if not rules:
        raise ConfigError("Groups: there is no group, got rules = {}; give at least one")
    for group, rule in rules.items():
        if not group or SEPARATOR in group:
            raise ConfigError(
                f"Groups: a group's name must have letters and no {SEPARATOR!r}, got {group!r}"
            )
        if any(isinstance(inner, Compressed) for inner in strategies_inside(rule)):
            raise ConfigError(
                f"Groups: compression stands inside group {group!r}; write "
                "Compressed(Groups(...), ...)"
            )
    if len({id(rule) for rule in rules.values()}) < len(rules):
        raise ConfigError(
            "Groups: two groups have the same rule, which remembers one model; give each its own"
        )


def _named(group: str, messages: Iterable[Message]) -> list[Message]:
    addressed, named = Addressed(), list(messages)
    for message in named:
        sent = protocol.single_array_record(message.content, "message")[1]
        addressed.send(message, group, partial(_same, sent))
    return named


def _same(record: ArrayRecord) -> ArrayRecord:
    return record


@final
class _NodesOf(GridAround):
    """A grid of which only some nodes are seen; all else is done by the whole one."""

    def __init__(self, grid: Grid, node_ids: list[int]) -> None:
        super().__init__(grid)
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return self._node_ids

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [node for node in self.grid.get_nodes() if node.node_id in set(self._node_ids)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return list(self.grid.push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(self.grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return list(self.grid.send_and_receive(messages, timeout=timeout))
