"""Whom the distilled model follows: the average beside the clients, earlier rounds, one by one."""

import gc
import weakref
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from torch import Tensor, nn

from fedcompress.distill import average_logits, predict_logits
from simulations.checkpoint import load_strategy_state, strategy_state
from strategies import Distilled, distilled


@pytest.fixture
def clients(toys, digits) -> list[nn.Module]:
    """Make three clients, each trained on its own third of the classes."""
    made = []
    for classes in ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9)):
        client = toys.seeded(toys.mlp, 0)
        rows = torch.isin(digits["train_y"], torch.tensor(classes))
        toys.train(client, digits["train_x"][rows], digits["train_y"][rows], 40)
        made.append(client)
    return made


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect what each round's model was told to follow."""
    targets: list[Tensor] = []
    follow = distilled.distil

    def spy(student: nn.Module, inputs: Tensor, target: Tensor, **settings):
        targets.append(target)
        return follow(student, inputs, target, **settings)

    monkeypatch.setattr(distilled, "distil", spy)
    return targets


def said(models: list[nn.Module], rows: Tensor) -> Tensor:
    return average_logits((predict_logits(model, rows), 1.0) for model in models)


def values(arrays: ArrayRecord) -> list[np.ndarray]:
    return [array.numpy() for array in arrays.values()]


def equal(one: ArrayRecord, other: ArrayRecord) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(values(one), values(other), strict=True))


def test_the_anchor_is_the_average_as_a_teacher(toys, digits, clients, followed) -> None:
    average, _ = toys.run_round(FedAvg(), clients[0], clients)
    own = predict_logits(toys.load(toys.mlp, average), digits["proxy"])
    for anchor in (0.0, 0.25, 0.8):
        strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], anchor=anchor)
        toys.run_round(strategy, clients[0], clients)
        expected = (1 - anchor) * said(clients, digits["proxy"]) + anchor * own
        torch.testing.assert_close(followed[-1], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(strategy.last_ensemble, followed[-1])


def test_memory_halves_what_a_round_counts_with_each_that_follows(
    toys, digits, clients, followed
) -> None:
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], memory=0.5, steps=5)
    rounds = [[clients[0]] * 2, [clients[1]] * 2, [clients[2]] * 2]
    for number, members in enumerate(rounds, start=1):
        toys.run_round(strategy, clients[0], members, server_round=number)
    a, b, c = (said(members, digits["proxy"]) for members in rounds)
    for got, expected in zip(followed, (a, a / 2 + b / 2, a / 4 + b / 4 + c / 2), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"memory": 0.5}, {"remember_from": 1}, {}])
def test_a_resumed_run_remembers_what_it_must(toys, digits, clients, settings) -> None:
    def new() -> Distilled:
        inner = FedAvgM(server_momentum=0.9)
        return Distilled(inner, model=toys.mlp, proxy=digits["proxy"], steps=10, **settings)

    first = new()
    model, _ = toys.run_round(first, clients[0], clients)
    resumed = new()
    load_strategy_state(resumed, strategy_state(first))
    if "remember_from" in settings:
        assert torch.equal(resumed.last_ensemble, first.last_ensemble)
    if not settings:
        assert strategy_state(first)["own"] == {}
    one, _ = toys.run_round(first, model, clients[:2], server_round=2)
    two, _ = toys.run_round(resumed, model, clients[:2], server_round=2)
    assert equal(one, two)


def test_teachers_are_not_asked_before_it_is_wanted(toys, digits, clients) -> None:
    strategy = Distilled(
        FedAvg(), model=toys.mlp, proxy=digits["proxy"], first=9, remember_from=2, steps=5
    )
    for number, is_known in ((1, False), (2, True), (3, True)):
        toys.run_round(strategy, clients[0], clients, server_round=number)
        assert (strategy.last_ensemble is not None) == is_known


