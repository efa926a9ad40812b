"""Prune single entries: the smallest of each layer become zero, all at once or step by step."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedcompress.pruning.patterns import Pattern, by_layer

_RAMP = 0.7  # of the steps; the rest tunes what is left
_MASKS = 30  # about as many while the sparsity rises: a mask costs as much as a step
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.RNNBase)

Masks = dict[str, Tensor]


def prunable(model: nn.Module) -> list[str]:
    """Name the parameters that are pruned: weights of dense, convolutional, recurrent layers."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _LAYERS)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    ]


def magnitude_masks(model: nn.Module, sparsity: float, pattern: Pattern = by_layer) -> Masks:
    """Keep the largest magnitudes, at least one of each layer.

    Parameters
    ----------
    model : nn.Module
        Its weights are looked at, not changed.
    sparsity : float
        Share of entries that become zero, in [0, 1).
    pattern : Pattern
        How many are kept of what: of each layer, or of each few inputs of a row.

    Returns
    -------
    dict of str to Tensor
        Names of pruned parameters to masks of their shape and dtype: 1 where kept.
    """
    parameters: Mapping[str, Tensor] = dict(model.named_parameters())
    weights = {name: parameters[name].detach() for name in prunable(model)}
    kept = pattern({name: x.abs() for name, x in weights.items()}, 1 - sparsity)
    return {name: mask.to(weights[name].dtype) for name, mask in kept.items()}


def prune_entries(model: nn.Module, sparsity: float, pattern: Pattern = by_layer) -> None:
    """Set the smallest entries to zero, in place; see `magnitude_masks`."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in magnitude_masks(model, sparsity, pattern).items():
            parameters[name].mul_(mask)


def gradual_masks(
    model: nn.Module, sparsity: float, steps: int, pattern: Pattern = by_layer
) -> Callable[[int], Masks]:
    """Give the masks of each step of training: sparsity rises by a cubic, then stays.

    Zhu & Gupta (2018), "To prune, or not to prune". Masks are taken of the weights as they are
    when they are asked for, some thirty times while the sparsity rises.

    Parameters
    ----------
    model : nn.Module
        The model that is trained.
    sparsity : float
        Share of entries that are zero at the end.
    steps : int
        Steps of the training.
    pattern : Pattern
        As in `magnitude_masks`.
    """
    rising = max(1, round(_RAMP * steps))
    every = max(1, rising // _MASKS)
    current: list[Masks] = [{}]

    def masks_at(step: int) -> Masks:
        if (step <= rising and (step % every == 0 or step == rising)) or not current[0]:
            done = min(1.0, step / rising)
            current[0] = magnitude_masks(model, sparsity * (1 - (1 - done) ** 3), pattern)
        return current[0]

    return masks_at
