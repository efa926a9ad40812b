"""Pruning: what is removed was what mattered least, and what is left answers as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedcompress import rng_for
from fedcompress.distill import kl_divergence
from fedcompress.errors import ConfigError
from fedcompress.pruning import n_of_m
from fedcompress.resize import fit_to
from simulations.export import Deployable
from simulations.export.channels import prune_channels
from simulations.export.importance import weight_scores
from simulations.export.recurrent import prune_units
from simulations.export.sparsify import gradual_masks, magnitude_masks, prunable, prune_entries
from simulations.export.tune import steps_of, tune
from simulations.models import build_model

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CHARACTERS = torch.randint(0, 40, (6, 12), generator=torch.Generator().manual_seed(0))
WIDTHS = {"conv4": 0.25}


def model_named(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a model, and inputs that it takes."""
    if name in ("lstm", "transformer"):
        return build_model(name, (12,), 40, seed=0, hidden=(64, 64)).eval(), CHARACTERS
    return build_model(
        name, (1, 8, 8), 10, seed=0, hidden=(48, 32), width=WIDTHS.get(name, 1.0)
    ).eval(), IMAGES


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "conv4", "lstm", "transformer"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor", "fisher"])
def test_half_of_the_rows_are_removed(name: str, importance: str) -> None:
    pytest.importorskip("torch_pruning")
    model, inputs = model_named(name)
    before = copy.deepcopy(model.state_dict())
    pruned = prune_channels(model, inputs, 0.5, importance=importance)
    assert pruned(inputs).shape == model(inputs).shape
    count = [sum(p.numel() for p in m.parameters()) for m in (pruned, model)]
    assert count[0] < 0.6 * count[1]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "conv4", "lstm", "transformer"])
def test_shapes_alone_rebuild_a_pruned_model(name: str) -> None:
    pytest.importorskip("torch_pruning")
    model, inputs = model_named(name)
    pruned = prune_channels(model, inputs, 0.5)
    shapes = {key: tuple(x.shape) for key, x in pruned.state_dict().items()}
    rebuilt = fit_to(model_named(name)[0], shapes)
    rebuilt.load_state_dict(pruned.state_dict())
    assert torch.equal(rebuilt.eval()(inputs), pruned(inputs))


@pytest.mark.parametrize("name", ["mlp", "lenet", "lstm", "transformer"])
def test_two_of_every_four_inputs_are_kept_and_they_are_the_largest(name: str) -> None:
    model, inputs = model_named(name)
    weights = {key: x.detach().clone() for key, x in model.named_parameters()}
    prune_entries(model, 0.5, n_of_m(2, 4))
    pruned = dict(model.named_parameters())
    for key in prunable(model):
        before = weights[key].movedim(1, -1)
        after = pruned[key].detach().movedim(1, -1)
        whole = before.shape[-1] // 4 * 4
        before, after = (x[..., :whole].reshape(-1, 4) for x in (before, after))
        assert ((after != 0).sum(1) == 2).all(), key
        assert torch.equal(after.abs().sum(1), before.abs().topk(2, dim=1).values.sum(1)), key
    assert torch.isfinite(model(inputs)).all()


def test_filters_that_nothing_reads_go_first() -> None:
    """A LeNet of which every second filter and row is cut off answers the same without them."""
    pytest.importorskip("torch_pruning")
    model, _ = model_named("lenet")
    with torch.no_grad():
        for layer, reader in (
            (model.conv1, model.conv2),
            (model.conv2, model.dense),
            (model.dense, model.head),
        ):
            layer.weight[::2] *= 1e-4
            layer.bias[::2] = 0
            each = reader.weight.shape[1] // len(layer.weight)
            columns = reader.weight.reshape(len(reader.weight), len(layer.weight), each, -1)
            columns[:, ::2] = 0
    pruned = prune_channels(model, IMAGES, 0.5)
    torch.testing.assert_close(pruned(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


def test_units_that_nothing_reads_go_first() -> None:
    model, inputs = model_named("lstm")
    with torch.no_grad():
        for weight in (
            model.lstm.weight_hh_l0,
            model.lstm.weight_ih_l1,
            model.lstm.weight_hh_l1,
            model.head.weight,
        ):
            weight[:, 1::2] = 0
        for weight in (model.lstm.weight_ih_l0, model.lstm.weight_hh_l0):
            weight.view(4, 64, -1)[:, 1::2] *= 1e-3
        for weight in (model.lstm.weight_ih_l1, model.lstm.weight_hh_l1):
            weight.view(4, 64, -1)[:, 1::2] *= 1e-3
    pruned = prune_units(model, 0.5, weight_scores(model, "magnitude", inputs))
    assert pruned.lstm.hidden_size == 32
    torch.testing.assert_close(pruned(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_a_share_of_all_or_nothing_is_refused() -> None:
    model, inputs = model_named("mlp")
    for ratio in (0.0, 1.0, 50.0):
        with pytest.raises(ConfigError, match=r"must be in \(0, 1\)"):
            prune_channels(model, inputs, ratio)
    with pytest.raises(ConfigError, match="did you mean 'fisher'"):
        prune_channels(model, inputs, 0.5, importance="fischer")


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.999])
def test_masks_keep_the_largest(sparsity: float) -> None:
    model, _ = model_named("lenet")
    parameters = dict(model.named_parameters())
    for name, mask in magnitude_masks(model, sparsity).items():
        weight = parameters[name].detach().abs()
        kept = max(1, round((1 - sparsity) * weight.numel()))
        assert int(mask.sum()) == kept
        if kept < weight.numel():
            assert weight[mask == 1].min() >= weight[mask == 0].max()


def test_sparsity_rises_and_ends_where_it_should(deployable: Deployable) -> None:
    model = copy.deepcopy(deployable.model)
    masks_at = gradual_masks(model, 0.8, steps=100)
    shares = []
    for step in range(100):
        masks = masks_at(step)
        kept = sum(float(mask.sum()) for mask in masks.values())
        shares.append(1 - kept / sum(mask.numel() for mask in masks.values()))
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[70] == pytest.approx(0.8, abs=1e-3)
    assert shares[-1] == shares[70]


def test_pruned_weights_stay_exactly_zero_while_tuning(deployable: Deployable) -> None:
    inputs, dense = deployable.unlabelled, deployable.model
    model = copy.deepcopy(dense)
    masks = gradual_masks(model, 0.9, steps_of(len(inputs), 3))
    rng = rng_for(0, purpose="test")
    tune(model, inputs, dense, epochs=3, rng=rng, masks_at=masks)
    parameters = dict(model.named_parameters())
    for name in prunable(model):
        weight = parameters[name]
        assert int((weight == 0).sum()) == weight.numel() - max(1, round(0.1 * weight.numel()))


def test_tuning_brings_a_pruned_model_nearer_to_the_trained_one(deployable: Deployable) -> None:
    inputs, dense = deployable.unlabelled, deployable.model
    cut, tuned = copy.deepcopy(dense), copy.deepcopy(dense)
    prune_entries(cut, 0.9)
    masks = gradual_masks(tuned, 0.9, steps_of(len(inputs), 25))
    tune(tuned, inputs, dense, epochs=25, rng=rng_for(0, purpose="test"), masks_at=masks)
    test = deployable.data.inputs(deployable.data.test_x)
    with torch.no_grad():
        wanted = dense(test)
        far, near = (float(kl_divergence(m(test), wanted, 1.0)) for m in (cut, tuned))
    assert near < 0.5 * far
    assert not tuned.training
