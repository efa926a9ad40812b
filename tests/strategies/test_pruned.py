"""Pruned: what is left travels, what is pruned stays 0, and masks reach who lacks them."""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import cast

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, Strategy
from hypothesis import given, settings

from fedcompress import Compressed, ConfigError, compression_mod, parse, protocol, rng_for
from fedcompress.packing import MASK_RECORD, mask_in_use, packing_mod
from fedcompress.pruning import (
    Schedule,
    across_layers,
    by_layer,
    decode_mask,
    encode_mask,
    fisher,
    n_of_m,
    rows,
    taylor,
)
from simulations.checkpoint import load_strategy_state, strategy_state
from simulations.engines import LocalGrid
from simulations.engines.flower_internals import records_to_bytes
from simulations.engines.message_bytes import payload_bytes
from strategies import Distilled, Pruned
from strategies.adaptive import adaptive_uplink

CLIENTS = 4
SHAPES = {"conv": (6, 4, 3, 3), "bias": (6,), "head": (10, 24), "count": ()}
GRADUAL = Schedule(0.8, first=1, last=3, every=1)


def start() -> ArrayRecord:
    draw = rng_for(7, purpose="start")
    arrays = {
        name: np.asarray(draw.standard_normal(shape), np.float32) for name, shape in SHAPES.items()
    }
    arrays["count"] = np.asarray(3, np.int64)
    return ArrayRecord({name: Array(x) for name, x in arrays.items()})


def client_app(mods: list[object], seen: list[dict[str, object]] | None = None) -> ClientApp:
    """Make an app of one who knows nothing of masks: every entry changes."""
    app = ClientApp(mods=mods)  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        config = cast(ConfigRecord, message.content["config"])
        arrays = cast(ArrayRecord, message.content["arrays"])
        draw = rng_for(1, round=int(cast(int, config["server-round"])), client=client)
        if seen is not None:
            mask = mask_in_use(config, context)
            seen.append({"arrays": arrays, "mask": mask, "config": dict(config)})
        trained = {
            name: Array(
                np.asarray(x.numpy() + draw.standard_normal(x.shape), x.numpy().dtype)
                if x.dtype == "float32"
                else np.asarray(x.numpy() + 1)
            )
            for name, x in arrays.items()
        }
        metrics = MetricRecord({"num-examples": 10 + client, "train_loss": 1.0})
        content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def fed(kind: Callable[..., Strategy] = FedAvg, **more: object) -> Strategy:
    return kind(fraction_evaluate=0.0, min_available_nodes=CLIENTS, **more)


def run(
    strategy: Strategy,
    rounds: int,
    mods: list[object] | None = None,
    seen: list[dict[str, object]] | None = None,
    spoil: Callable[[int, list[Message]], list[Message]] | None = None,
) -> list[ArrayRecord]:
    """Give the global model after each round."""
    both = [compression_mod, packing_mod]
    arrays, models = start(), []
    with LocalGrid(lambda: client_app(both if mods is None else mods, seen), CLIENTS) as grid:
        for number in range(1, rounds + 1):
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            replies = list(grid.send_and_receive(messages))
            replies = replies if spoil is None else spoil(number, replies)
            after, _ = strategy.aggregate_train(number, replies)
            arrays = arrays if after is None else after
            models.append(arrays)
    return models


def numbers(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def assert_masked(record: ArrayRecord, mask: Mapping[str, torch.Tensor]) -> None:
    """Pruned entries are 0, without a sign, and the arrays are those of the model."""
    assert {n: tuple(x.shape) for n, x in record.items()} == SHAPES
    assert record["count"].dtype == "int64"
    for name, kept in mask.items():
        values = record[name].numpy()[~kept.numpy()]
        assert not values.any()
        assert not np.signbit(values).any()


@pytest.mark.parametrize(
    "uplink", [None, "raw()", "error_feedback(top_k(0.2) | quantize(4) | entropy())"]
)
@pytest.mark.parametrize("downlink", [None, "error_feedback(quantize(6) | entropy())"])
@pytest.mark.parametrize(
    "inner",
    [
        FedAvg,
        lambda **k: FedAvgM(server_momentum=0.9, server_learning_rate=0.7, **k),
        lambda **k: FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, **k),
        FedMedian,
    ],
)
def test_what_is_pruned_is_0_after_every_round(
    uplink: str | None, downlink: str | None, inner: Callable[..., Strategy]
) -> None:
    pruned = Pruned(fed(inner), schedule=GRADUAL, importance=taylor)
    strategy = Compressed(pruned, uplink=uplink, downlink=downlink)
    masks = []

    def note(_: int, replies: list[Message]) -> list[Message]:
        masks.append(pruned.mask)
        return replies

    models = run(strategy, 5, spoil=note)
    masks.append(pruned.mask)
    assert all(client.status == "ok" for client in strategy.last_round.clients)
    for number, (model, mask) in enumerate(zip(models, masks[1:], strict=True), start=1):
        assert_masked(model, mask)
        assert mask.keys() == {"conv", "head"}
        share = 1 - GRADUAL.sparsity_at(number)
        for name, kept in mask.items():
            assert int(kept.sum()) == round(np.prod(SHAPES[name]) * share)
    later = [int(mask["head"].sum()) for mask in masks[1:]]
    assert later == sorted(later, reverse=True)
    for before, after in pairwise(masks[1:]):
        assert not bool((after["head"] & ~before["head"]).any())


