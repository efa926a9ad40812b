"""The row of a round: what the strategy says of itself stands in it."""

from __future__ import annotations

import math
import random

from flwr.app import ArrayRecord, MetricRecord

from fedcompress.traffic import RoundTraffic
from simulations.rounds import Round
from simulations.rows import round_row, timeline_of
from simulations.timeline import Phase


def row_of(metrics: MetricRecord | None) -> dict[str, object]:
    done = Round(
        number=1,
        arrays=ArrayRecord(),
        messages=[],
        replies=[],
        reports={},
        traffic=[],
        metrics=metrics,
        evaluation=None,
        phases=(Phase("download", 0.0, 1.0),),
        spans=(),
        began=0.0,
        round_seconds=1.0,
        train_seconds=0.0,
        evaluate_seconds=0.0,
    )
    traffic = RoundTraffic(1)
    timeline = timeline_of(done, traffic, lambda node_id: node_id, workers=1)
    return round_row(done, traffic, [], 100, timeline)


def test_metrics_of_the_strategy_are_recorded_in_a_fixed_order() -> None:
    said = {"distill-teachers": 3, "distill-kl-after": 0.5, "prune-kept": [0.1, math.nan]}
    keys = list(said)
    random.Random(0).shuffle(keys)
    metrics = RoundTraffic(1).add_to_metrics(MetricRecord({key: said[key] for key in keys}))
    metrics["train_loss"] = 1.0  # which the row has already
    metrics["odd"] = math.inf
    row = row_of(metrics)
    assert row["strategy_metrics"] == {
        "distill-kl-after": 0.5,
        "distill-teachers": 3,
        "odd": None,
        "prune-kept": [0.1, None],
    }
    assert list(row["strategy_metrics"]) == sorted(row["strategy_metrics"])  # type: ignore[call-overload]


def test_a_strategy_may_say_nothing() -> None:
    assert row_of(None)["strategy_metrics"] == {}
