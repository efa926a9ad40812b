"""The one place that touches what Flower keeps to itself.

`mean_rule` knows which strategies aggregate by FedAvg's weighted mean and nothing else, by the
identity of their methods; the tests fail loudly when Flower changes them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import (
    aggregate_metricrecords,
    validate_message_reply_consistency,
)

_BY_WEIGHTED_MEAN = {
    kind.aggregate_train for kind in (FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi)
}


def mean_rule(strategy: Strategy) -> FedAvg | None:
    """Find the rule inside to which the weighted mean of the clients' arrays is all that matters.

    None where a strategy needs more. One that wraps another takes part if it says so by
    ``takes_mean = True``: it is then given one reply, which holds the mean.
    """
    for inner in strategies_inside(strategy):
        if isinstance(inner, FedAvg):
            return inner if type(inner).aggregate_train in _BY_WEIGHTED_MEAN else None
        if not getattr(inner, "takes_mean", False):
            return None
    return None


def is_weighted_mean(strategy: Strategy) -> bool:
    """Whether a strategy is Flower's own that gives the mean of models and metrics as it is."""
    return type(strategy) in (FedAvg, FedProx) and "aggregate_train" not in vars(strategy)


def uses_weighted_mean(strategy: Strategy) -> bool:
    """Whether all that a strategy takes from the clients' arrays is their weighted mean."""
    return mean_rule(strategy) is not None


def sends_own_arrays(strategy: Strategy) -> bool:
    """Whether a strategy says that its messages hold other arrays than those it is given."""
    return any(getattr(inner, "sends_own_arrays", False) for inner in strategies_inside(strategy))


def takes_one_at_a_time(strategy: Strategy) -> bool:
    """Whether a strategy says that it goes through the replies once, and keeps none of them."""
    return bool(getattr(strategy, "one_at_a_time", False))


R = TypeVar("R", RecordDict, ArrayRecord, MetricRecord, ConfigRecord)


def filled(record: R, items: Iterable[tuple[str, object]] | Mapping[str, object]) -> R:
    """Fill an empty record with what is known to fit in it; Flower looks at each value."""
    vars(record)["_data"].update(items)
    return record


