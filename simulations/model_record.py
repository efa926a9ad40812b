"""A model's arrays as Flower sends them, and back."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedcompress.block import BlockLayout, block_layout
from fedcompress.dense import block_record, dense_record, dense_values, whole_block
from simulations.models import load_arrays, model_arrays
from simulations.models.arrays import state_of


def model_record(model: nn.Module) -> ArrayRecord:
    """Write a model's parameters and buffers as dense arrays."""
    plain = _plain(model)
    if plain is not None:
        return block_record(plain.layout, np.concatenate(plain.vectors))
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
    whole = whole_block(record)
    plain = None if whole is None else _plain(model)
    if whole is not None and plain is not None and whole[1].equals(plain.layout):
        block, start = whole[0], 0
        for vector, stop in zip(plain.vectors, plain.layout.stops, strict=True):
            vector[:] = block[start:stop]
            start = stop
        return
    state = state_of(model)
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


class _Plain(NamedTuple):
    """A model all of whose arrays are contiguous, float32 and on the CPU, and how they lie."""

    names: list[str]
    tensors: list[Tensor]
    places: list[int]
    strides: list[tuple[int, ...]]
    layout: BlockLayout
    vectors: list[np.ndarray[Any, Any]]  # on the arrays' own memory


_PLAIN: WeakKeyDictionary[nn.Module, _Plain] = WeakKeyDictionary()


def _plain(model: nn.Module) -> _Plain | None:
    state = state_of(model)
    names, tensors = list(state), list(state.values())
    places, strides = list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors))
    known = _PLAIN.get(model)
    if (
        known is not None
        and (known.names, known.places, known.strides) == (names, places, strides)
        and all(map(operator.is_, known.tensors, tensors))
    ):
        return known
    _PLAIN.pop(model, None)
    if not tensors or not all(_is_plain(x) for x in tensors):
        return None
    layout = block_layout(
        np.dtype(np.float32), tuple(names), tuple([tuple(x.shape) for x in tensors])
    )
    vectors = [x.detach().numpy().reshape(-1) for x in tensors]
    _PLAIN[model] = _Plain(names, tensors, places, strides, layout, vectors)
    return _PLAIN[model]


def _is_plain(x: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and x.is_contiguous() and x.numel() > 0