def test_both_directions_carry_what_is_left() -> None:
    """Raw payloads are four bytes for each kept entry, and the mask comes once."""
    pruned = Pruned(fed(), schedule=Schedule(0.9))
    strategy = Compressed(pruned, uplink="raw()")
    up, down = [], []

    def note(_: int, replies: list[Message]) -> list[Message]:
        up.append({len(a.data) for r in replies for a in r.content["arrays"].values()})
        down.append({sent.payload_bytes for sent in strategy.last_round.downlink})
        return replies

    run(strategy, 3, spoil=note)
    kept = sum(int(x.sum()) for x in pruned.mask.values())
    assert kept == round(0.1 * 216) + round(0.1 * 240)
    # Two vectors of less than 128 bytes: their lengths take a byte less, too.
    assert {x - 4 * (216 + 240 - kept) - 2 for x in up[0]} == up[1] == up[2]
    assert len(up[0]) == 1
    shapes = json.dumps({"conv": [6, 4, 3, 3], "head": [10, 24]}, separators=(",", ":"))
    assert down[1] == {next(iter(down[2])) + len(encode_mask(pruned.mask)) + len(shapes)}
    headers = 4 * 128  # of Flower's dense arrays
    assert down[2] == {4 * (kept + 6) + 8 + headers}


def test_the_result_is_that_of_the_rule_on_masked_models() -> None:
    """One who unpacks by hand and averages gets the same numbers."""
    pruned = Pruned(fed(), schedule=Schedule(0.5))
    models = run(Compressed(pruned, uplink=None), 2, mods=[packing_mod])
    plain, mask = start(), None
    for number in (1, 2):
        weights, total = 0.0, {}
        for client in range(CLIENTS):
            draw = rng_for(1, round=number, client=client)
            for name, x in numbers(plain).items():
                if x.dtype != np.float32:
                    continue
                moved = np.asarray(x + draw.standard_normal(x.shape), np.float32)
                there = mask[name].numpy() if mask and name in mask else True
                total[name] = total.get(name, 0.0) + (10 + client) * (moved * there).astype(float)
            weights += 10 + client
        mean = {name: (x / weights).astype(np.float32) for name, x in total.items()}
        mask = (
            by_layer({n: torch.from_numpy(mean[n]).abs() for n in ("conv", "head")}, 0.5)
            if (mask is None)
            else mask
        )
        for name, x in mean.items():
            expected = x * mask[name].numpy() if name in mask else x
            np.testing.assert_allclose(models[number - 1][name].numpy(), expected, atol=1e-6)
        plain = models[number - 1]


def test_an_app_sees_whole_models_and_may_ask_for_the_mask() -> None:
    seen: list[dict[str, object]] = []
    pruned = Pruned(fed(), schedule=Schedule(0.5))
    run(Compressed(pruned, uplink="quantize(8) | entropy()"), 2, seen=seen)
    first, second = seen[:CLIENTS], seen[CLIENTS:]
    assert all(one["mask"] is None for one in first)
    for one in second:
        arrays = cast(ArrayRecord, one["arrays"])
        mask = cast(Mapping[str, torch.Tensor], one["mask"])
        assert_masked(arrays, mask)
        assert all(torch.equal(mask[name], x) for name, x in pruned.mask.items())
        keys = [key for key in cast(dict[str, object], one["config"]) if "mask" in key]
        assert keys == ["fedcompress.mask-version"]


def test_regrowing_rounds_are_whole_and_bring_entries_back() -> None:
    schedule = Schedule(0.8, first=1, last=5, every=2, regrow=0.25)
    pruned = Pruned(fed(), schedule=schedule)
    strategy = Compressed(pruned, uplink="raw()")
    sizes, masks = [], []

    def note(_: int, replies: list[Message]) -> list[Message]:
        sizes.append(strategy.last_round.downlink[0].payload_bytes)
        masks.append(pruned.mask)
        return replies

    models = run(strategy, 6, spoil=note)
    whole = sum(len(array.data) for array in start().values())
    assert [size == whole for size in sizes] == [True, False, True, False, True, False]
    came_back = masks[3]["head"] & ~masks[2]["head"]
    assert int(came_back.sum()) == round(0.25 * int(masks[2]["head"].sum()))
    assert int(masks[5]["head"].sum()) == 48
    assert_masked(models[-1], pruned.mask)


