"""A weighted mean of replies that come one at a time, of which none is kept."""

import logging
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedcompress import protocol
from fedcompress.aggregation import FlatArrays, FlatLayout, TreeSum
from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import (
    check_metrics_agree,
    mean_rule,
    metrics_from,
    with_content,
)

logger = logging.getLogger(__name__)


def aggregate_streamed(
    strategy: Strategy,
    server_round: int,
    replies: Iterable[tuple[Message, float | None]],
    *,
    like: Mapping[str, Tensor],
    messages: int,
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Let a strategy that takes the clients' weighted mean have it as one reply.

    Parameters
    ----------
    strategy : Strategy
        One for which `fedcompress.flower_adapter.uses_weighted_mean` holds.
    server_round : int
        Number of the round.
    replies : iterable of (Message, float or None)
        Replies with one dense ArrayRecord of the layout of ``like``, or with an error; and the
        weight of each, None where it told none. Each is forgotten once it is added.
    like : mapping of str to Tensor
        The global model.
    messages : int
        How many messages the round has: the tree of sums depends on it.

    Returns
    -------
    ArrayRecord or None, MetricRecord or None
        What the strategy makes of the mean; None where there is none.

    Raises
    ------
    ConfigError
        If the strategy needs more than the mean.
    """
    rule = mean_rule(strategy)
    if rule is None:
        raise ConfigError(
            f"streamed mean: {type(strategy).__name__} needs every client's model; use FedAvg or "
            "another rule that takes their weighted mean"
        )
    layout, total, position = FlatLayout(like), TreeSum(like, messages), -1
    contents: list[RecordDict] = []
    errors: list[Message] = []
    first: Message | None = None
    weights = 0.0
    for reply, weight in replies:
        position += 1  # not by `enumerate`, which holds on to what it gave last
        if reply.has_error():
            errors.append(reply)
        else:
            total.no_more_before(position)
            total.add(position, _flat(reply, layout), weight or 0.0)
            weights += weight or 0.0
            contents.append(protocol.without_arrays(reply.content))
            first = first or with_content(reply, contents[-1])
        del reply  # before the next is decoded
    if first is None:
        return strategy.aggregate_train(server_round, errors)
    check_metrics_agree(rule, contents)
    if weights == 0:
        logger.warning("round %d: all clients weigh 0; the model is kept", server_round)
        return None, None
    mean = RecordDict(
        {
            rule.arrayrecord_key: protocol.tensors_to_record(total.average()),
            "metrics": MetricRecord({rule.weighted_by_key: 1.0}),
        }
    )
    with metrics_from(strategy, contents):
        return strategy.aggregate_train(server_round, [with_content(first, mean), *errors])


def _flat(reply: Message, layout: FlatLayout) -> FlatArrays:
    (record,) = protocol.array_records(reply.content).values()
    return layout.flatten(protocol.record_to_tensors(record))
