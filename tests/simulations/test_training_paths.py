"""Every program that trains gives what eager training of one client gives."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcompress import rng_for
from simulations.data import FederatedData, load_data
from simulations.models import build_model
from simulations.training import (
    CohortMember,
    LocalResult,
    TrainingOptions,
    choose_path,
    train_cohort,
    train_locally,
)
from simulations.training.cohort import can_stack
from simulations.training.dense import dense_layers

CPU = torch.device("cpu")
# Rows of each client: none, one, less than a batch, one batch, more, whole batches.
SIZES = (0, 45, 1, 16, 7, 64, 33)
OPTIONS = [
    TrainingOptions(batch_size=16, local_epochs=2),
    TrainingOptions(batch_size=16, momentum=0.9),
    TrainingOptions(batch_size=16, weight_decay=0.05),
    TrainingOptions(batch_size=16, proximal_mu=0.5, local_epochs=2),
    TrainingOptions(batch_size=16, momentum=0.5, weight_decay=0.01, proximal_mu=0.1),
    TrainingOptions("adam", 0.003, batch_size=16, weight_decay=0.01, local_epochs=2),
    TrainingOptions("adamw", 0.003, batch_size=16, weight_decay=0.1, proximal_mu=0.1),
]


class Functional(nn.Module):
    """Dense layers written with functions; 11 units and no bias fill no tile of a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 11, bias=False)
        self.second = nn.Linear(11, 9)
        self.third = nn.Linear(9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(torch.flatten(x, 1)))
        logits: Tensor = self.third(self.second(x).sigmoid())
        return logits