def test_what_is_followed_names_all_classes_alike_often(toys, digits, clients, followed) -> None:
    biased = [clients[0], clients[0], clients[1]]
    for align in (0.0, 0.5, 1.0):
        settings = {"align": align, "memory": 0.5, "steps": 5}
        strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], **settings)
        for number in (1, 2):
            toys.run_round(strategy, clients[0], biased, server_round=number)
    plain, half, whole = followed[1::2]
    shares = [target.softmax(-1).mean(0) for target in (plain, half, whole)]
    assert shares[0].max() > shares[1].max() > shares[2].max()
    # the memory is of what was said, so that a correction is not made twice
    torch.testing.assert_close(plain, said(biased, digits["proxy"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole, plain - shares[0].log(), atol=1e-3, rtol=1e-3)


def test_rounds_before_the_first_only_average(toys, digits, clients) -> None:
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], first=3, steps=20)
    average, _ = toys.run_round(FedAvg(), clients[0], clients)
    for number in (1, 2):
        arrays, metrics = toys.run_round(strategy, clients[0], clients, server_round=number)
        for got, expected in zip(values(arrays), values(average), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6)
        assert "distill-steps" not in metrics
        assert strategy.last_result is None
    _, metrics = toys.run_round(strategy, clients[0], clients, server_round=3)
    assert metrics["distill-teachers"] == 3


@pytest.mark.parametrize("weighting", ["uniform", "examples", "confidence", "variance"])
@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_every_ensemble_can_be_followed(toys, digits, clients, weighting, combine) -> None:
    strategy = Distilled(
        FedAvg(),
        model=toys.mlp,
        proxy=digits["proxy"],
        weighting=weighting,
        combine=combine,
        anchor=0.2,
        hard_label_weight=0.3,
        steps=40,
    )
    arrays, metrics = toys.run_round(strategy, clients[0], clients, examples=[5, 50, 20])
    assert metrics["distill-teachers"] == 3
    assert all(np.isfinite(array).all() for array in values(arrays))
    assert strategy.last_result.best_step > 0  # the loss fell; with labels, divergence may rise


@pytest.mark.parametrize("inner", [FedAvg, lambda: FedAdam(eta=0.01)])
def test_replies_that_come_one_at_a_time_give_the_same_model(
    toys, nodes, digits, clients, inner
) -> None:
    """Also to the bit; and no more than one reply's arrays are alive when the next one comes."""

    def new() -> Distilled:
        return Distilled(
            inner(), model=toys.mlp, proxy=digits["proxy"], steps=20, one_at_a_time=True
        )

    grid = cast(Grid, nodes(6))
    alive: list[int] = []

    def asked(strategy: Distilled) -> list[Message]:
        start = toys.arrays_of(clients[0])
        messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)

    def replies(messages: list[Message], is_lazy: bool) -> Iterator[Message]:
        seen: list[weakref.ref[Array]] = []
        for number, message in enumerate(messages):
            if is_lazy:
                gc.collect()
                alive.append(sum(ref() is not None for ref in seen))
            arrays = toys.arrays_of(clients[number % 3])
            seen.append(weakref.ref(arrays["0.weight"]))
            metrics = MetricRecord({"num-examples": 10 + number, "train_loss": 1.0})
            content = RecordDict({"arrays": arrays, "metrics": metrics})
            del arrays
            reply = Message(content, reply_to=message)
            del content
            yield reply
            del reply

    lazy, eager = new(), new()
    one, one_metrics = lazy.aggregate_train(1, replies(asked(lazy), is_lazy=True))
    two, two_metrics = eager.aggregate_train(1, list(replies(asked(eager), is_lazy=False)))
    assert equal(one, two)
    assert dict(one_metrics) == dict(two_metrics)
    assert alive == [0] * 6


def test_the_streamed_mean_is_the_strategys_own(toys, digits, clients) -> None:
    """With errors and clients that cannot be used among them, and their metrics averaged."""
    strategy = Distilled(
        FedAvg(),
        model=toys.mlp,
        proxy=digits["proxy"],
        steps=1,
        learning_rate=1e-30,
        one_at_a_time=True,
    )
    spoilt = toys.arrays_of(clients[0])
    spoilt["0.bias"] = Array(np.full(32, np.nan, np.float32))
    arrays, metrics = toys.run_round(
        strategy, clients[0], [*clients, spoilt], examples=[1, 7, 30, 5], failing=2
    )
    expected, bare = toys.run_round(FedAvg(), clients[0], clients, examples=[1, 7, 30])
    for got, wanted in zip(values(arrays), values(expected), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert all(metrics[name] == pytest.approx(value) for name, value in bare.items())


def test_clients_that_all_weigh_nothing_keep_the_model(toys, digits, clients, caplog) -> None:
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], one_at_a_time=True)
    assert toys.run_round(strategy, clients[0], clients, examples=[0, 0, 0])[0] is None
    assert "all clients weigh 0" in caplog.text