@pytest.mark.parametrize("pattern", [across_layers, rows, n_of_m(2, 4)])
def test_patterns_hold_in_the_model(pattern: Callable[..., dict[str, torch.Tensor]]) -> None:
    pruned = Pruned(fed(), schedule=Schedule(0.5), pattern=pattern, importance=fisher)
    model = run(Compressed(pruned, uplink="quantize(8) | entropy()"), 3)[-1]
    assert_masked(model, pruned.mask)
    head = model["head"].numpy() != 0
    if pattern is rows:
        assert set(head.sum(1).tolist()) == {0, 24}
    elif pattern is not across_layers:
        assert (head.reshape(10, 6, 4).sum(-1) == 2).all()
        assert (np.moveaxis(model["conv"].numpy() != 0, 1, -1).sum(-1) == 2).all()


@pytest.mark.parametrize("downlink", [None, "error_feedback(quantize(6) | entropy())"])
def test_a_client_that_lost_the_mask_is_sent_it_anew(downlink: str | None) -> None:
    pruned = Pruned(fed(), schedule=Schedule(0.5))
    strategy = Compressed(pruned, uplink="raw()", downlink=downlink)
    arrays, statuses, sizes = start(), [], []
    with LocalGrid(lambda: client_app([compression_mod, packing_mod]), CLIENTS) as grid:
        for number in range(1, 6):
            if number == 3:
                forget(grid, [1])
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            sent = strategy.last_round.downlink
            assert [one.payload_bytes for one in sent] == [
                payload_bytes(message.content) for message in messages
            ]
            sizes.append(sorted(one.payload_bytes for one in sent))
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            clients = sorted(strategy.last_round.clients, key=lambda one: one.node_id)
            statuses.append([(one.status, one.reason) for one in clients])
    assert statuses[2][0][0] == "rejected"
    lacks = "the mask" if downlink is None else "the whole model"
    assert f"{lacks} is needed" in str(statuses[2][0][1])
    assert all(status == "ok" for status, _ in statuses[3])
    assert sizes[3][-1] > sizes[3][0]
    if downlink is None:
        assert sizes[3][0] == sizes[4][0] == sizes[4][-1]


def test_clients_that_all_lost_the_mask_are_sent_it_anew() -> None:
    """The round has no usable reply, so that nothing is aggregated; the next one is in order."""
    pruned = Pruned(fed(), schedule=Schedule(0.5))
    strategy = Compressed(pruned, uplink="raw()")
    arrays, counts = start(), []
    with LocalGrid(lambda: client_app([compression_mod, packing_mod]), CLIENTS) as grid:
        for number in range(1, 5):
            if number == 3:
                forget(grid, range(1, CLIENTS + 1))
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            after, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            arrays = arrays if after is None else after
            counts.append(sum(one.status == "ok" for one in strategy.last_round.clients))
    assert counts == [CLIENTS, CLIENTS, 0, CLIENTS]


def forget(grid: LocalGrid, node_ids: Iterable[int]) -> None:
    for node_id in node_ids:
        grid.load_client_states({node_id: records_to_bytes(RecordDict())})


def test_a_round_that_was_to_prune_and_failed_is_made_up_for() -> None:
    pruned = Pruned(fed(), schedule=Schedule(0.5, first=2, last=2))
    models = run(
        Compressed(pruned, uplink="raw()"),
        3,
        spoil=lambda number, replies: [] if number == 2 else replies,
    )
    assert np.count_nonzero(models[1]["head"].numpy()) == 240
    assert np.count_nonzero(models[2]["head"].numpy()) == 120


@settings(max_examples=8)
@given(cut=st.integers(1, 4), seed=st.integers(0, 3))
def test_a_resumed_run_goes_on_as_one_that_never_stopped(cut: int, seed: int) -> None:
    def strategy() -> Compressed:
        schedule = Schedule(0.8, first=1, last=5, every=2, regrow=0.2)
        pruned = Pruned(fed(), schedule=schedule, importance=taylor, pattern=across_layers)
        return Compressed(
            pruned,
            uplink=adaptive_uplink(pruned),
            downlink="error_feedback(quantize(6) | entropy())",
            seed=seed,
        )

    def rounds(first: int, last: int, one: Compressed, grid: LocalGrid, arrays: ArrayRecord):
        for number in range(first, last + 1):
            messages = list(one.configure_train(number, arrays, ConfigRecord(), grid))
            arrays, _ = one.aggregate_train(number, grid.send_and_receive(messages))
        return arrays

    with LocalGrid(lambda: client_app([compression_mod, packing_mod]), CLIENTS) as grid:
        expected = rounds(1, 6, strategy(), grid, start())
    first = strategy()
    with LocalGrid(lambda: client_app([compression_mod, packing_mod]), CLIENTS) as grid:
        middle = rounds(1, cut, first, grid, start())
        state, clients = strategy_state(first), grid.client_states()
    second = strategy()
    load_strategy_state(second, state)
    with LocalGrid(lambda: client_app([compression_mod, packing_mod]), CLIENTS) as grid:
        grid.load_client_states(clients)
        resumed = rounds(cut + 1, 6, second, grid, middle)
    for name, x in numbers(expected).items():
        np.testing.assert_array_equal(resumed[name].numpy(), x)


