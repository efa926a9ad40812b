"""A strategy that packs what it sends, and needs the mean alone, is summed by the engines."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy

from fedcompress import Compressed, rng_for
from fedcompress.flower_adapter import mean_rule, uses_weighted_mean
from fedcompress.partial import SumPlan
from fedcompress.protocol import GROUP_KEY
from simulations.engines import LocalGrid, RayGrid

CLIENT_APP = "summing_client:app"
SPOILT_APP = "summing_client:spoilt_app"
CLIENTS = 24
UPLINKS = ["raw()", "top_k(0.3)", None]  # what does not ask for an array's shape


class Packed(Strategy):
    """Sends every array as a vector, and gives the mean its shape back."""

    takes_mean: ClassVar[bool] = True
    sends_own_arrays: ClassVar[bool] = True

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.given = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        self.shapes = {name: array.shape for name, array in arrays.items()}
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        content = RecordDict(
            {
                "arrays": reshaped(arrays, dict.fromkeys(arrays, (-1,))),
                "config": ConfigRecord({**config, GROUP_KEY: "packed"}),
            }
        )
        for message in messages:
            message.content = content
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                self.given += 1
                content = reply.content.copy()
                content["arrays"] = reshaped(content.array_records["arrays"], self.shapes)
                reply.content = content
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        return None

    def summary(self) -> None:
        self.strategy.summary()


class Plain(LocalGrid):
    """An engine that does not sum, as Flower's own."""

    def sum_updates(self, plan: SumPlan | None) -> bool:
        return False


def reshaped(arrays: ArrayRecord, shapes: dict[str, tuple[int, ...]]) -> ArrayRecord:
    return ArrayRecord({name: Array(x.numpy().reshape(shapes[name])) for name, x in arrays.items()})


def run(
    strategy: Compressed, grid: Grid, rounds: int = 4
) -> tuple[dict[str, np.ndarray], list[dict[str, object]], list[int]]:
    rng = rng_for(1)
    arrays = ArrayRecord(
        {
            "w": Array(rng.standard_normal((40, 25)).astype(np.float32)),
            "double": Array(rng.standard_normal(9)),
            "steps": Array(np.array(7)),
        }
    )
    metrics, sent = [], []
    for number in range(1, rounds + 1):
        random.seed(number)
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        new, said = strategy.aggregate_train(number, grid.send_and_receive(messages))
        arrays = new or arrays
        metrics.append({k: v for k, v in (said or {}).items() if "link" not in k})
        sent += [client.uplink_payload_bytes for client in strategy.last_round.clients]
    return {name: array.numpy() for name, array in arrays.items()}, metrics, sent


def assert_same_bits(
    ours: tuple[dict[str, np.ndarray], object, object],
    theirs: tuple[dict[str, np.ndarray], object, object],
) -> None:
    for name, x in theirs[0].items():
        np.testing.assert_array_equal(ours[0][name], x)
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("server", [FedAvg, FedAdam])
@pytest.mark.parametrize("app", [CLIENT_APP, SPOILT_APP])
@pytest.mark.parametrize("uplink", UPLINKS)
def test_packed_or_not_the_mean_has_the_same_bits(
    uplink: str | None, app: str, server: type[FedAvg]
) -> None:
    plain = run(Compressed(server(fraction_evaluate=0.0), uplink=uplink), LocalGrid(app, CLIENTS))
    for grid in (LocalGrid(app, CLIENTS), Plain(app, CLIENTS)):
        inner = Packed(server(fraction_evaluate=0.0))
        assert_same_bits(run(Compressed(inner, uplink=uplink), grid), plain)
        assert inner.given == 4  # one mean a round


@pytest.mark.ray
@pytest.mark.parametrize("uplink", [UPLINKS[1], None])
def test_workers_sum_packed_arrays(uplink: str | None, ray_session: None) -> None:
    expected = run(Compressed(FedAvg(fraction_evaluate=0.0), uplink=uplink), Plain(CLIENT_APP, 24))
    for workers in (1, 2):
        grid = RayGrid(CLIENT_APP, CLIENTS, workers=workers)
        try:
            packed = Packed(FedAvg(fraction_evaluate=0.0))
            assert_same_bits(run(Compressed(packed, uplink=uplink), grid), expected)
        finally:
            grid.close()


@pytest.mark.parametrize("server", [FedAvg, FedAdam])
def test_a_lossless_downlink_of_packed_arrays_changes_nothing(server: type[FedAvg]) -> None:
    ends = [
        run(
            Compressed(Packed(server(fraction_evaluate=0.0)), uplink="raw()", downlink=downlink),
            LocalGrid(CLIENT_APP, CLIENTS),
        )
        for downlink in (None, "raw()")
    ]
    for name, x in ends[0][0].items():
        np.testing.assert_allclose(ends[1][0][name], x, atol=1e-5)


def test_only_wrappers_that_say_so_take_the_mean() -> None:
    class Silent(Packed):
        takes_mean = False

    rule = FedAdam()
    assert mean_rule(Packed(Packed(rule))) is rule
    assert not uses_weighted_mean(Silent(rule))
    assert not uses_weighted_mean(Packed(Silent(rule)))
