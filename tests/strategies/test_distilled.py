"""Distilled: what it distils, what it leaves alone, what it refuses."""

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedXgbBagging,
    Krum,
)
from torch import nn

from fedcompress.distill import average_logits, kl_divergence, predict_logits
from fedcompress.errors import ConfigError
from fedcompress.server import Compressed
from strategies import Distilled


@pytest.fixture
def round_of_skewed_clients(toys, digits):
    """Make a start and three clients, each trained on its own third of the classes."""
    start = toys.seeded(toys.mlp, 0)
    clients = []
    for classes in ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9)):
        client = toys.mlp()
        client.load_state_dict(start.state_dict())
        rows = torch.isin(digits["train_y"], torch.tensor(classes))
        toys.train(client, digits["train_x"][rows], digits["train_y"][rows], 40)
        clients.append(client)
    return start, clients


def arrays_equal(one: ArrayRecord, other: ArrayRecord) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(one[name].numpy(), other[name].numpy()) for name in one
    )


def test_the_start_is_the_average_and_the_teachers_are_the_clients(
    toys, digits, round_of_skewed_clients
):
    start, clients = round_of_skewed_clients
    average, _ = toys.run_round(FedAvg(), start, clients)
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], holdout_fraction=0.0)
    arrays, metrics = toys.run_round(strategy, start, clients)
    target = average_logits((predict_logits(c, digits["proxy"]), 1.0) for c in clients)

    def divergence(record: ArrayRecord) -> float:
        logits = predict_logits(toys.load(toys.mlp, record), digits["proxy"])
        return float(kl_divergence(logits, target, 1.0))

    assert divergence(average) == pytest.approx(metrics["distill-kl-before"], rel=1e-4)
    assert divergence(arrays) == pytest.approx(metrics["distill-kl-after"], rel=1e-4)
    assert divergence(arrays) < 0.5 * divergence(average)
    assert metrics["distill-teachers"] == 3
    assert 1 <= metrics["distill-steps"] <= 200
    assert metrics["train_loss"] == pytest.approx(1.0)
    assert strategy.last_result.held_out_kl_after == metrics["distill-kl-after"]


def test_distilling_skewed_clients_beats_averaging(toys, digits):
    """Six rounds of eight clients with two or three classes each, both from one start."""
    start = toys.arrays_of(toys.seeded(toys.mlp, 0))
    distilled = Distilled(
        FedAvg(), model=toys.mlp, proxy=digits["proxy"], steps=100, learning_rate=3e-3
    )
    scores = {"average": [], "distilled": []}
    for label, strategy in {"average": FedAvg(), "distilled": distilled}.items():
        arrays = start
        for server_round in range(1, 7):
            clients = []
            for number in range(8):
                client = toys.load(toys.mlp, arrays)
                classes = torch.tensor([number, (number + 1) % 10, (3 * number) % 10])
                rows = torch.isin(digits["train_y"], classes)
                x, y = digits["train_x"][rows], digits["train_y"][rows]
                toys.train(client, x, y, 30, rate=0.5)
                clients.append(client)
            arrays, _ = toys.run_round(strategy, arrays, clients, server_round=server_round)
            model = toys.load(toys.mlp, arrays)
            scores[label].append(toys.accuracy(model, digits["test_x"], digits["test_y"]))
    assert np.mean(scores["distilled"][-3:]) > np.mean(scores["average"][-3:]) + 0.02


def test_one_teacher_that_is_the_start_changes_nothing(toys, digits):
    start = toys.seeded(toys.mlp, 0)
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"])
    arrays, metrics = toys.run_round(strategy, start, [start, start])
    for name, value in start.state_dict().items():
        np.testing.assert_allclose(arrays[name].numpy(), value.numpy(), rtol=0, atol=1e-7)
    assert metrics["distill-kl-before"] == pytest.approx(0, abs=1e-6)


