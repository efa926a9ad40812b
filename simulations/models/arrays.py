"""A model's state as numpy arrays, and back."""

from collections.abc import Mapping
from typing import Any

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
    state: dict[str, Tensor] = model.state_dict()
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state.items()}


def load_arrays(model: nn.Module, arrays: Mapping[str, Array | Tensor]) -> None:
    """Copy arrays into a model's parameters and buffers.

    Floats become the model's floats. Integer buffers, such as the counters of batch
    normalisation, take the nearest integer, since strategies may hand back their averages.

    Raises
    ------
    LayoutError
        If a name is missing or unknown, or a shape differs; the model is then unchanged.
    """
    state: dict[str, Tensor] = model.state_dict()
    missing, unknown = sorted(state.keys() - arrays.keys()), sorted(arrays.keys() - state.keys())
    if missing or unknown:
        raise LayoutError(
            f"model: missing arrays {missing}, unknown arrays {unknown}; "
            "give those of a model built with the same settings"
        )
    for name, tensor in state.items():
        if tuple(arrays[name].shape) != tuple(tensor.shape):
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
        np.copyto(tensor.numpy(), source, casting="unsafe")
    else:
        tensor.copy_(torch.from_numpy(np.array(source)))
