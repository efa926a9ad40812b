"""Formats that torch and safetensors read without this package."""

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fedcompress.errors import ConfigError
from simulations.export.levels import restored_arrays, stored_arrays
from simulations.models.resized import with_arrays
from simulations.records import write_whole


def write_safetensors(
    model: nn.Module, path: Path, *, quantize: str | None, told: Mapping[str, Any]
) -> int:
    """Write a model's arrays; the format holds no graph, so it says what they belong to.

    Parameters
    ----------
    model : nn.Module
        The model.
    path : Path
        The file, written whole or not at all.
    quantize : str or None
        How weights are stored; see `simulations.export.levels`.
    told : mapping
        Metadata; values other than text are written as JSON.

    Returns
    -------
    int
        Bytes of the file.
    """
    # Clones, because safetensors refuses arrays that share memory.
    arrays = {name: x.clone() for name, x in stored_arrays(model, quantize).items()}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()}
    content = safetensors.torch.save(arrays, metadata=texts)
    write_whole(path, content)
    return len(content)


def load_safetensors(path: Path, model: nn.Module) -> nn.Module:
    """Read what `write_safetensors` wrote, as a model.

    Parameters
    ----------
    path : Path
        The file.
    model : nn.Module
        A model of the same layers, of whatever width; left as it is.

    Returns
    -------
    nn.Module
        A copy with the file's weights, in evaluation mode.

    Raises
    ------
    ConfigError
        If the file is damaged.
    LayoutError
        If it holds another model's arrays.
    OSError
        If there is no such file.
    """
    try:
        stored = safetensors.torch.load(path.read_bytes())
        arrays = restored_arrays(stored)
    except (safetensors.SafetensorError, RuntimeError, IndexError) as error:
        raise ConfigError(f"{path}: it is damaged ({error}); export it again") from error
    return with_arrays(model, arrays).eval()


def write_program(model: nn.Module, example: Tensor, path: Path, *, quantize: str | None) -> int:
    """Write a model as a program of ``torch.export``: graph and arrays, for any batch size.

    Quantized weights are stored as levels and become floats where they are used.

    Returns
    -------
    int
        Bytes of the file.
    """
    content = program_bytes(model if quantize is None else _Restoring(model, quantize), example)
    write_whole(path, content)
    return len(content)


def program_bytes(model: nn.Module, example: Tensor) -> bytes:
    """Export a model and give the file's content."""
    batch = torch.export.Dim("batch", min=1)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its export's insides
        program = torch.export.export(
            model.eval(), (example,), dynamic_shapes=({0: batch},), strict=False
        )
        torch.export.save(program, file)
    return file.getvalue()


@final
class _Restoring(nn.Module):
    """A model whose weights are stored as levels."""

    def __init__(self, model: nn.Module, quantize: str) -> None:
        super().__init__()
        # Held in a list, so that its own float weights are no part of what is exported.
        self._held = [model.eval()]
        self._names: dict[str, str] = {}
        for name, array in stored_arrays(model, quantize).items():
            key = name.replace(".", "__")
            self._names[name] = key
            self.register_buffer(key, array)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to logits."""
        stored = {name: getattr(self, key) for name, key in self._names.items()}
        found = torch.func.functional_call(self._held[0], restored_arrays(stored), (x,))
        return cast("Tensor", found)
