"""Replies that are doubled, late, of impossible weight or of other metrics; schedules; memory."""

import gc
import random
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from fedcompress import Compressed, ConfigError, compression_mod, rng_for
from fedcompress.chain import Steps
from simulations.engines import LocalGrid

CLIENTS = 4
Change = Callable[[int, RecordDict], None]


def make_app(
    change: Change | None = None, mods: tuple[object, ...] = (compression_mod,)
) -> ClientApp:
    app = ClientApp(mods=list(mods))  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index]
        before = message.content["arrays"]["w"].numpy()  # type: ignore[call-overload,index]
        step = rng_for(4, round=server_round, client=client).standard_normal(before.shape)
        record = ArrayRecord({"w": Array(before + step.astype(np.float32))})
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 2})})
        if change is not None:
            change(client, content)
        return Message(content, reply_to=message)

    return app


def initial() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((20, 30), np.float32))})


def one_round(  # type: ignore[no-untyped-def]
    strategy: Compressed, grid: LocalGrid, server_round: int, arrays: ArrayRecord, replies_of=list
) -> ArrayRecord:
    random.seed(server_round)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    replies = replies_of(grid.send_and_receive(messages))
    return strategy.aggregate_train(server_round, replies)[0] or arrays


def run(strategy: Compressed, app: ClientApp, rounds: int = 1) -> ArrayRecord:
    grid, arrays = LocalGrid(lambda: app, CLIENTS), initial()
    for server_round in range(1, rounds + 1):
        arrays = one_round(strategy, grid, server_round, arrays)
    return arrays


def reasons(strategy: Compressed) -> list[str]:
    return [c.reason or "" for c in strategy.last_round.clients if c.status == "rejected"]


def test_a_reply_counts_once() -> None:
    once = Compressed(FedAvg(), uplink="raw()")
    expected = run(once, make_app())
    doubled = Compressed(FedAvg(), uplink="raw()")
    grid = LocalGrid(make_app, CLIENTS)
    arrays = one_round(doubled, grid, 1, initial(), lambda replies: [replies[0]] * 5 + replies)
    np.testing.assert_array_equal(arrays["w"].numpy(), expected["w"].numpy())
    assert len(reasons(doubled)) == 5
    assert all("answered already" in reason for reason in reasons(doubled))


def test_replies_of_another_round_are_left_out() -> None:
    strategy = Compressed(FedAvg(), uplink="raw()")
    grid, kept = LocalGrid(make_app, CLIENTS), []
    arrays = one_round(strategy, grid, 1, initial(), lambda r: kept.extend(r) or r)
    again = one_round(strategy, grid, 2, arrays, lambda _: kept)
    np.testing.assert_array_equal(again["w"].numpy(), arrays["w"].numpy())
    assert all("came too late" in reason for reason in reasons(strategy))


@pytest.mark.parametrize("weight", [1e39, 1e308, 1e-50, 1e-300])
def test_weights_of_any_size_give_the_mean(weight: float) -> None:
    def change(_: int, content: RecordDict) -> None:
        content["metrics"]["num-examples"] = weight  # type: ignore[call-overload,index]

    plain = run(Compressed(FedAvg(), uplink="raw()"), make_app())
    heavy = run(Compressed(FedAvg(), uplink="raw()"), make_app(change))
    np.testing.assert_allclose(heavy["w"].numpy(), plain["w"].numpy(), atol=1e-6)


@pytest.mark.parametrize("uplink", ["raw()", None])
@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
def test_weights_of_zero_keep_the_model(inner: type[Strategy], uplink: str | None) -> None:
    def change(_: int, content: RecordDict) -> None:
        content["metrics"]["num-examples"] = 0  # type: ignore[call-overload,index]

    mods = (compression_mod,) if uplink else ()
    arrays = run(Compressed(inner(), uplink=uplink), make_app(change, mods))
    np.testing.assert_array_equal(arrays["w"].numpy(), initial()["w"].numpy())


