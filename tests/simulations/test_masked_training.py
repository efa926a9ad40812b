"""Training under a mask, with a masked loss, and with a learning rate that falls."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedcompress import rng_for
from fedcompress.errors import ConfigError, LayoutError
from simulations.cell import TrainingSettings
from simulations.data import FederatedData, load_data
from simulations.models import build_model, drop_statistics
from simulations.training import LocalResult, TrainingOptions, train_locally
from simulations.training.cohort import can_stack

OPTIONS = [
    TrainingOptions(batch_size=16),
    TrainingOptions(batch_size=16, momentum=0.9, weight_decay=0.01, proximal_mu=0.1),
    TrainingOptions("adam", 0.003, batch_size=16, weight_decay=0.01),
    TrainingOptions("adamw", 0.003, batch_size=16, weight_decay=0.1),
]
MODELS: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name: build_model(name, (1, 8, 8), 10, seed=0, hidden=(16,), width=0.25)
    for name in ("mlp", "lenet", "resnet", "conv4")
}


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data("digits")


def trained(
    model: nn.Module,
    data: FederatedData,
    options: TrainingOptions,
    rows: np.ndarray,
    **more: object,
) -> LocalResult:
    return train_locally(model, data, rows, options, rng_for(1, purpose="test"), **more)  # type: ignore[arg-type]


def some(model: nn.Module, keep: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(p.shape, generator=generator) < keep
        for name, p in model.named_parameters()
        if p.ndim >= 2
    }


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_there_stays_exactly_zero(
    digits: FederatedData, name: str, options: TrainingOptions
) -> None:
    model = MODELS[name]()
    mask = some(model, 0.3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained(model, digits, options, np.arange(100), mask=mask)
    for n, p in model.named_parameters():
        if n in mask:
            assert not p[~mask[n]].any()
            assert not torch.equal(p[mask[n]], before[n][mask[n]])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_mask_of_everything_is_none(digits: FederatedData, options: TrainingOptions) -> None:
    masked, plain = MODELS["lenet"](), MODELS["lenet"]()
    trained(masked, digits, options, np.arange(100), mask=some(masked, 2.0))
    trained(plain, digits, options, np.arange(100), path="eager")
    for one, other in zip(masked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_mask_of_another_model_is_refused(digits: FederatedData) -> None:
    model = MODELS["mlp"]()
    for mask in ({"layers.1.weight": torch.ones(3)}, {"weight": torch.ones(3)}):
        with pytest.raises(LayoutError, match="give the mask of this model"):
            trained(model, digits, OPTIONS[0], np.arange(9), mask=mask)


def test_a_masked_loss_leaves_classes_alone_that_the_client_has_not(
    digits: FederatedData,
) -> None:
    rows = np.flatnonzero(np.isin(digits.train_y, (2, 7)))[:50]
    options = replace(OPTIONS[0], mask_loss=True)
    model = MODELS["mlp"]()
    head = list(model.parameters())[-2:]
    before = [p.detach().clone() for p in head]
    result = trained(model, digits, options, rows)
    absent = [c for c in range(10) if c not in (2, 7)]
    for p, was in zip(head, before, strict=True):
        assert torch.equal(p[absent], was[absent])
        assert not torch.equal(p[[2, 7]], was[[2, 7]])
    # The loss of one step, as HeteroFL defines it.
    model, whole = MODELS["mlp"](), replace(options, batch_size=50)
    logits = model(digits.inputs(digits.train_x[rows])).detach()
    logits[:, absent] = 0.0
    wanted = float(F.cross_entropy(logits, torch.from_numpy(digits.train_y[rows])))
    assert trained(model, digits, whole, rows).loss == pytest.approx(wanted, rel=1e-5)
    assert result.num_examples == 50


def test_a_client_with_all_classes_has_nothing_to_mask(digits: FederatedData) -> None:
    one, other = MODELS["lenet"](), MODELS["lenet"]()
    rows = np.arange(200)
    trained(one, digits, replace(OPTIONS[0], mask_loss=True), rows)
    trained(other, digits, OPTIONS[0], rows, path="eager")
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["resnet", "conv4"])
@pytest.mark.parametrize("count", [1, 16, 17])
def test_without_statistics_batches_of_any_size_train(
    digits: FederatedData, name: str, count: int
) -> None:
    model = MODELS[name]()
    drop_statistics(model)
    assert not can_stack(model, digits, torch.device("cpu"))
    assert np.isfinite(trained(model, digits, OPTIONS[0], np.arange(count)).loss)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_learning_rate_falls_after_its_milestones() -> None:
    settings = TrainingSettings.model_validate(
        {"learning_rate": 0.1, "milestones": "2, 4", "decay": 0.5}
    )
    rates = [settings.options(number).learning_rate for number in range(1, 7)]
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    assert settings.options(5, proximal_mu=0.3).proximal_mu == 0.3
    assert TrainingSettings().options(1000) == TrainingOptions()


def test_a_decay_that_cannot_work_is_refused() -> None:
    with pytest.raises((ConfigError, ValueError), match="greater than 0"):
        TrainingSettings(decay=0)
