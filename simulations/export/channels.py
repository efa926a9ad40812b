"""Prune whole filters, rows, heads and units: what is left is a smaller dense model."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fedcompress.errors import ConfigError
from simulations.export.importance import weight_scores
from simulations.export.installed import check_installed
from simulations.export.recurrent import has_units, prune_units
from simulations.models.resized import with_arrays
from simulations.models.transformer import HEAD_SIZE, Attention

_ROUND_TO = 8  # channels: what kernels work on at once


def prune_channels(
    model: nn.Module, inputs: Tensor, ratio: float, *, importance: str = "magnitude"
) -> nn.Module:
    """Remove the least important filters, dense rows, attention heads or recurrent units.

    By dependency graph (torch-pruning: Fang et al., 2023, "DepGraph"): what one layer no longer
    gives, the next no longer takes. Embeddings and the output layer keep their sizes.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    inputs : Tensor
        Unlabelled inputs, shape (rows, ...), as the model takes them.
    ratio : float
        Share of each layer's channels to remove, in (0, 1). What is kept is rounded down to a
        multiple of eight where there are as many.
    importance : {"magnitude", "taylor", "fisher"}
        See `simulations.export.importance.weight_scores`.

    Returns
    -------
    nn.Module
        A smaller copy, not tuned.

    Raises
    ------
    ConfigError
        If the ratio is out of range, or nothing could be removed.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"export: the share of rows to prune must be in (0, 1), got {ratio:g}")
    scores = weight_scores(model, importance, inputs)
    if has_units(model):
        return prune_units(model, ratio, scores, _ROUND_TO)
    check_installed("torch_pruning")
    import torch_pruning

    example = inputs[:2]
    # The pruner ranks weights by their size: a twin whose weights are the scores stands for the
    # model, and what is removed there is removed here.
    twin, pruned = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(scores[name])
    heads = _heads(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, of shapes that they only look at
        pruner = torch_pruning.pruner.BasePruner(
            twin,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=_kept_whole(twin),
            round_to=_round_to(twin, ratio),
            root_module_types=[nn.Conv2d, nn.Linear],
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=_share_of_heads(max(heads.values(), default=0), ratio),
            # Its defaults are shared between calls.
            in_channel_groups={},
            out_channel_groups={},
        )
        pruner.step()
        _repeat(torch_pruning, pruned, example, pruner.pruning_history())
    if _size(pruned) == _size(model):
        raise ConfigError(
            f"export: no layer is wide enough to remove {ratio:g} of its rows; "
            "prune entries, or a model of more channels"
        )
    # As newly built: the pruner leaves kernels in another order of memory.
    return with_arrays(model, pruned.state_dict())


def _repeat(torch_pruning: Any, model: nn.Module, example: Tensor, history: Any) -> None:  # noqa: ANN401
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    graph.load_pruning_history(history)


def _kept_whole(model: nn.Module) -> list[nn.Module]:
    dense = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [*dense[-1:], *(m for m in model.modules() if isinstance(m, nn.Embedding))]


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Count the heads of each layer of queries, keys and values."""
    return {
        layer: layer.out_features // HEAD_SIZE
        for module in model.modules()
        if isinstance(module, Attention)
        for layer in (module.query, module.key, module.value)
    }


def _share_of_heads(heads: int, ratio: float) -> float:
    """Give the share at which the pruner, which rounds up, leaves as many as it should."""
    removed = heads - max(1, int(heads * (1 - ratio)))
    return (removed - 0.5) / heads if removed > 0 else 0.0


def _round_to(model: nn.Module, ratio: float) -> int:
    """Give the multiple that even the narrowest layer has after pruning."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    narrowest = min((int(len(m.weight) * (1 - ratio)) for m in layers), default=1)
    return next((size for size in (_ROUND_TO, 4, 2) if size <= narrowest), 1)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
