"""Proxy data out of nothing: what they match, what they leave alone, what they cannot do."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedcompress.distill import (
    augmented,
    generated_inputs,
    matched_inputs,
    noise_inputs,
    predict_logits,
)
from fedcompress.errors import ConfigError
from fedcompress.randomness import rng_for
from strategies import Distilled
from strategies.proxy import GeneratedProxy, GivenProxy, NoiseProxy, ProxySource, StatisticsProxy


def rng(seed: int = 0) -> np.random.Generator:
    return rng_for(seed, purpose="test")


def small_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


@pytest.fixture(scope="module")
def trained(toys, digits) -> nn.Module:
    """Train on digits as images of mean 0 and variance 1."""
    model = toys.seeded(small_conv, 0)
    toys.train(model, images(digits["train_x"]), digits["train_y"], 60)
    return model


def images(rows: Tensor) -> Tensor:
    return ((rows - rows.mean()) / rows.std()).reshape(-1, 1, 8, 8)


def state_of(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def distances(model: nn.Module, inputs: Tensor) -> list[float]:
    """Largest distance of a channel's mean from the remembered one, in remembered spreads."""
    found: list[float] = []

    def look(layer: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        away = (args[0].mean((0, 2, 3)) - layer.running_mean) / layer.running_var.sqrt()
        found.append(float(away.abs().max()))

    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    predict_logits(model, inputs, batch_size=len(inputs))
    for hook in hooks:
        hook.remove()
    return found


def test_matched_noise_has_the_remembered_statistics(trained: nn.Module) -> None:
    before, modes = state_of(trained), [m.training for m in trained.modules()]
    matched = matched_inputs(trained, 300, (1, 8, 8), rng(), steps=100)
    assert matched.shape == (300, 1, 8, 8)
    assert max(distances(trained, noise_inputs(300, (1, 8, 8), rng()))) > 0.2
    assert max(distances(trained, matched)) < 0.05
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trained), strict=True))
    assert modes == [m.training for m in trained.modules()]
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_model_without_statistics_says_what_to_use_instead(toys) -> None:
    with pytest.raises(ConfigError, match=r"no batch normalisation.*'noise' or 'generator'"):
        matched_inputs(toys.mlp(), 10, (64,), rng())
    forgetful = nn.Sequential(nn.BatchNorm1d(64, track_running_stats=False), toys.mlp())
    with pytest.raises(ConfigError, match="no batch normalisation"):
        matched_inputs(forgetful, 10, (64,), rng())


