"""A model's state as numpy arrays, and back."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from fedcompress.errors import LayoutError

Array = np.ndarray[Any, np.dtype[Any]]


def model_arrays(model: nn.Module) -> dict[str, Array]:
    """Give the parameters and buffers of a model by name.

    Arrays are C-contiguous and share memory with the model where it lies contiguous on a
    CPU: copy what must outlive the next training step.
    """
    return {
        name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state_of(model).items()
    }


def load_arrays(model: nn.Module, arrays: Mapping[str, Array | Tensor]) -> None:
    """Copy arrays into a model's parameters and buffers.

    Floats become the model's floats. Integer buffers, such as the counters of batch
    normalisation, take the nearest integer, since strategies may hand back their averages.

    Raises
    ------
    LayoutError
        If a name is missing or unknown, or a shape differs; the model is then unchanged.
    """
    state = state_of(model)
    if state.keys() != arrays.keys():
        missing, unknown = (
            sorted(state.keys() - arrays.keys()),
            sorted(arrays.keys() - state.keys()),
        )
        raise LayoutError(
            f"model: missing arrays {missing}, unknown arrays {unknown}; "
            "give those of a model built with the same settings"
        )
    for name, tensor in state.items():
        if arrays[name].shape != tensor.shape:
            raise LayoutError(
                f"model: {name} has shape {tuple(tensor.shape)}, got {tuple(arrays[name].shape)}; "
                "give the arrays of a model built with the same settings"
            )
    for name, tensor in state.items():
        _copy_into(tensor, arrays[name])


def _copy_into(tensor: Tensor, array: Array | Tensor) -> None:
    source = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if not tensor.is_floating_point() and source.dtype.kind == "f":
        source = np.rint(source)
    if tensor.device.type == "cpu":
        np.copyto(tensor.detach().numpy(), source, casting="unsafe")
    else:
        tensor.copy_(torch.from_numpy(np.array(source)))


_Slot = tuple[str, dict[str, Tensor | None], str]
_SLOTS: WeakKeyDictionary[nn.Module, list[_Slot]] = WeakKeyDictionary()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Give what ``model.state_dict()`` names; where each tensor hangs is looked up once."""
    slots = _SLOTS.get(model)
    if slots is None:
        slots = _SLOTS[model] = _find_slots(model)
    state = {name: x for name, holder, key in slots if (x := holder.get(key)) is not None}
    return state if len(state) == len(slots) > 0 else model.state_dict()


def _find_slots(model: nn.Module) -> list[_Slot]:
    """Walk the modules as `state_dict` does; empty where that gives other names."""
    names = list(model.state_dict())
    slots = {
        prefix + "." * bool(prefix) + key: (holder, key)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for holder in (module._parameters, module._buffers)
        for key in holder
    }
    if not slots.keys() >= set(names):
        return []
    return [(name, *slots[name]) for name in names]