def test_steps_follow_importance() -> None:
    pruned = Pruned(fed(), schedule=Schedule(0.5, 2, 2), remembers=True)
    uplink = adaptive_uplink(pruned, step=0.5, strength=0.5, most=2.0)
    assert uplink(1, 1) == "quantize(step=0.5) | entropy()"
    strategy = Compressed(pruned, uplink=uplink)
    run(strategy, 3)
    assert all(client.status == "ok" for client in strategy.last_round.clients)
    pruned.load_state_dict(
        {
            **pruned.state_dict(),
            "mask": {},
            "updates": {
                "square/fine": np.full((10, 10), 4.0, np.float32),
                "square/idle": np.full((10, 10), 1.0, np.float32),
                "square/still": np.zeros(3, np.float32),
            },
        }
    )
    spec = str(parse(uplink(1, 9)))
    assert '"fine": quantize(step=0.35)' in spec  # the mean is 2, so by its root finer
    assert '"idle": quantize(step=0.71)' in spec
    assert "still" not in spec
    with pytest.raises(ConfigError, match="remembers=True"):
        adaptive_uplink(Pruned(fed(), schedule=Schedule(0.5)))


def test_a_damaged_mask_is_refused_and_does_not_stay() -> None:
    mask = {"w": torch.rand(20, 30) < 0.1}
    data = bytearray(encode_mask(mask))
    data[30] ^= 1
    kept = int(mask["w"].sum())
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    for settings_, says in (
        ({protocol.MASK_KEY: bytes(data), protocol.SHAPES_KEY: '{"w":[20,30]}'}, "checksum"),
        ({protocol.MASK_KEY: b"", protocol.SHAPES_KEY: '{"w":[20'}, "cannot be read"),
        ({protocol.MASK_KEY: b"", protocol.SHAPES_KEY: "[3]"}, "no shapes by name"),
        ({protocol.MASK_KEY: b"", protocol.SHAPES_KEY: '{"w":[-1]}'}, "no shapes by name"),
        ({protocol.MASK_KEY: b"", protocol.SHAPES_KEY: '{"w":[9000000000]}'}, "is for 9000000000"),
        ({}, "holds none"),
    ):
        config = ConfigRecord({protocol.MASK_VERSION_KEY: 1, **settings_})
        arrays = ArrayRecord({"w": Array(np.zeros(kept, np.float32))})
        content = RecordDict({"arrays": arrays, "config": config})
        message = Message(content, dst_node_id=1, message_type="train")
        reply = packing_mod(message, context, lambda m, c: pytest.fail("the app was called"))
        assert reply.has_error()
        assert says in str(reply.error.reason)
    assert decode_mask(encode_mask(mask), mask)["w"].equal(mask["w"])
    assert MASK_RECORD not in context.state or "cannot" not in str(context.state[MASK_RECORD])


def test_what_cannot_stand_inside() -> None:
    once = Pruned(fed(), schedule=Schedule(0.5))
    with pytest.raises(ConfigError, match="Pruned: Pruned inside sends clients other arrays"):
        Pruned(once, schedule=Schedule(0.5))
    with pytest.raises(ConfigError, match=r"write Compressed\(Pruned\(strategy"):
        Pruned(Compressed(fed(), uplink="raw()"), schedule=Schedule(0.5))
    with pytest.raises(ConfigError, match="'ndm' is not measured"):
        Pruned(fed(), schedule=Schedule(0.5), only="ndm>=2")


def test_a_distilled_model_is_pruned(toys, digits) -> None:
    distilled = Distilled(fed(), model=toys.mlp, proxy=digits["proxy"], steps=20)
    pruned = Pruned(distilled, schedule=Schedule(0.5))
    first = toys.seeded(toys.mlp, 0)
    clients = [toys.seeded(toys.mlp, seed) for seed in (1, 2, 3, 4)]
    arrays, metrics = toys.run_round(pruned, first, clients)
    assert metrics["distill-teachers"] == 4
    assert metrics["prune-sparsity"] == pytest.approx(0.5, abs=0.01)
    for name, kept in pruned.mask.items():
        assert not arrays[name].numpy()[~kept.numpy()].any()