@pytest.mark.parametrize("normalised", [False, True])
def test_generated_rows_are_of_all_classes_and_differ(toys, digits, trained, normalised) -> None:
    if normalised:
        model, shape = trained, (1, 8, 8)
    else:
        model, shape = toys.seeded(toys.mlp, 0), (64,)
        toys.train(model, digits["train_x"], digits["train_y"], 200, rate=0.3)
    state = torch.get_rng_state()
    inputs = generated_inputs(model, 300, shape, 10, rng(), steps=120, learning_rate=3e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert inputs.shape == (300, *shape)
    assert not inputs.requires_grad
    assert abs(float(inputs.mean())) < 0.05
    assert float(inputs.std()) == pytest.approx(1, abs=0.1)
    log_p = predict_logits(model, inputs).log_softmax(-1)
    noise = noise_inputs(300, shape, rng())
    noise_log_p = predict_logits(model, noise).log_softmax(-1)
    assert log_p.max(-1).values.mean() > noise_log_p.max(-1).values.mean()
    assert len(log_p.argmax(-1).unique()) >= 9
    assert len(inputs.flatten(1).unique(dim=0)) == 300


@pytest.mark.parametrize(
    "source",
    [
        NoiseProxy(40, (1, 8, 8)),
        StatisticsProxy(40, (1, 8, 8), steps=3),
        GeneratedProxy(40, (1, 8, 8), 10, steps=3),
        GivenProxy(torch.zeros(40, 1, 8, 8), "held_out"),
    ],
    ids=lambda source: source.kind,
)
def test_the_same_key_gives_the_same_rows(source: ProxySource, trained: nn.Module) -> None:
    first = source.inputs(trained, rng())
    torch.rand(3)
    assert torch.equal(first, source.inputs(trained, rng()))
    assert torch.equal(first, source.inputs(trained, rng(1))) is source.is_fixed
    assert first.shape == (source.rows, 1, 8, 8)


def test_noise_for_characters_is_tokens() -> None:
    tokens = noise_inputs(200, (6,), rng(), vocabulary=12)
    assert tokens.dtype == torch.int64
    assert set(tokens.unique().tolist()) == set(range(12))


@pytest.mark.parametrize("kind", ["noise", "statistics", "generator"])
def test_a_round_is_distilled_without_a_row_of_data(toys, digits, trained, kind: str) -> None:
    sources = {
        "noise": NoiseProxy(128, (1, 8, 8)),
        "statistics": StatisticsProxy(128, (1, 8, 8), steps=20),
        "generator": GeneratedProxy(128, (1, 8, 8), 10, steps=20),
    }
    settings = {"steps": 30, "learning_rate": 3e-4, "holdout_fraction": 0.0}
    strategy = Distilled(FedAvg(), model=small_conv, proxy=sources[kind], **settings)
    clients = []
    for classes in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)):
        client = toys.load(small_conv, toys.arrays_of(trained))
        rows = torch.isin(digits["train_y"], torch.tensor(classes))
        toys.train(client, images(digits["train_x"][rows]), digits["train_y"][rows], 60)
        clients.append(client)

    def run() -> list[np.ndarray]:
        arrays, metrics = toys.run_round(strategy, trained, clients)
        assert metrics["distill-teachers"] == 2
        assert metrics["distill-kl-after"] < metrics["distill-kl-before"]
        return [array.numpy() for array in arrays.values()]

    assert all(np.array_equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (NoiseProxy(40, (63,)), r"shape \(63,\) .* do not fit the model"),
        (NoiseProxy(1, (64,)), "at least 2 rows"),
        (NoiseProxy(40, (64,), vocabulary=9), "torch.int64 do not fit"),
        (StatisticsProxy(40, (64,)), "no batch normalisation"),
        (GeneratedProxy(40, (3, 8, 8), 10), "do not fit the model"),
    ],
)
def test_sources_that_do_not_fit_the_model(toys, source: ProxySource, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Distilled(FedAvg(), model=toys.mlp, proxy=source)


def test_memory_of_rows_that_change_is_refused(toys) -> None:
    with pytest.raises(ConfigError, match=r"memory = 0.5 .* kind 'noise' are others in each round"):
        Distilled(FedAvg(), model=toys.mlp, proxy=NoiseProxy(40, (64,)), memory=0.5)


def test_shifted_copies_move_each_row_by_itself() -> None:
    rows = torch.arange(300.0)[:, None, None, None] + torch.zeros(300, 1, 9, 9)
    rows[:, :, 4, 4] += 1000
    both = augmented(rows, "shift", rng())
    assert torch.equal(both[:300], rows)
    places = (both[300:] > 900).flatten(1).int().argmax(1)
    assert set(places.tolist()) == {
        9 * (4 + dy) + 4 + dx for dy in range(-2, 3) for dx in range(-2, 3)
    }
    assert torch.equal(both[300:].flatten(1).min(1).values, torch.arange(300.0))


def test_mixed_copies_lie_between_two_rows() -> None:
    rows = torch.eye(30)
    both = augmented(rows, "mixup", rng())
    assert torch.equal(both[:30], rows)
    torch.testing.assert_close(both[30:].sum(1), torch.ones(30))
    assert int((both[30:] > 0).sum(1).max()) == 2
    assert augmented(rows, "none", rng()) is rows


def test_inputs_that_cannot_be_augmented() -> None:
    with pytest.raises(ConfigError, match=r"moves images .*\(9, 64\)"):
        augmented(torch.zeros(9, 64), "shift", rng())
    with pytest.raises(ConfigError, match=r"can be averaged, got torch.int64"):
        augmented(torch.zeros(9, 6, dtype=torch.int64), "mixup", rng())
    with pytest.raises(ConfigError, match=r"augment must be .* 'mixup', got 'flip'"):
        augmented(torch.zeros(9, 64), "flip", rng())