def test_statistics_and_counters_stay_those_of_the_average(toys, digits):
    start = toys.seeded(toys.normalised_mlp, 0)
    clients = []
    for steps in (3, 8):
        client = toys.load(toys.normalised_mlp, toys.arrays_of(start))
        toys.train(client, digits["train_x"], digits["train_y"], steps)
        clients.append(client)
    average, _ = toys.run_round(FedAvg(), start, clients)
    strategy = Distilled(FedAvg(), model=toys.normalised_mlp, proxy=digits["proxy"])
    arrays, metrics = toys.run_round(strategy, start, clients)
    assert metrics["distill-steps"] > 0
    sent = toys.arrays_of(start)
    assert [(n, a.dtype, a.shape) for n, a in arrays.items()] == [
        (n, a.dtype, a.shape) for n, a in sent.items()
    ]
    for name in ("1.running_mean", "1.running_var"):
        assert np.array_equal(arrays[name].numpy(), average[name].numpy())
    assert average["1.num_batches_tracked"].numpy() == 5.5  # Flower's mean of counters
    assert arrays["1.num_batches_tracked"].numpy() == 6
    assert not np.array_equal(arrays["1.weight"].numpy(), average["1.weight"].numpy())


def test_weighting_by_examples(toys, digits, round_of_skewed_clients):
    start, clients = round_of_skewed_clients
    seen = {}
    for weighting in ("uniform", "examples"):
        strategy = Distilled(
            FedAvg(), model=toys.mlp, proxy=digits["proxy"], weighting=weighting, steps=1
        )
        # weights so far apart that the first teacher is the ensemble, and the average
        _, metrics = toys.run_round(strategy, start, clients, examples=[1e6, 1e-3, 1e-3])
        seen[weighting] = metrics["distill-kl-before"]
    assert seen["examples"] == pytest.approx(0, abs=1e-5)
    assert seen["uniform"] > 0.1


def test_the_same_seed_gives_the_same_model(toys, digits, round_of_skewed_clients):
    start, clients = round_of_skewed_clients

    def run(seed: int, server_round: int = 1) -> ArrayRecord:
        strategy = Distilled(
            FedAvg(), model=toys.mlp, proxy=digits["proxy"], seed=seed, steps=30, batch_size=32
        )
        return toys.run_round(strategy, start, clients, server_round=server_round)[0]

    first = run(0)
    torch.rand(5)
    assert arrays_equal(first, run(0))
    assert not arrays_equal(first, run(1))
    assert not arrays_equal(first, run(0, server_round=2))


def spoil(client: nn.Module, toys, fault: str) -> ArrayRecord:
    record = toys.arrays_of(client)
    weight = record["0.weight"].numpy()
    if fault == "nan":
        weight = weight.copy()
        weight[0, 0] = np.nan
        record["0.weight"] = Array(weight)
    elif fault == "classes":
        record["2.weight"] = Array(np.zeros((7, 32), np.float32))
    elif fault == "names":
        record["extra"] = Array(weight)
    elif fault == "payload":
        record["0.weight"] = Array("float32", weight.shape, "fedcompress.v1", b"abc")
    elif fault == "truncated":
        good = record["0.weight"]
        record["0.weight"] = Array(good.dtype, good.shape, good.stype, good.data[:-8])
    elif fault == "shape":
        good = Array(np.zeros((3, 3), np.float32))
        record["0.weight"] = Array(good.dtype, weight.shape, good.stype, good.data)
    return record


@pytest.mark.parametrize("fault", ["nan", "classes", "names", "payload", "truncated", "shape"])
def test_an_unusable_client_is_logged_and_left_out(
    toys, digits, round_of_skewed_clients, fault: str, caplog
):
    start, clients = round_of_skewed_clients
    bad = spoil(clients[2], toys, fault)
    settings = {"model": toys.mlp, "proxy": digits["proxy"], "steps": 30}
    with caplog.at_level(logging.WARNING):
        arrays, metrics = toys.run_round(
            Distilled(FedAvg(), **settings), start, [*clients[:2], bad], failing=1
        )
    assert "node 3 is left out" in caplog.text
    expected, _ = toys.run_round(Distilled(FedAvg(), **settings), start, clients[:2])
    assert arrays_equal(arrays, expected)
    assert metrics["distill-teachers"] == 2


