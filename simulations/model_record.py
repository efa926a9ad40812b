"""A model's arrays as Flower sends them, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedcompress.dense import dense_record, dense_values, whole_block
from simulations.models import load_arrays, model_arrays
from simulations.models.arrays import state_of


def model_record(model: nn.Module) -> ArrayRecord:
    """Write a model's parameters and buffers as dense arrays."""
    return array_record(model_arrays(model))


def array_record(arrays: Mapping[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    """Write named numpy arrays as dense arrays."""
    return dense_record(arrays)


def record_arrays(record: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Read dense arrays by name; they may be read-only."""
    return {name: dense_values(array) for name, array in record.items()}


class _Loaded(NamedTuple):
    """The record that a model was last loaded from, read and ready to be copied again."""

    names: list[str]
    data: Sequence[object]  # by which it is known: the bytes of each array, or one block
    state: list[str]
    values: list[Tensor]


_LOADED: WeakKeyDictionary[nn.Module, _Loaded] = WeakKeyDictionary()


def load_record(model: nn.Module, record: ArrayRecord) -> None:
    """Put dense arrays into a model; the same bytes again, client after client, cost one copy."""
    state = state_of(model)
    whole = whole_block(record)
    names = list(record) if whole is None else whole[1].names
    data = [array.data for array in record.values()] if whole is None else [whole[0]]
    known = _LOADED.get(model)
    if (
        known is not None
        and len(data) == len(known.data)
        and all(a is b for a, b in zip(data, known.data, strict=True))
        and (known.names, known.state) == (names, list(state))
    ):
        with torch.no_grad():
            torch._foreach_copy_(list(state.values()), known.values)
        return
    load_arrays(model, record_arrays(record))
    _LOADED.pop(model, None)
    if all(x.device.type == "cpu" for x in state.values()):
        # Not the record's own values: those of another dtype were converted.
        values = [x.detach().clone() for x in state.values()]
        _LOADED[model] = _Loaded(names, data, list(state), values)
