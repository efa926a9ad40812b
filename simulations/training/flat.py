"""All trained parameters of a model as one vector, of which the parameters are views."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

_ALIGNED = 16  # numbers: 64 bytes of float32


@final
class FlatParameters:
    """One vector for the trained parameters of a model, and one for their gradients.

    The parameters keep shapes and strides (channels last, say) and become views of the vector,
    so that whatever is loaded into the model lies in it, and a step of an optimiser is one
    operation whatever the number of layers.

    Attributes
    ----------
    trained : list of torch.nn.Parameter
        The parameters.
    values, gradients : torch.Tensor
        Shape (p,), of the parameters' dtype; whoever computes gradients puts them there. Each
        parameter begins at a whole cache line, and what lies between is 0.
    places : dict of str to int
        Where each parameter begins.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
        self.trained = list(named.values())
        owners = [name.rpartition(".") for name in named]
        self._owners = [(model.get_submodule(path)._parameters, name) for path, _, name in owners]
        first = self.trained[0]
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in self.trained]
        self.values = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.values)
        starts = [0, *itertools.accumulate(sizes)][:-1]
        self.places = dict(zip(named, starts, strict=True))
        for place, parameter in zip(starts, self.trained, strict=True):
            view = _view(self.values, place, parameter)
            view.copy_(parameter.detach())
            parameter.data = view
        self._seen = self._look()

    def holds(self) -> bool:
        """Say whether the model's parameters still are views of the vector."""
        found = [owner.get(name) for owner, name in self._owners]
        return all(map(operator.is_, found, self.trained)) and self._look() == self._seen

    def _look(self) -> tuple[list[int], list[tuple[int, ...]], list[torch.dtype]]:
        return (
            list(map(Tensor.data_ptr, self.trained)),
            list(map(Tensor.stride, self.trained)),
            [p.dtype for p in self.trained],
        )

    def by_name(self) -> dict[str, Tensor]:
        """Give the parameters by name."""
        return dict(zip(self.places, self.trained, strict=True))

    def flatten(self, named: Mapping[str, Tensor], fill: float) -> Tensor:
        """Give a vector of what is named by parameter, `fill` where nothing is."""
        vector = torch.full_like(self.values, fill)
        for name, view in self.unstack(vector).items():
            if name in named:
                view.copy_(named[name])
        return vector

    def unstack(self, stacked: Tensor) -> dict[str, Tensor]:
        """Give views (clients, ...) of stacked vectors (clients, p) by parameter."""
        like = zip(self.places.items(), self.trained, strict=True)
        return {name: _view(stacked, place, parameter) for (name, place), parameter in like}


_KNOWN: weakref.WeakKeyDictionary[nn.Module, list[FlatParameters]] = weakref.WeakKeyDictionary()


def flat_parameters(model: nn.Module) -> list[FlatParameters]:
    """Make the trained parameters of a model views of one vector for each dtype and device."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    known = _KNOWN.get(model)
    if (
        known is not None
        and sum(len(flat.places) for flat in known) == len(trained)
        and all(flat.places.keys() <= trained.keys() and flat.holds() for flat in known)
    ):
        return known
    kinds: dict[tuple[torch.dtype, torch.device], dict[str, nn.Parameter]] = {}
    for name, parameter in trained.items():
        kinds.setdefault((parameter.dtype, parameter.device), {})[name] = parameter
    _KNOWN[model] = [FlatParameters(model, named) for named in kinds.values()]
    return _KNOWN[model]


def _view(vectors: Tensor, place: int, like: Tensor) -> Tensor:
    """Give a part of the last axis the shape of a tensor, and its strides where those are dense.

    Of an axis of size 1 too: it is by them that a convolution knows channels-last weights.
    """
    strides = like.stride()
    extent = 1 + sum((n - 1) * stride for n, stride in zip(like.shape, strides, strict=True))
    if extent != like.numel():
        strides = torch.empty(like.shape, device="meta").stride()
    shape = (*vectors.shape[:-1], *like.shape)
    first = vectors.storage_offset() + place
    return vectors.as_strided(shape, (*vectors.stride()[:-1], *strides), first)