@pytest.mark.parametrize(
    ("weighting", "examples"),
    [("uniform", float("nan")), ("uniform", -3), ("examples", 0), ("examples", float("inf"))],
)
def test_a_client_that_miscounts_its_examples_is_left_out(
    toys, digits, weighting: str, examples: float, caplog
):
    start = toys.seeded(toys.mlp, 0)
    strategy = Distilled(
        FedAvg(), model=toys.mlp, proxy=digits["proxy"], weighting=weighting, steps=1
    )
    arrays, metrics = toys.run_round(strategy, start, [start] * 3, examples=[5, 5, examples])
    assert "num-examples" in caplog.text
    assert metrics["distill-teachers"] == 2
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())


def test_a_round_without_a_usable_reply_keeps_the_model(toys, digits, caplog):
    start = toys.seeded(toys.mlp, 0)
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"])
    with caplog.at_level(logging.WARNING):
        assert toys.run_round(strategy, start, [], failing=2) == (None, None)
        bad = spoil(start, toys, "nan")
        assert toys.run_round(strategy, start, [bad, bad]) == (None, None)
    assert caplog.text.count("the model is kept") == 2
    arrays, _ = toys.run_round(strategy, start, [start, start])
    assert arrays is not None


def test_teachers_whose_logits_overflow_do_not_teach(toys, digits, caplog):
    start = toys.seeded(toys.mlp, 0)
    wild = toys.seeded(toys.mlp, 1)
    for parameter in wild.parameters():
        nn.init.constant_(parameter, 3e38)
    strategy = Distilled(
        FedAvg(), model=toys.mlp, proxy=digits["proxy"], weighting="examples", steps=10
    )
    with caplog.at_level(logging.WARNING):
        arrays, metrics = toys.run_round(strategy, start, [start, wild], examples=[1e30, 1e-30])
    assert "node 2 teaches nothing" in caplog.text
    assert metrics["distill-teachers"] == 1
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())


def test_an_average_whose_logits_overflow_is_not_distilled(toys, digits, caplog):
    start, wild = toys.seeded(toys.mlp, 0), toys.seeded(toys.mlp, 1)
    for parameter in wild.parameters():
        nn.init.constant_(parameter, 3e38)
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"], steps=10)
    with caplog.at_level(logging.WARNING):
        arrays, metrics = toys.run_round(strategy, start, [start, wild])
    expected, _ = toys.run_round(FedAvg(), start, [start, wild])
    assert "not distilled: student" in caplog.text
    assert arrays_equal(arrays, expected)
    assert "distill-steps" not in metrics
    assert strategy.last_result is None


def test_momentum_on_the_server_starts_from_the_distilled_model(toys, digits):
    """With clients that send back what they got, momentum must find nothing to carry on."""
    inner = FedAvgM(server_momentum=0.9)
    strategy = Distilled(inner, model=toys.mlp, proxy=digits["proxy"], steps=30)
    model = toys.arrays_of(toys.seeded(toys.mlp, 0))
    others = [toys.seeded(toys.mlp, seed) for seed in (1, 2)]
    model, _ = toys.run_round(strategy, model, others)
    toys.run_round(strategy, model, [model, model], server_round=2)
    first, second = inner.momentum_vector, None
    inner.momentum_vector = None
    toys.run_round(strategy, model, [model, model], server_round=3)
    second = inner.momentum_vector
    assert any(np.abs(values).max() > 1e-3 for values in first)
    assert all(np.abs(values).max() < 1e-6 for values in second)


