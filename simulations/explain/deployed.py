"""The deployed models of a cell: its own two, and what was exported of them, ready to be run."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fedcompress.errors import ConfigError
from simulations.cell import Cell
from simulations.explain.cost import multiply_adds
from simulations.explain.onnx_graph import GraphFacts
from simulations.explain.runtime import Graph, onnx_of
from simulations.export.archive import load_archive
from simulations.export.levels import restored_arrays
from simulations.export.recipe import FORMATS
from simulations.export.standard import load_safetensors
from simulations.materials import Materials
from simulations.models.arrays import state_of
from simulations.own_models import GLOBAL, STUDENT, own_model, own_models
from simulations.records import read_json

Array = np.ndarray[Any, np.dtype[Any]]
BATCH = 128
KINDS = {ending: kind for kind, ending in FORMATS.items()}
"""What an exported file is, by the ending of its name."""
DENSE, GROUP = "dense", "group"
OWN_KINDS = (DENSE, GROUP, STUDENT)
"""What a model is that the cell itself holds."""


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
        Name of the model of the cell that it was made from.
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
        Inputs to logits, any number of rows, as the file's own runtime computes them.
    graph : Graph
        The same model in onnxruntime, for times that compare models and not runtimes.
    arrays : dict of str to ndarray
        Its weights as floats.
    graph_arrays : dict of str to ndarray
        Those of the graph, which may be folded and named otherwise.
    parameters : int
        Weights, without the statistics of normalisation layers where they are told apart.
    nonzero, multiply_adds : int
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


def model_files(cell_path: Path, cell: Cell) -> list[ModelFile]:
    """List the models of a finished cell: global, of groups, student; then exports by name.

    Raises
    ------
    ConfigError
        If one of the cell's own is missing.
    """
    files = []
    for own in own_models(cell).values():
        path = cell_path / own.file
        if not path.is_file():
            raise ConfigError(
                f"explain: {path} is missing; remove {cell_path} and run the study again"
            )
        name = DENSE if own.name == GLOBAL else own.name
        kind = name if own.name in (GLOBAL, STUDENT) else GROUP
        files.append(ModelFile(path, name, kind, own.name))
    exports = sorted(cell_path.glob("exports/*"))
    return files + [_exported(path) for path in exports if path.suffix in KINDS]


def _exported(path: Path) -> ModelFile:
    told = read_json(path.with_name(f"{path.name}.json")) or {}
    which, recipe, verified = (told.get(key) for key in ("model", "recipe", "verified"))
    return ModelFile(
        path=path,
        name=path.name,
        kind=KINDS[path.suffix],
        origin=which if isinstance(which, str) else GLOBAL,
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
    FedcompressError
        If the file is damaged, or holds another model than its cell's.
    """
    rows = torch.from_numpy(inputs)
    if file.kind == "onnx":
        return _of_graph(file, inputs)
    if file.kind == "archive":
        model = load_archive(file.path)
        return _of_module(file, model, model, rows, state_of(model))
    own = own_model(cell, file.origin)
    if file.kind in OWN_KINDS:
        model = own.load(file.path.parent, materials, cell.seed)
        return _of_module(file, model, model, rows, state_of(model))
    built = own.build(materials, cell.seed)
    if file.kind == "torch-export":
        program = _load_program(file.path)
        held = _Held(program.module())
        # Its stored arrays are levels where weights are quantized, with no dots in their names.
        stored = {name.replace("__", "."): x for name, x in program.state_dict.items()}
        return _of_module(file, held, built, rows, restored_arrays(stored))
    model = load_safetensors(file.path, built)
    return _of_module(file, model, model, rows, state_of(model))


def _of_graph(file: ModelFile, inputs: Array) -> Deployed:
    content = file.path.read_bytes()
    graph = Graph(content)
    facts = GraphFacts(content, inputs[:1])
    arrays = facts.weights()
    return Deployed(
        file=file,
        predict=in_batches(graph),
        graph=graph,
        arrays=arrays,
        graph_arrays=arrays,
        parameters=sum(x.size for x in arrays.values()),
        nonzero=sum(int(np.count_nonzero(x)) for x in arrays.values()),
        multiply_adds=facts.multiply_adds(),
    )


def _of_module(
    file: ModelFile,
    model: nn.Module,
    built: nn.Module,
    rows: Tensor,
    stored: Mapping[str, Tensor],
) -> Deployed:
    content = onnx_of(model, rows)
    arrays = {name: x.detach().numpy() for name, x in stored.items() if x.is_floating_point()}
    names = {name for name, _ in built.named_parameters()}
    weights = [x for name, x in arrays.items() if name in names]

    def predict(inputs: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(inputs)).numpy())

    return Deployed(
        file=file,
        predict=in_batches(predict),
        graph=Graph(content),
        arrays=arrays,
        graph_arrays=GraphFacts(content, rows[:1].numpy()).weights(),
        parameters=sum(x.size for x in weights),
        nonzero=sum(int(np.count_nonzero(x)) for x in weights),
        multiply_adds=multiply_adds(model, rows[:1]),
    )


def in_batches(predict: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Let a model answer any number of rows, some at a time."""

    def predict_all(inputs: Array) -> Array:
        parts = [predict(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)]
        return np.concatenate(parts)

    return predict_all


def _load_program(path: Path) -> ExportedProgram:
    if not zipfile.is_zipfile(path):  # torch would log pages before it raised
        raise ConfigError("it is damaged (no whole archive); export it again")
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ConfigError(f"it is damaged ({reason}); export it again") from error


@final
class _Held(nn.Module):
    """A program of ``torch.export``, which refuses to be put into evaluation mode: it is in it."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = [program]

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to logits."""
        logits: Tensor = self._program[0](x)
        return logits
