"""Slices of a network: the first units of each of its layers, as a narrower network holds them.

A client with less memory trains the first part of every layer (HeteroFL; Diao et al., 2021; FjORD;
Horvath et al., 2021). Where a narrower network's arrays lie in a wider one's is read off the two
networks themselves, so any family of models that is built in several widths has slices.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedcompress.errors import LayoutError

Positions = tuple[slice | Tensor, ...]
SliceMap = Mapping[str, Positions]
"""By array, and for each of its dimensions, the positions in the wider array."""

_GATES = {"LSTM": 4, "GRU": 3}


def slice_map(wide: nn.Module, narrow: nn.Module) -> dict[str, Positions]:
    """Say where each array of a narrower network lies in those of a wider one.

    The narrower network holds the first units of every layer. Those of an LSTM or a GRU are the
    first units of each gate. Inputs that are channels × places, as a dense layer after
    convolutions has them, lie channel by channel, so the first channels come first there too.

    Parameters
    ----------
    wide, narrow : nn.Module
        Of the same layers; of the narrow one, no array is larger in any dimension.

    Returns
    -------
    dict of str to tuple
        One slice, or one int64 Tensor of positions, for each dimension of each array.

    Raises
    ------
    LayoutError
        If the networks are not made of the same layers, an array of the narrow one is larger, or
        a layer has no first units (bidirectional or projected recurrent layers).

    Examples
    --------
    >>> from torch import nn
    >>> from fedcompress.slices import slice_map
    >>> slice_map(nn.Linear(4, 3), nn.Linear(4, 2))
    {'weight': (slice(0, 2, None), slice(0, 4, None)), 'bias': (slice(0, 2, None),)}
    """
    whole, part = wide.state_dict(), narrow.state_dict()
    if whole.keys() != part.keys():
        raise LayoutError(
            f"slices: arrays {sorted(part.keys() - whole.keys())} are in the narrow model alone, "
            f"{sorted(whole.keys() - part.keys())} in the wide one alone; build both from the same "
            "layers"
        )
    recurrent = {
        path: module for path, module in wide.named_modules() if isinstance(module, nn.RNNBase)
    }
    where: dict[str, Positions] = {}
    for name, x in whole.items():
        _check_fits(name, x, part[name])
        layer = recurrent.get(name.rpartition(".")[0])
        first = [slice(0, size) for size in part[name].shape]
        where[name] = tuple(first) if layer is None else _of_gates(name, layer, x, part[name])
    return where


def take(arrays: Mapping[str, Tensor], where: SliceMap) -> dict[str, Tensor]:
    """Give a slice of a network's arrays.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        Of the wide network; others than those of the map are left out.
    where : mapping
        From `slice_map`.

    Returns
    -------
    dict of str to Tensor
        Views where the positions are slices, so gradients flow and values change with the arrays.
    """
    return {name: arrays[name][_index(x, arrays[name])] for name, x in where.items()}


def is_whole(arrays: Mapping[str, Tensor], where: SliceMap) -> bool:
    """Whether a slice is all of the network."""
    return arrays.keys() == where.keys() and all(
        part.shape == arrays[name].shape for name, part in take(arrays, where).items()
    )


def add_into(
    total: Mapping[str, Tensor],
    count: Mapping[str, Tensor],
    part: Mapping[str, Tensor],
    where: SliceMap,
    weight: float,
) -> None:
    """Add a slice times its weight where it lies, and the weight to the count of each entry.

    Parameters
    ----------
    total, count : mapping of str to Tensor
        float64, of the wide network's shapes; changed in place.
    part : mapping of str to Tensor
        The narrow network's arrays.
    where : mapping
        From `slice_map`.
    weight : float
        Not negative.
    """
    for name, positions in where.items():
        index = _index(positions, total[name])
        total[name][index] += weight * part[name].to(total[name].dtype)
        count[name][index] += weight


def mean_of_slices(
    previous: Mapping[str, Tensor],
    parts: Iterable[tuple[SliceMap, Mapping[str, Tensor], float]],
) -> dict[str, Tensor]:
    """Give the weighted mean of slices, each entry over those that hold it.

    Sums are taken in float64 and in the order given, one slice at a time, so a generator keeps a
    single one in memory.

    Parameters
    ----------
    previous : mapping of str to Tensor
        The wide network's arrays, which stay what they are where no slice has a weight.
    parts : iterable of (map, arrays, weight)
        Where a slice lies, its arrays, and its weight, not negative.

    Returns
    -------
    dict of str to Tensor
        Of the names, shapes and dtypes of ``previous``; of integers the nearest to the mean.
    """
    total = {name: torch.zeros(x.shape, dtype=torch.float64) for name, x in previous.items()}
    count = {name: torch.zeros(x.shape, dtype=torch.float64) for name, x in previous.items()}
    for where, part, weight in parts:
        add_into(total, count, part, where, weight)
    mean: dict[str, Tensor] = {}
    for name, x in previous.items():
        held = count[name] > 0
        value = total[name] / count[name].where(held, torch.ones_like(count[name]))
        value = value if x.is_floating_point() else value.round()
        mean[name] = torch.where(held, value.to(x.dtype), x)
    return mean


def _check_fits(name: str, wide: Tensor, narrow: Tensor) -> None:
    if wide.dim() != narrow.dim() or any(
        n > w for n, w in zip(narrow.shape, wide.shape, strict=True)
    ):
        raise LayoutError(
            f"slices: {name} has shape {tuple(narrow.shape)}, which does not fit into "
            f"{tuple(wide.shape)}; a slice is narrower in every dimension, or as wide"
        )


def _of_gates(name: str, layer: nn.RNNBase, wide: Tensor, narrow: Tensor) -> Positions:
    """Give the first units of each gate, whose rows lie below each other."""
    if layer.bidirectional or layer.proj_size:
        raise LayoutError(
            f"slices: {name} is of a bidirectional or projected {layer.mode}, which has no first "
            "units; use one that is neither"
        )
    gates = _GATES.get(layer.mode, 1)
    inside = wide.shape[0] // gates
    units = torch.arange(narrow.shape[0] // gates)
    rows = torch.cat([gate * inside + units for gate in range(gates)])
    return (rows, *(slice(0, size) for size in narrow.shape[1:]))


def _index(where: Positions, array: Tensor) -> Positions:
    """Make an index of which every dimension counts for itself."""
    if not any(isinstance(positions, Tensor) for positions in where):
        return where
    each = [
        torch.arange(size, device=array.device)[positions]
        for positions, size in zip(where, array.shape, strict=True)
    ]
    last = array.dim() - 1
    return tuple(x.view(-1, *[1] * (last - place)) for place, x in enumerate(each))