def test_the_wrong_order_is_refused(toys, digits):
    settings = {"model": toys.mlp, "proxy": digits["proxy"]}
    wrong = Compressed(FedAvg(), uplink="raw()")
    with pytest.raises(ConfigError, match=r"write Compressed\(Distilled\(strategy"):
        Distilled(wrong, **settings)
    with pytest.raises(ConfigError, match="Compressed stands inside"):
        Distilled(DifferentialPrivacyServerSideFixedClipping(wrong, 1.0, 1.0, 2), **settings)
    Compressed(Distilled(FedAvg(), **settings), uplink="raw()")


def test_models_of_another_layout_cannot_teach(toys, digits):
    class Packing(FedAvg):
        sends_own_arrays = True

    with pytest.raises(ConfigError, match=r"Packing inside sends clients other arrays"):
        Distilled(Packing(), model=toys.mlp, proxy=digits["proxy"])


def test_a_privacy_guarantee_that_would_not_hold_is_warned_of(toys, digits, caplog):
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2)
    with caplog.at_level(logging.WARNING):
        Distilled(private, model=toys.mlp, proxy=digits["proxy"])
    assert "privacy guarantee" in caplog.text


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"strategy": "fedavg"}, "strategy must be .* got str"),
        ({"strategy": FedXgbBagging()}, "FedXgbBagging combines trees"),
        ({"proxy": np.zeros((9, 64))}, "proxy must be a Tensor .* got ndarray"),
        ({"proxy": torch.zeros(0, 64)}, r"at least 2 rows, got shape \(0, 64\)"),
        ({"proxy": torch.zeros(9, 63)}, r"rows of shape \(63,\) .* do not fit the model"),
        ({"proxy": torch.zeros(9, 64, dtype=torch.int64)}, r"torch.int64 do not fit the model"),
        ({"proxy": torch.full((9, 64), torch.nan)}, "proxy holds NaN"),
        ({"model": lambda: nn.Flatten(0)}, r"must give logits of shape"),
        ({"temperature": 0.0}, "Distilled: temperature must be .* got 0.0"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"steps": -1}, "Distilled: steps"),
        ({"patience": 2.5}, "Distilled: patience"),
        ({"weighting": "data"}, "weighting must be 'uniform', 'examples', .* got 'data'"),
        ({"combine": "mean"}, "combine must be 'logits' or 'probabilities', got 'mean'"),
        ({"anchor": 1}, r"anchor must be in \[0, 1\), got 1"),
        ({"memory": -0.5}, r"memory must be in \[0, 1\), got -0.5"),
        ({"align": 1.5}, r"align must be in \[0, 1\], got 1.5"),
        ({"first": 0}, "first must be a whole number >= 1, got 0"),
        ({"hard_label_weight": 2}, r"hard_label_weight must be in \[0, 1\], got 2"),
        ({"strategy": Krum(), "one_at_a_time": True}, "one_at_a_time .* got Krum"),
    ],
)
def test_construction_that_cannot_work(toys, changes: dict[str, object], fault: str):
    settings = {"strategy": FedAvg(), "model": toys.mlp, "proxy": torch.zeros(9, 64), **changes}
    with pytest.raises(ConfigError, match=fault):
        Distilled(**settings)


def test_a_global_model_that_the_factory_does_not_make(toys, digits):
    strategy = Distilled(FedAvg(), model=toys.mlp, proxy=digits["proxy"])
    other = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 7))
    with pytest.raises(ConfigError, match=r"'2.weight' has shape \(7, 32\).*\(10, 32\)"):
        toys.run_round(strategy, other, [other, other])
    strategy = Distilled(FedAvg(), model=toys.normalised_mlp, proxy=digits["proxy"])
    plain = toys.mlp()
    with pytest.raises(ConfigError, match=r"lacks the array '1\.weight'.*factory"):
        toys.run_round(strategy, plain, [])


def test_the_rest_is_the_strategy_inside(toys, digits):
    inner = FedAdam(eta=0.1)
    strategy = Distilled(inner, model=toys.mlp, proxy=digits["proxy"])
    assert strategy.strategy is inner
    strategy.summary()
    assert strategy.aggregate_evaluate(1, []) is None