def put(records: RecordDict, key: str, record: ArrayRecord | ConfigRecord) -> None:
    """Set a record under a key, as ``records[key] = record`` does after checks of both."""
    vars(records)["_data"][key] = record


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Make a record that holds these very arrays, which `ArrayRecord` would check and copy."""
    return filled(ArrayRecord(), arrays)


def message_of(
    metadata: Metadata, content: RecordDict | None = None, error: Error | None = None
) -> Message:
    """Make a message of this metadata as it stands, without the checks of `Message`.

    Those take longer than to read and add a small update; either content or error is there.
    """
    metadata.delivered_at = ""  # as `Message` does
    message = Message.__new__(Message)
    vars(message).update(_metadata=metadata, _content=content, _error=error)
    return message


_FIELDS = (
    *("_run_id", "_message_id", "_src_node_id", "_dst_node_id", "_reply_to_message_id"),
    *("_group_id", "_created_at", "_ttl", "_message_type", "_src_task_id", "_dst_task_id"),
)


def metadata_of(values: Sequence[object]) -> Metadata:
    """Make ``Metadata(*values)`` of values that metadata have held before, without its checks."""
    metadata = Metadata.__new__(Metadata)
    vars(metadata).update(zip(_FIELDS, values, strict=True))
    return metadata


def metadata_values(metadata: Metadata) -> list[object]:
    """Give the values by which `metadata_of` makes the same metadata."""
    held = vars(metadata)
    return [held[field] for field in _FIELDS]


def with_content(message: Message, content: RecordDict) -> Message:
    """Make a message of the same metadata with other content; the given one stays as it is."""
    return message_of(message.metadata, content)


def strategies_inside(strategy: Strategy) -> Iterator[Strategy]:
    """Walk a strategy and those that it wraps, outermost first."""
    inner: object = strategy
    while isinstance(inner, Strategy):
        yield inner
        inner = getattr(inner, "strategy", None)


def weight_key(strategy: Strategy) -> str:
    """Name the metric by which the rule inside weighs clients."""
    for inner in strategies_inside(strategy):
        if isinstance(inner, FedAvg):
            return inner.weighted_by_key
    return "num-examples"


def tell_server_momentum(strategy: Strategy, arrays: ArrayRecord) -> None:
    """Let FedAvgM inside know the model that this round starts from.

    It remembers what it returned, which is not what the clients start from where that was
    distilled or broadcast with loss; its momentum would take the difference for the clients'.
    """
    for inner in strategies_inside(strategy):
        if isinstance(inner, FedAvgM):
            inner.current_arrays = arrays


class MetricContent(RecordDict):
    """A content whose MetricRecords are found as in any other, but without checks of each.

    Rules for metrics ask for them twice for every client.
    """

    @property
    def metric_records(self) -> TypedDict[str, MetricRecord]:
        """What Flower gives: a dictionary that passes changes on to this content."""
        found = _SyncedDict[MetricRecord](self, MetricRecord)
        records = ((key, r) for key, r in self.items() if isinstance(r, MetricRecord))
        vars(found)["_data"].update(records)
        return found


@contextmanager
def metrics_from(strategy: Strategy, contents: list[RecordDict]) -> Iterator[None]:
    """Let a strategy aggregate the metrics of ``contents`` while it sees one summed reply."""
    rule = mean_rule(strategy)
    if rule is None:
        yield
        return
    original = rule.train_metrics_aggr_fn
    mean = mean_metrics(rule, contents)
    rule.train_metrics_aggr_fn = lambda _contents, _key: mean
    try:
        yield
    finally:
        rule.train_metrics_aggr_fn = original


def mean_metrics(rule: FedAvg, contents: list[RecordDict]) -> MetricRecord:
    """Aggregate the metrics of contents by the function that a rule was given."""
    function, key = rule.train_metrics_aggr_fn, rule.weighted_by_key
    mean = mean_of_numbers(contents, key) if function is aggregate_metricrecords else None
    return function(contents, key) if mean is None else mean


def mean_of_numbers(contents: list[RecordDict], weight_key: str) -> MetricRecord | None:
    """Give what Flower's own rule for metrics does, to the bit, in a tenth of its time.

    Of contents that agree (see `check_metrics_agree`); None where a metric is a list.
    """
    records = [r for content in contents for r in content.values() if isinstance(r, MetricRecord)]
    weights = [record[weight_key] for record in records]
    total = sum(weights)  # type: ignore[arg-type]  # they are numbers: those agree
    sums: dict[str, float] = {}
    for record, weight in zip(records, weights, strict=True):
        share = weight / total  # type: ignore[operator]
        for name, value in record.items():
            if isinstance(value, list):
                return None
            if name != weight_key:
                sums[name] = sums[name] + value * share if name in sums else value * share
    return MetricRecord(sums)  # type: ignore[arg-type]  # a dict of float is no dict of its union


def check_metrics_agree(rule: FedAvg, contents: list[RecordDict]) -> None:
    """Raise Flower's own error where the clients' MetricRecords do not fit together."""
    if _agree(contents, rule.weighted_by_key):
        return
    validate_message_reply_consistency(contents, rule.weighted_by_key, check_arrayrecord=False)


def _agree(contents: list[RecordDict], weight_key: str) -> bool:
    """Whether each content has one MetricRecord, all of one name and keys: Flower asks slowly."""
    kinds = set()
    for content in contents:
        for name, record in content.items():
            if isinstance(record, MetricRecord):
                kinds.add((name, frozenset(record.keys())))
                if isinstance(record.get(weight_key, []), list):
                    return False
    count = sum(isinstance(record, MetricRecord) for c in contents for record in c.values())
    return len(kinds) == 1 and count == len(contents)
