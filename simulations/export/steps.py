"""Do what a recipe says: prune, tune, round."""

import copy

import torch
from torch import nn

from fedcompress import rng_for
from simulations.export.channels import prune_channels
from simulations.export.deployable import Deployable
from simulations.export.levels import rounding_of
from simulations.export.recipe import Recipe
from simulations.export.sparsify import gradual_masks, prunable, prune_entries
from simulations.export.tune import steps_of, tune


def prepare(deployable: Deployable, recipe: Recipe, kind: str, *, tuned: bool = True) -> nn.Module:
    """Make the model that is to be written; its weights are not rounded yet.

    Parameters
    ----------
    deployable : Deployable
        The trained model, left as it is.
    recipe : Recipe
        What to do. Each step is tuned for `recipe.tune` epochs on the unlabelled inputs, towards
        the logits of the trained model.
    kind : str
        The format; int8 in ONNX rounds also what layers are given.
    tuned : bool
        Whether to tune at all: sizes hardly depend on it.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    ConfigError
        If the recipe cannot be followed on this model.
    """
    dense, inputs = deployable.model, deployable.unlabelled
    epochs = recipe.tune if tuned else 0
    seed = deployable.cell.seed
    model = copy.deepcopy(dense)
    if recipe.rows:
        model = prune_channels(dense, inputs, recipe.rows, importance=recipe.importance)
        if epochs:
            rng = rng_for(seed, client="server", purpose="tune rows")
            tune(model, inputs, dense, epochs=epochs, rng=rng)
    if recipe.entries:
        if epochs:
            rng = rng_for(seed, client="server", purpose="tune entries")
            steps = steps_of(len(inputs), epochs)
            masks = gradual_masks(model, recipe.entries, steps, recipe.pattern)
            tune(model, inputs, dense, epochs=epochs, rng=rng, masks_at=masks)
        prune_entries(model, recipe.entries, recipe.pattern)
    if recipe.quantize and epochs:
        rng = rng_for(seed, client="server", purpose="tune levels")
        kept = _kept(model) if recipe.entries else {}
        tune(
            model,
            inputs,
            dense,
            epochs=epochs,
            rng=rng,
            masks_at=lambda _: kept,
            rounding=rounding_of(recipe.quantize, recipe.centroids),
            ranges=recipe.quantize == "int8" and kind == "onnx",
        )
    return model.eval()


def _kept(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters())
    return {name: (parameters[name] != 0).to(parameters[name].dtype) for name in prunable(model)}
