"""Explain a cell: measure its deployed models side by side and write `explain.json`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import safetensors.numpy

from fedcompress.errors import ConfigError, FedcompressError
from simulations.explain.answered import SHOWN_SAMPLES, Rows, rows_to_answer
from simulations.explain.deployed import (
    DENSE,
    GROUP,
    OWN_KINDS,
    Deployed,
    model_files,
    read_deployed,
)
from simulations.explain.explained import BATCHES, Explained, Explanation, LayerFacts, Problem
from simulations.explain.latency import Measured, interleaved
from simulations.explain.layers import layer_facts, named_as_in_module
from simulations.explain.predictions import compare
from simulations.explain.saliency import occlusion_maps, similarity
from simulations.export.deployable import read_cell
from simulations.export.installed import check_installed
from simulations.materials import materials_of
from simulations.provenance import machine
from simulations.records import read_json, write_json

Array = np.ndarray[Any, np.dtype[Any]]
MOST_ROWS = 10_000
"""Test rows that models answer, if nothing else is said."""


def cells_to_explain(folder: Path, wanted: str | None = None) -> list[Path]:
    """List the folders of a run's finished cells, or the one that is asked for.

    Raises
    ------
    ConfigError
        If the folder is no run's, there is no such cell, or none is finished.
    """
    cells = sorted(path.parent for path in folder.glob("cells/*/cell.json"))
    if not cells:
        raise ConfigError(
            f"explain: {folder} holds no cell; give the output folder of `fedcompress run`"
        )
    if wanted is not None:
        names = [path.name for path in cells]
        if wanted not in names:
            raise ConfigError(
                f"explain: {folder} has no cell {wanted!r}; use one of {', '.join(names)}"
            )
        cells = [folder / "cells" / wanted]
    finished = [path for path in cells if (read_json(path / "result.json") or {}).get("finished")]
    if not finished:
        which = f"no cell of {folder} is" if wanted is None else f"cell {wanted!r} is not"
        raise ConfigError(
            f"explain: {which} finished; `fedcompress run … --resume` goes on where it stopped"
        )
    return finished


def explain_cell(
    cell_path: Path,
    *,
    most_rows: int = MOST_ROWS,
    data_dir: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Measure the deployed models of a finished cell and write them to its `explain.json`.

    A file that cannot be run is named under `problems`, and the others are measured.

    Parameters
    ----------
    cell_path : Path
        Folder of the cell.
    most_rows : int
        Test rows that models answer, at most.
    data_dir : str, optional
        Folder of data sets, where they lie elsewhere now than when the run was made.
    tell : callable
        Told what is being done.

    Raises
    ------
    ConfigError
        If a package is missing, the data are, or the cell's own models cannot be read.
    OSError
        If the file cannot be written.
    """
    check_installed("onnx", "onnxscript", "onnxruntime")
    cell = read_cell(cell_path, data_dir)
    materials = materials_of(cell)
    rows = rows_to_answer(materials.data, most_rows, cell.seed)
    models: list[Deployed] = []
    problems: list[Problem] = []
    for file in model_files(cell_path, cell):
        tell(f"reading {file.path.name}")
        try:
            models.append(read_deployed(file, cell, materials, rows.inputs[: max(BATCHES)]))
        except FedcompressError as error:
            if file.kind == DENSE:  # what all others are compared with
                raise ConfigError(f"explain: {file.path}: {error}") from error
            reason = str(error).removeprefix(f"{file.path}: ")
            problems.append(Problem(str(file.path.relative_to(cell_path)), reason))
    tell("measuring latency")
    measured = {
        batch: interleaved({m.file.name: _call(m, rows.inputs[:batch]) for m in models})
        for batch in BATCHES
    }
    yardstick = _yardstick(models, rows)
    told = []
    for model in models:
        tell(f"explaining {model.file.path.name}")
        told.append(_explain(model, yardstick, measured, cell_path))
    explanation = Explanation(
        label=cell.label,
        seed=cell.seed,
        rows=len(rows.labels),
        class_rows=rows.class_rows,
        class_names=rows.class_names,
        turns={str(batch): len(each.orders) for batch, each in measured.items()},
        calls={str(batch): dict(each.calls) for batch, each in measured.items()},
        order=[model.file.name for model in models],
        machine=machine(),
        versions={name: version(name) for name in ("onnxruntime", "onnx", "torch")},
        samples=rows.samples(yardstick.logits.argmax(1)),
        models=told,
        problems=problems,
    )
    write_json(cell_path / "explain.json", explanation.to_json())
    return explanation


@final
@dataclass(frozen=True, eq=False)
class _Yardstick:
    """What every model of a cell is compared with."""

    rows: Rows
    logits: Array
    maps: Array
    origins: Mapping[str, Deployed]

    def saliency_maps(self, model: Deployed) -> Array:
        """Maps of the dense model's answers."""
        return _maps(model, self.rows, self.logits)


def _yardstick(models: list[Deployed], rows: Rows) -> _Yardstick:
    logits = models[0].predict(rows.inputs)
    own = {m.file.origin: m for m in models if m.file.kind in OWN_KINDS}
    return _Yardstick(rows, logits, _maps(models[0], rows, logits), own)


def _maps(model: Deployed, rows: Rows, dense_logits: Array) -> Array:
    watched = dense_logits[rows.seen].argmax(1)
    return occlusion_maps(model.predict, rows.inputs[rows.seen], watched, rows.cover)


def _call(model: Deployed, inputs: Array) -> Callable[[], object]:
    return lambda: model.graph(inputs)


def _explain(
    model: Deployed, yardstick: _Yardstick, measured: Mapping[int, Measured], cell_path: Path
) -> Explained:
    file, rows = model.file, yardstick.rows
    maps = yardstick.saliency_maps(model)
    answers = compare(model.predict(rows.inputs), yardstick.logits, rows.labels)
    return Explained(
        name=file.name,
        kind=file.kind,
        file=str(file.path.relative_to(cell_path)),
        recipe=file.recipe,
        verified=file.verified,
        file_bytes=_file_bytes(model),
        parameters=model.parameters,
        nonzero=model.nonzero,
        multiply_adds=model.multiply_adds,
        latency={str(batch): each.latency[file.name] for batch, each in measured.items()},
        kernels=model.graph.kernels,
        saliency_similarity=similarity(maps, yardstick.maps),
        saliency_maps=[[float(f"{fall:.4g}") for fall in row] for row in maps[:SHOWN_SAMPLES]],
        layers=_layers(model, yardstick.origins.get(file.origin)),
        **asdict(answers),
    )


def _file_bytes(model: Deployed) -> int:
    if model.file.kind == GROUP:  # its file holds the models of the other groups too
        return len(safetensors.numpy.save(dict(model.arrays)))
    return model.file.path.stat().st_size


def _layers(model: Deployed, origin: Deployed | None) -> list[LayerFacts]:
    """Compare with what the model was made from, graphs by the names that its module has."""
    if origin is None or origin is model:
        return layer_facts(model.arrays, None)
    if model.file.kind != "onnx":
        return layer_facts(model.arrays, origin.arrays)
    arrays = named_as_in_module(model.arrays, origin.graph_arrays, origin.arrays)
    # What the exporter folded, such as normalisation into a convolution, is as in its graph.
    return layer_facts(arrays, {**origin.arrays, **origin.graph_arrays})