@pytest.mark.parametrize(
    "strange",
    [
        lambda m: m.pop("num-examples"),
        lambda m: m.update({"num-examples": [1, 2]}),
        lambda m: m.update({"more": 1.0}),
        lambda m: m.update({"num-examples": float("nan")}),
    ],
)
def test_one_client_of_strange_metrics_is_left_out(strange: Callable[[MetricRecord], None]) -> None:
    def change(client: int, content: RecordDict) -> None:
        if client == 2:
            strange(content["metrics"])  # type: ignore[arg-type]

    strategy = Compressed(FedAvg(), uplink="raw()")
    run(strategy, make_app(change))
    assert [c.node_id for c in strategy.last_round.clients if c.status != "ok"] == [3]


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00garbage", b"junk"])
def test_a_dense_reply_that_is_no_array_is_left_out(data: bytes) -> None:
    def change(client: int, content: RecordDict) -> None:
        if client == 1:
            content["arrays"]["w"] = Array("float32", (20, 30), "numpy.ndarray", data)  # type: ignore[index,call-overload]

    strategy = Compressed(FedAvg(), uplink=None)
    run(strategy, make_app(change, ()))
    assert [c.node_id for c in strategy.last_round.clients if c.status != "ok"] == [2]


def test_a_round_that_keeps_the_model_does_not_count_its_residual_twice() -> None:
    strategy = Compressed(FedAvg(), uplink="raw()", downlink="error_feedback(top_k(0.05))")
    grid, arrays = LocalGrid(make_app, CLIENTS), initial()

    def total() -> np.ndarray:
        state = strategy.state_dict()
        return np.asarray(state["reference"]["w"] + state["state"]["residual/w"])  # type: ignore[index]

    for server_round in range(1, 4):
        arrays = one_round(strategy, grid, server_round, arrays)
    arrays = one_round(strategy, grid, 4, arrays, lambda _: [])
    before = total()
    arrays = one_round(strategy, grid, 5, arrays)
    np.testing.assert_allclose(total(), before, atol=1e-5)
    one_round(strategy, grid, 6, arrays)
    assert np.abs(total() - before).max() > 0.1


def test_a_spec_on_a_schedule_keeps_the_residual() -> None:
    def uplink(_: int, server_round: int) -> str:
        return f"error_feedback(top_k({0.05 + server_round / 1000}) | entropy())"

    strategy = Compressed(FedAvg(), uplink=uplink)
    grid, arrays = LocalGrid(make_app, CLIENTS), initial()
    for server_round in range(1, 9):
        arrays = one_round(strategy, grid, server_round, arrays)
    residuals = [
        grid._states[node].array_records["fedcompress.state"]["residual/w"].numpy()
        for node in range(1, CLIENTS + 1)
    ]
    trained = sum(
        np.mean(
            [rng_for(4, round=r, client=c).standard_normal((20, 30)) for c in range(CLIENTS)], 0
        )
        for r in range(1, 9)
    )
    np.testing.assert_allclose(arrays["w"].numpy() + np.mean(residuals, 0), trained, atol=1e-4)


def test_under_a_mean_no_decoded_update_outlives_its_turn() -> None:
    alive: list[int] = []

    def aggregate(records: list[RecordDict], key: str) -> MetricRecord:
        alive.append(sum(type(x) is Steps for x in gc.get_objects()))
        return MetricRecord({"clients": len(records)})

    strategy = Compressed(FedAvg(train_metrics_aggr_fn=aggregate), uplink="quantize(4)")
    run(strategy, make_app(), rounds=2)
    assert alive == [0, 0]


@pytest.mark.parametrize("seed", ["abc", 1.5, 1 << 70, True])
def test_a_seed_is_an_integer_of_64_bits(seed: object) -> None:
    with pytest.raises(ConfigError, match="seed must be an integer"):
        Compressed(FedAvg(), uplink="raw()", seed=seed)  # type: ignore[arg-type]
