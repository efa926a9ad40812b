"""Training: bit-deterministic, equal to torch's own optimisers, and safe at the edges."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedcompress import rng_for
from fedcompress.errors import ConfigError
from simulations.data import FederatedData, load_data
from simulations.models import build_model, load_arrays, model_arrays
from simulations.partition import partition_data
from simulations.training import TrainingOptions, evaluate, train_locally

ROWS = np.arange(70, dtype=np.int32)


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


@pytest.fixture(scope="module")
def windows(digits: FederatedData) -> FederatedData:
    """Windows of six characters, the next of which is the first."""
    tokens = np.random.default_rng(0).integers(0, 5, (200, 6), dtype=np.uint8)
    return replace(
        digits,
        task="characters",
        num_classes=5,
        train_x=tokens,
        train_y=tokens[:, 0].astype(np.int64),
    )


def build(data: FederatedData, name: str = "mlp") -> torch.nn.Module:
    return build_model(name, data.sample_shape, data.num_classes, seed=0, hidden=(32,))


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "lstm"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_same_key_gives_the_same_bits(
    digits: FederatedData, windows: FederatedData, name: str, optimizer: str
) -> None:
    data = windows if name == "lstm" else digits
    options = TrainingOptions(optimizer=optimizer, local_epochs=2)  # type: ignore[arg-type]

    def train(client: int) -> dict[str, np.ndarray]:
        model = build(data, name)
        rng = rng_for(0, round=1, client=client, purpose="shuffle")
        result = train_locally(model, data, ROWS, options, rng)
        assert (result.num_examples, result.steps) == (70, 6)
        return {key: array.copy() for key, array in model_arrays(model).items()}

    first, again, other = train(1), train(1), train(2)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (TrainingOptions(), lambda p: torch.optim.SGD(p, 0.05)),
        (
            TrainingOptions(momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
        ),
        (
            TrainingOptions("adam", 0.01, weight_decay=0.01),
            lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
        ),
        (
            TrainingOptions("adamw", 0.01, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        ),
    ],
)
def test_steps_are_those_of_torch(
    digits: FederatedData, options: TrainingOptions, reference: object
) -> None:
    model, plain = build(digits), build(digits)
    train_locally(model, digits, ROWS, replace(options, local_epochs=2), rng_for(3))
    optimizer = reference(plain.parameters())  # type: ignore[operator]
    rng = rng_for(3)
    for _ in range(2):
        order = rng.permutation(ROWS)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            optimizer.zero_grad()
            target = torch.from_numpy(digits.train_y[rows])
            F.cross_entropy(plain(digits.inputs(digits.train_x[rows])), target).backward()
            optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.grad is None


def test_a_large_pull_keeps_the_model_near_the_global_one(digits: FederatedData) -> None:
    def moved(mu: float) -> float:
        model = build(digits)
        before = {key: array.copy() for key, array in model_arrays(model).items()}
        train_locally(model, digits, ROWS, TrainingOptions(proximal_mu=mu), rng_for(0))
        return sum(float(np.abs(a - before[k]).sum()) for k, a in model_arrays(model).items())

    assert moved(10.0) < moved(1.0) < moved(0.0)


def test_the_proximal_gradient(digits: FederatedData) -> None:
    options = TrainingOptions(batch_size=35, proximal_mu=2.0)
    model, plain = build(digits), build(digits)
    train_locally(model, digits, ROWS, options, rng_for(0))
    start = [p.detach().clone() for p in plain.parameters()]
    order = rng_for(0).permutation(ROWS)
    for rows in (order[:35], order[35:]):
        target = torch.from_numpy(digits.train_y[rows])
        loss = F.cross_entropy(plain(digits.inputs(digits.train_x[rows])), target)
        pull = sum(((p - s) ** 2).sum() for p, s in zip(plain.parameters(), start, strict=True))
        gradients = torch.autograd.grad(loss + pull, list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.05)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1)])
def test_a_batch_of_one_passes_normalisation(
    digits: FederatedData, rows: int, shape: tuple[int, int]
) -> None:
    data = replace(digits, train_x=digits.train_x[:, :, : shape[0], : shape[1]])
    model = build(data, "resnet")
    result = train_locally(model, data, np.arange(rows), TrainingOptions(), rng_for(0))
    assert result.steps == (2 if rows == 33 else 1)
    assert all(np.isfinite(array).all() for array in model_arrays(model).values())
    assert all(module.training for module in model.modules())


def test_a_client_without_samples_changes_nothing(digits: FederatedData) -> None:
    model = build(digits)
    before = {key: array.copy() for key, array in model_arrays(model).items()}
    result = train_locally(model, digits, ROWS[:0], TrainingOptions(), rng_for(0))
    assert (result.loss, result.num_examples, result.steps) == (0.0, 0, 0)
    assert all(np.array_equal(before[key], array) for key, array in model_arrays(model).items())


def test_training_learns(digits: FederatedData) -> None:
    model = build(digits)
    before = evaluate(model, digits.test_x, digits.test_y, digits)
    options = TrainingOptions(learning_rate=0.1, local_epochs=20)
    result = train_locally(model, digits, np.arange(len(digits.train_y)), options, rng_for(0))
    after = evaluate(model, digits.test_x, digits.test_y, digits)
    assert before.accuracy < 0.3
    assert after.accuracy > 0.9
    assert result.loss < before.loss


@pytest.mark.parametrize("batch_size", [1, 100, 1024])
def test_evaluation_does_not_depend_on_batches(digits: FederatedData, batch_size: int) -> None:
    model = build(digits, "resnet").train()
    before = {key: array.copy() for key, array in model_arrays(model).items()}
    result = evaluate(model, digits.test_x, digits.test_y, digits, batch_size)
    whole = evaluate(model, digits.test_x, digits.test_y, digits, 10_000)
    assert result.accuracy == whole.accuracy
    assert result.loss == pytest.approx(whole.loss, rel=1e-5)
    assert result.num_examples == len(digits.test_y)
    assert model.training
    assert all(np.array_equal(before[key], array) for key, array in model_arrays(model).items())


def test_evaluation_without_samples_is_no_number(digits: FederatedData) -> None:
    result = evaluate(build(digits), digits.test_x[:0], digits.test_y[:0], digits)
    assert result.num_examples == 0
    assert np.isnan(result.accuracy)


def test_evaluated_weights_can_be_trained(digits: FederatedData) -> None:
    model = build(digits)
    evaluate(model, digits.test_x, digits.test_y, digits)
    load_arrays(model, model_arrays(build(digits)))
    assert train_locally(model, digits, ROWS, TrainingOptions(), rng_for(0)).steps == 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "sdg"}, "optimizer must be one of sgd, adam, adamw, got 'sdg'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum must be 0 with optimizer adam"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"local_epochs": 0}, "local_epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"proximal_mu": float("nan")}, "proximal_mu must be at least 0, got nan"),
    ],
)
def test_options_out_of_range_are_told(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TrainingOptions(**settings)  # type: ignore[arg-type]


def test_next_characters_of_a_role(data_dir: Path) -> None:
    data = load_data("shakespeare", str(data_dir))
    partition = partition_data(data, "natural", 0, seed=0)
    model = build(data, "lstm")
    rows = partition.rows(5)[:160]
    options = TrainingOptions(learning_rate=0.5, local_epochs=3)
    first = evaluate(model, data.train_x[rows], data.train_y[rows], data)
    train_locally(model, data, rows, options, rng_for(0))
    assert evaluate(model, data.train_x[rows], data.train_y[rows], data).loss < first.loss
