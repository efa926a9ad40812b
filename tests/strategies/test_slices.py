"""Slices: levels down and up, exact bytes, and the mean of each entry over those that hold it."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum, Strategy
from torch import nn

from fedcompress import Compressed, ConfigError, compression_mod, rng_for
from fedcompress.protocol import GROUP_KEY
from fedcompress.slices import slice_map, take
from simulations.engines import LocalGrid
from simulations.models import build_model
from strategies import Slices

CLIENTS = 5
LEVELS = {"1": 1.0, "0.5": 0.5, "0.25": 0.25}
BY_MEAN: dict[str, Callable[..., FedAvg]] = {
    "FedAvg": FedAvg,
    "FedAdam": flower.FedAdam,
    "FedAvgM": lambda **k: flower.FedAvgM(server_momentum=0.9, **k),
}


def model(width: float = 1.0, seed: int = 0) -> nn.Module:
    return build_model("resnet", (1, 8, 8), 4, seed=seed, width=width / 2)


LAYOUTS = {name: slice_map(model(), model(width)) for name, width in LEVELS.items()}
WHOLE = {"1": LAYOUTS["1"]}


def make_app(equal: bool = False, spoil: int | None = None) -> ClientApp:
    """An app that adds a draw to what it is sent; the same for all, and of the whole, if equal."""
    app = ClientApp(mods=[compression_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(message.content["config"]["server-round"])  # type: ignore[call-overload,index,arg-type]
        draw = rng_for(1, round=number, client=0 if equal else context.node_id)
        arrays = {}
        for name, array in message.content["arrays"].items():  # type: ignore[union-attr]
            value = array.numpy()
            if value.dtype.kind == "f":
                value = value + draw.standard_normal(value.shape).astype(value.dtype)
            arrays[name] = np.asarray(value + (value.dtype.kind == "i"))
        if spoil == context.node_id:
            arrays["head.bias"] = arrays["head.bias"] * np.float32("nan")
        metrics = {"num-examples": 3 if equal else context.node_id, "train_loss": 1.0}
        content = {
            "arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()}),
            "metrics": MetricRecord(metrics),
            "said": ConfigRecord({"group": str(message.content["config"][GROUP_KEY])})  # type: ignore[call-overload,index]
            if GROUP_KEY in message.content["config"]  # type: ignore[operator]
            else ConfigRecord(),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def start() -> ArrayRecord:
    return ArrayRecord({n: Array(x.numpy()) for n, x in model().state_dict().items()})


def train(strategy: Strategy, app: ClientApp, rounds: int = 3) -> tuple[ArrayRecord, list[Message]]:
    grid, arrays, replies = LocalGrid(lambda: app, CLIENTS), start(), []
    for number in range(1, rounds + 1):
        random.seed(number)
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(messages))
        new, _ = strategy.aggregate_train(number, replies)
        arrays = new or arrays
    return arrays, replies


def level_of(node_id: int, server_round: int) -> str:
    return list(LEVELS)[(node_id + server_round) % 3]


def values(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("uplink", ["raw()", "error_feedback(top_k(0.1) | quantize(6))", None])
@pytest.mark.parametrize("rule", BY_MEAN)
def test_one_level_that_is_whole_is_the_strategy_inside(rule: str, uplink: str | None) -> None:
    inner = BY_MEAN[rule](fraction_evaluate=0.0)
    bare, _ = train(Compressed(inner, uplink=uplink, seed=2), make_app())
    inner = BY_MEAN[rule](fraction_evaluate=0.0)
    sliced = Slices(inner, layouts=WHOLE, level_of=lambda *_: "1")
    ours, _ = train(Compressed(sliced, uplink=uplink, seed=2), make_app())
    assert ours == bare


def test_equal_clients_of_the_whole_model_give_what_they_have() -> None:
    inner = FedAvg(fraction_evaluate=0.0)
    bare, _ = train(Compressed(inner, uplink="raw()"), make_app(equal=True), rounds=1)
    slices = Slices(
        FedAvg(fraction_evaluate=0.0),
        layouts=LAYOUTS,
        level_of=lambda n, _: "1" if n > 1 else "0.25",
    )
    ours, _ = train(slices, make_app(equal=True), rounds=1)
    narrow = LAYOUTS["0.25"]
    for name, x in values(bare).items():
        y = values(ours)[name]
        held = np.zeros(x.shape, bool)
        held[tuple(narrow[name])] = True  # those of the narrow client drew other numbers
        np.testing.assert_allclose(y[~held], x[~held], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("drawn", [False, True])
def test_bytes_are_those_of_the_slice_in_both_directions(drawn: bool) -> None:
    def level(node_id: int, server_round: int) -> str:
        return level_of(node_id, server_round if drawn else 0)

    inner = FedAvg(fraction_evaluate=0.0)
    strategy = Compressed(Slices(inner, layouts=LAYOUTS, level_of=level), uplink="raw()")
    _, replies = train(strategy, make_app())
    exact, dense = {}, {}
    for name in LEVELS:
        part = take(model().state_dict(), LAYOUTS[name])
        exact[name] = sum(x.numel() * x.element_size() for x in part.values())
        record = {n: Array(np.ascontiguousarray(x.numpy())) for n, x in part.items()}
        dense[name] = sum(len(array.data) for array in record.values())
    told = {r.metadata.src_node_id: str(r.content.config_records["said"]["group"]) for r in replies}
    assert len(set(told.values())) == 3
    overheads: dict[str, set[int]] = {name: set() for name in LEVELS}
    for client in strategy.last_round.clients:
        assert client.status == "ok"
        name = told[client.node_id]
        assert name == level(client.node_id, 3)
        overheads[name].add(client.uplink_payload_bytes - exact[name])
    # The header, and how long each array is: a byte or two for each.
    assert all(len(sizes) == 1 and 0 < min(sizes) < 200 for sizes in overheads.values())
    for down in strategy.last_round.downlink:
        assert down.payload_bytes == dense[told[down.node_id]]


def test_entries_that_nobody_holds_stay() -> None:
    strategy = Slices(FedAvg(fraction_evaluate=0.0), layouts=LAYOUTS, level_of=lambda n, _: "0.25")
    arrays, _ = train(Compressed(strategy, uplink="quantize(8) | entropy()"), make_app())
    held = take({n: torch.from_numpy(x) for n, x in values(start()).items()}, LAYOUTS["0.25"])
    for name, before in values(start()).items():
        after = values(arrays)[name]
        inside = np.zeros(before.shape, bool)
        inside[tuple(LAYOUTS["0.25"][name])] = True
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert inside.sum() == held[name].numel()
        assert (after[inside] != before[inside]).all()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_client_whose_update_is_not_finite_is_left_out(compressed: bool) -> None:
    level = {1: "1", 2: "0.5", 3: "0.25", 4: "0.25", 5: "0.25"}
    plain = Slices(FedAvg(fraction_evaluate=0.0), layouts=LAYOUTS, level_of=lambda n, _: level[n])
    strategy = Compressed(plain, uplink="raw()") if compressed else plain
    arrays, _ = train(strategy, make_app(spoil=1), rounds=1)
    assert all(np.isfinite(x).all() for x in values(arrays).values())
    outside = values(arrays)["norm.weight"][4:]
    np.testing.assert_array_equal(outside, values(start())["norm.weight"][4:])


def test_nothing_usable_keeps_the_model(caplog: pytest.LogCaptureFixture) -> None:
    strategy = Slices(FedAvg(fraction_evaluate=0.0), layouts=LAYOUTS, level_of=level_of)
    random.seed(0)
    grid = LocalGrid(make_app, CLIENTS)
    list(strategy.configure_train(1, start(), ConfigRecord(), grid))
    assert strategy.aggregate_train(1, []) == (None, None)
    assert "no usable reply" in caplog.text


def test_metrics_count_the_levels_and_average_the_rest() -> None:
    strategy = Slices(FedAvg(fraction_evaluate=0.0), layouts=LAYOUTS, level_of=level_of)
    grid = LocalGrid(make_app, CLIENTS)
    messages = list(strategy.configure_train(1, start(), ConfigRecord(), grid))
    _, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert metrics is not None
    assert metrics["train_loss"] == pytest.approx(1.0)
    assert [metrics[f"slices-{name}"] for name in LEVELS] == [2, 1, 2]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Slices(Krum(), layouts=WHOLE, level_of=level_of), "Krum inside needs every"),  # type: ignore[arg-type]
        (lambda: Slices(FedAdam(), layouts={}, level_of=level_of), "there is no level"),
        (
            lambda: train(
                Slices(FedAvg(fraction_evaluate=0.0), layouts=WHOLE, level_of=lambda *_: "2"),
                make_app(),
            ),
            "is of level '2'; known: 1",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