class Rectified(nn.Module):
    """As tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(F.relu(self.first(x.flatten(1))))
        return logits


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


DENSE: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: build_model("mlp", (1, 8, 8), 10, seed=0, hidden=(32, 20)),
    "linear": lambda: sequence(nn.Linear(64, 10)),
    "tanh": lambda: sequence(nn.Linear(64, 17), nn.Tanh(), nn.Linear(17, 10)),
    "functional": Functional,
    "rectified": Rectified,
}


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


def members(sizes: tuple[int, ...] = SIZES) -> list[CohortMember]:
    """Clients with rows and draws of their own, whatever stands beside them."""
    starts = np.cumsum([0, *SIZES])
    return [
        CohortMember(
            np.arange(starts[client], starts[client] + size), rng_for(0, round=1, client=client)
        )
        for client, size in enumerate(sizes)
    ]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.GELU(), nn.Flatten(), nn.Linear(36, 10)
    )


def model_of(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DENSE.get(name, convolutional)()


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def one_by_one(
    name: str, data: FederatedData, options: TrainingOptions, path: str
) -> tuple[Tensor, list[LocalResult]]:
    model = model_of(name)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    trained, results = [], []
    for member in members():
        model.load_state_dict(start)
        results.append(
            train_locally(model, data, member.rows, options, member.rng, path=path)  # type: ignore[arg-type]
        )
        trained.append(vector(model))
    return torch.stack(trained), results


def together(
    name: str, data: FederatedData, options: TrainingOptions, clients: list[CohortMember]
) -> tuple[Tensor, list[LocalResult]]:
    model = model_of(name)
    cohort = train_cohort(model, data, clients, options)
    trained = []
    for member in range(len(clients)):
        cohort.load(member)
        trained.append(vector(model))
    return torch.stack(trained), cohort.results


def assert_alike(
    a: tuple[Tensor, list[LocalResult]], b: tuple[Tensor, list[LocalResult]], start: Tensor
) -> None:
    moved = (b[0] - start).abs().max()
    assert (a[0] - b[0]).abs().max() <= 2e-5 * max(float(moved), 0.1)
    for one, other in zip(a[1], b[1], strict=True):
        assert (one.num_examples, one.steps) == (other.num_examples, other.steps)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.optimizer}-{o.momentum}")
@pytest.mark.parametrize("name", DENSE)
def test_compiled_training_is_eager_training(
    digits: FederatedData, name: str, options: TrainingOptions
) -> None:
    assert choose_path("auto", model_of(name), digits, CPU) == "compiled"
    eager = one_by_one(name, digits, options, "eager")
    compiled = one_by_one(name, digits, options, "compiled")
    assert_alike(compiled, eager, vector(model_of(name)))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.optimizer}-{o.momentum}")
@pytest.mark.parametrize("name", [*DENSE, "convolutional"])
def test_a_cohort_is_its_clients_one_by_one(
    digits: FederatedData, name: str, options: TrainingOptions
) -> None:
    eager = one_by_one(name, digits, options, "eager")
    assert_alike(together(name, digits, options, members()), eager, vector(model_of(name)))


@pytest.mark.parametrize("name", [*DENSE, "convolutional"])
def test_a_client_does_not_depend_on_its_cohort(digits: FederatedData, name: str) -> None:
    options = TrainingOptions(batch_size=16, momentum=0.9)
    whole, results = together(name, digits, options, members())
    for group in ([3], [1, 4], [0, 2, 5, 6]):
        clients = members()
        part, found = together(name, digits, options, [clients[i] for i in group])
        expected = whole[group], [results[i] for i in group]
        assert_alike((part, found), expected, vector(model_of(name)))
        again, _ = together(name, digits, options, [members()[i] for i in group])
        assert torch.equal(again, part)


def test_a_cohort_of_nobody_and_of_no_rows(digits: FederatedData) -> None:
    assert train_cohort(model_of("mlp"), digits, [], TrainingOptions()).results == []
    trained, results = together("mlp", digits, TrainingOptions(), members((0, 0)))
    assert torch.equal(trained, vector(model_of("mlp")).repeat(2, 1))
    assert results == [LocalResult(0.0, 0, 0)] * 2


def test_compiled_training_in_bits(digits: FederatedData) -> None:
    options = TrainingOptions(batch_size=16)
    first, _ = one_by_one("mlp", digits, options, "compiled")
    again, _ = one_by_one("mlp", digits, options, "compiled")
    assert torch.equal(first, again)


class Branching(Functional):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return super().forward(x) + x[:, :10]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.square, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.square(x.flatten(1)))
        logits: Tensor = self.head(F.relu(self.square(x)))
        return logits


def frozen() -> nn.Module:
    model = DENSE["tanh"]()
    next(model.parameters()).requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = DENSE["tanh"]()
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "build",
    [
        Branching,
        Twice,
        frozen,
        hooked,
        lambda: sequence(nn.Linear(64, 10), nn.ReLU()),
        lambda: sequence(nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, 10)),
        lambda: sequence(nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Linear(9, 10)),
        lambda: sequence(nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10)),
        lambda: nn.Sequential(nn.Linear(8, 10), nn.Flatten(), nn.Linear(80, 10)),
        lambda: sequence(nn.Linear(64, 10)).double(),
    ],
)
def test_what_is_no_stack_of_dense_layers_is_told_apart(
    digits: FederatedData, build: Callable[[], nn.Module]
) -> None:
    model = build()
    assert dense_layers(model) == ()
    assert choose_path("auto", model, digits, CPU) == "eager"


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_model("resnet", (1, 8, 8), 10, seed=0),
        lambda: build_model("lenet", (1, 8, 8), 10, seed=0),
        lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(64, 8), nn.Flatten()),
        lambda: sequence(nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, 10)),
        frozen,
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(
    digits: FederatedData, build: Callable[[], nn.Module]
) -> None:
    assert not can_stack(build(), digits, CPU)
    assert choose_path("cohort", build(), digits, CPU) == "eager"
    with pytest.raises(ValueError, match="cannot be trained as a cohort"):
        train_cohort(build(), digits, members(), TrainingOptions())


def test_a_cohort_on_a_gpu_needs_none_to_be_chosen(digits: FederatedData) -> None:
    gpu = torch.device("cuda")
    lenet = build_model("lenet", (1, 8, 8), 10, seed=0)
    resnet = build_model("resnet", (1, 8, 8), 10, seed=0)
    assert choose_path("auto", model_of("mlp"), digits, gpu) == "cohort"
    assert choose_path("cohort", lenet, digits, gpu) == "cohort"
    assert choose_path("compiled", lenet, digits, gpu) == "eager"
    assert choose_path("cohort", resnet, digits, gpu) == "eager"


def test_a_target_that_is_no_class_is_told(digits: FederatedData) -> None:
    data = replace(digits, train_y=np.where(np.arange(len(digits.train_y)) == 5, 10, 0))
    with pytest.raises(IndexError, match="target"):
        train_locally(model_of("mlp"), data, np.arange(9), TrainingOptions(), rng_for(0))


def test_a_model_that_was_moved_or_loaded_anew_is_trained_from_there(
    digits: FederatedData,
) -> None:
    model, other = model_of("mlp"), model_of("mlp")
    rows, options = np.arange(40), TrainingOptions()
    train_locally(model, digits, rows, options, rng_for(0))
    fresh = {key: value.clone() for key, value in other.state_dict().items()}
    model.load_state_dict(fresh, assign=True)
    train_locally(model, digits, rows, options, rng_for(0))
    train_locally(other, digits, rows, options, rng_for(0))
    assert torch.equal(vector(model), vector(other))
