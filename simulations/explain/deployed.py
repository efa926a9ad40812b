"""The deployed models of a cell: its own two, and what was exported of them, ready to be run."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.export import ExportedProgram

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.explain.cost import float_arrays, multiply_adds, parameter_counts
from simulations.explain.onnx_graph import multiply_adds as graph_multiply_adds
from simulations.explain.onnx_graph import weights
from simulations.explain.runtime import Graph, onnx_of
from simulations.materials import Materials
from simulations.models import load_arrays
from simulations.records import read_json

Array = np.ndarray[Any, np.dtype[Any]]
BATCH = 128

KINDS: Mapping[str, str] = {
    ".onnx": "onnx",
    ".safetensors": "safetensors",
    ".pt2": "torch-export",
}
"""What an exported file is, by the ending of its name."""


@final
@dataclass(frozen=True)
class ModelFile:
    """A file that holds a deployed model.

    Attributes
    ----------
    path : Path
        The file.
    name, kind, recipe, verified
        As in `Explained`.
    origin : str
        ``global`` or ``student``: the model of the cell that it was made from.
    """

    path: Path
    name: str
    kind: str
    origin: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    verified: bool | None = None


@final
@dataclass(frozen=True, eq=False)
class Deployed:
    """A model that was read from its file.

    Attributes
    ----------
    file : ModelFile
        Where it is from.
    predict : callable
        Inputs to logits, as the file's own runtime computes them.
    graph : Graph
        The same model in onnxruntime, for times that compare models and not runtimes.
    content : bytes
        That graph's file.
    arrays : dict of str to ndarray
        Its weights as floats.
    graph_arrays : dict of str to ndarray
        Those of the graph, which may be folded and named otherwise.
    parameters, nonzero, multiply_adds : int
        As in `Explained`.
    """

    file: ModelFile
    predict: Callable[[Array], Array]
    graph: Graph
    arrays: Mapping[str, Array]
    graph_arrays: Mapping[str, Array]
    parameters: int
    nonzero: int
    multiply_adds: int


def model_files(cell_path: Path) -> list[ModelFile]:
    """List the model files of a finished cell: global model, student, exports by name.

    Raises
    ------
    ConfigError
        If there is no global model.
    """
    dense, student = cell_path / "model.safetensors", cell_path / "student.safetensors"
    if not dense.is_file():
        raise ConfigError(
            f"explain: {dense} is missing; remove {cell_path} and run the study again"
        )
    files = [ModelFile(dense, "dense", "dense", "global")]
    if student.is_file():
        files.append(ModelFile(student, "student", "student", "student"))
    exports = sorted(cell_path.glob("exports/*"))
    return files + [_exported(path) for path in exports if path.suffix in KINDS]


def _exported(path: Path) -> ModelFile:
    told = read_json(path.with_suffix(".json")) or read_json(Path(f"{path}.json")) or {}
    recipe, verified = told.get("recipe"), told.get("verified")
    return ModelFile(
        path=path,
        name=path.name,
        kind=KINDS[path.suffix],
        origin=str(told.get("model", "global")),
        recipe=recipe if isinstance(recipe, Mapping) else {},
        verified=None if verified is None else bool(verified),
    )


def read_deployed(file: ModelFile, cell: Cell, materials: Materials, inputs: Array) -> Deployed:
    """Read a model file, and make it run.

    Parameters
    ----------
    file : ModelFile
        The file.
    cell : Cell
        Says what the model was built from, for files that hold arrays alone.
    materials : Materials
        Says what it takes and gives.
    inputs : ndarray
        Some rows of inputs.

    Raises
    ------
    ConfigError
        If the file is damaged, or holds another model than its cell's.
    """
    if file.kind == "onnx":
        return _read_onnx(file, inputs)
    rows = torch.from_numpy(inputs)
    if file.kind == "torch-export":
        program = _load_program(file.path)
        model: nn.Module = program.module()
        return _of_module(file, model, onnx_of(program, rows), rows)
    model = _load_arrays(file, cell, materials).eval()
    return _of_module(file, model, onnx_of(model, rows), rows)


def _read_onnx(file: ModelFile, inputs: Array) -> Deployed:
    import onnx

    content = file.path.read_bytes()
    graph = Graph(content)
    model = onnx.load_from_string(content)
    arrays = weights(model)
    return Deployed(
        file=file,
        predict=in_batches(graph),
        graph=graph,
        arrays=arrays,
        graph_arrays=arrays,
        parameters=sum(x.size for x in arrays.values()),
        nonzero=sum(int(np.count_nonzero(x)) for x in arrays.values()),
        multiply_adds=graph_multiply_adds(model, inputs[:1]),
    )


def _of_module(file: ModelFile, model: nn.Module, content: bytes, rows: Tensor) -> Deployed:
    import onnx

    parameters, nonzero = parameter_counts(model)

    def predict(inputs: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(inputs)).numpy())

    return Deployed(
        file=file,
        predict=in_batches(predict),
        graph=Graph(content),
        arrays=float_arrays(model),
        graph_arrays=weights(onnx.load_from_string(content)),
        parameters=parameters,
        nonzero=nonzero,
        multiply_adds=multiply_adds(model, rows[:1]),
    )


def in_batches(predict: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Let a model answer any number of rows, some at a time."""

    def predict_all(inputs: Array) -> Array:
        parts = [predict(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)]
        return np.concatenate(parts)

    return predict_all


def _load_arrays(file: ModelFile, cell: Cell, materials: Materials) -> nn.Module:
    try:
        arrays = safetensors.numpy.load_file(file.path)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"it is damaged ({error}); export it again") from error
    student = cell.strategy.student
    if file.origin == "student" and student is None:
        raise ConfigError(f"it is of a student, and strategy {cell.label!r} has none")
    settings = student if file.origin == "student" and student is not None else cell.model
    model = materials.new_model(settings, cell.seed)
    load_arrays(model, arrays)
    return model


def _load_program(path: Path) -> ExportedProgram:
    if not zipfile.is_zipfile(path):  # torch would log pages before it raised
        raise ConfigError("it is damaged (no whole archive); export it again")
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"it is damaged ({str(error).splitlines()[0]}); export it again"
        ) from error
