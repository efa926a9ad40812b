"""Prune the units of a recurrent model: the same number in each of its layers."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedcompress.errors import ConfigError

_GATES = 4


def has_units(model: nn.Module) -> bool:
    """Whether a model has an LSTM."""
    return any(isinstance(module, nn.LSTM) for module in model.modules())


def prune_units(
    model: nn.Module, ratio: float, scores: Mapping[str, Tensor], round_to: int = 8
) -> nn.Module:
    """Remove the least important units of every layer of a model's LSTM.

    A unit is its rows in each of the four gates, its column in what the layer says to itself, and
    its column in the next layer (or in the dense layer that reads the last one).

    Parameters
    ----------
    model : nn.Module
        Left as it is. It has one LSTM, which a dense layer reads.
    ratio : float
        Share of units to remove, in (0, 1).
    scores : mapping of str to Tensor
        Importance of each parameter's entries, by name.
    round_to : int
        As many units as a multiple of this are kept, where there are as many.

    Returns
    -------
    nn.Module
        A smaller copy.

    Raises
    ------
    ConfigError
        If its LSTM is not of this form.
    """
    pruned = copy.deepcopy(model)
    name, lstm = next((n, m) for n, m in pruned.named_modules() if isinstance(m, nn.LSTM))
    readers = {
        n: m
        for n, m in pruned.named_modules()
        if isinstance(m, nn.Linear) and m.in_features == lstm.hidden_size
    }
    if lstm.bidirectional or lstm.proj_size or len(readers) != 1:
        raise ConfigError(
            f"export: {name} is no plain LSTM that one dense layer reads; leave out --prune rows"
        )
    ((reader_name, reader),) = readers.items()
    size = lstm.hidden_size
    kept = max(1, int(size * (1 - ratio)))
    kept -= kept % round_to if kept > round_to else 0
    units = [
        _best(_unit_scores(scores, name, layer, lstm.num_layers, reader_name, size), kept)
        for layer in range(lstm.num_layers)
    ]
    smaller = nn.LSTM(
        lstm.input_size,
        kept,
        num_layers=lstm.num_layers,
        bias=lstm.bias,
        batch_first=lstm.batch_first,
        dropout=lstm.dropout,
    )
    with torch.no_grad():
        for layer, places in enumerate(units):
            rows = torch.cat([places + gate * size for gate in range(_GATES)])
            for key in _keys(lstm, layer):
                values = getattr(lstm, key)[rows]
                if key.startswith("weight_hh"):
                    values = values[:, places]
                elif key.startswith("weight_ih") and layer:
                    values = values[:, units[layer - 1]]
                getattr(smaller, key).copy_(values)
        dense = nn.Linear(kept, reader.out_features, bias=reader.bias is not None)
        dense.weight.copy_(reader.weight[:, units[-1]])
        if reader.bias is not None:
            dense.bias.copy_(reader.bias)
    pruned.set_submodule(name, smaller)
    pruned.set_submodule(reader_name, dense)
    return pruned.train(model.training)


def _keys(lstm: nn.LSTM, layer: int) -> list[str]:
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))
    return [f"{kind}_l{layer}" for kind in kinds]


def _unit_scores(
    scores: Mapping[str, Tensor], lstm: str, layer: int, layers: int, reader: str, size: int
) -> Tensor:
    inner = scores[f"{lstm}.weight_hh_l{layer}"]
    after = f"{lstm}.weight_ih_l{layer + 1}" if layer + 1 < layers else f"{reader}.weight"
    rows = scores[f"{lstm}.weight_ih_l{layer}"].sum(1) + inner.sum(1)
    return rows.reshape(_GATES, size).sum(0) + inner.sum(0) + scores[after].sum(0)


def _best(scores: Tensor, count: int) -> Tensor:
    return torch.topk(scores, count, sorted=False).indices.sort().values
