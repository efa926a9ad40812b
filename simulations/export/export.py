"""Export a model: follow the recipe, write the file, and check it in a fresh process."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from fedcompress.distill import predict_logits
from fedcompress.errors import BudgetError, ConfigError
from simulations.export.archive import Head, archive_bytes, load_archive, write_archive
from simulations.export.budget import least_size, meet_budget, over_budget
from simulations.export.deployable import Deployable
from simulations.export.installed import check_installed
from simulations.export.levels import BITS, round_weights, stored_arrays
from simulations.export.recipe import FORMATS, Recipe, rungs
from simulations.export.standard import program_bytes, write_program, write_safetensors
from simulations.export.steps import prepare
from simulations.export.verify import Verified, verify
from simulations.records import write_json

CHECKED_ROWS = 2000
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Exported:
    """A file, and what is known of it.

    Attributes
    ----------
    path : Path
        The file; what is known stands beside it in ``<file>.json``.
    kind : str
        Its format.
    recipe : Recipe
        How the model was made smaller.
    bytes, dense_bytes : int
        Size of the file, and of the trained model in float32 as safetensors.
    parameters, nonzero, dense_parameters : int
        Of the model that was written, and of the trained one.
    kernels : dict of str to int
        Kernels that onnxruntime runs it with; empty for other formats.
    verified : Verified
        What a fresh process made of it.
    """

    path: Path
    kind: str
    recipe: Recipe
    bytes: int
    dense_bytes: int
    parameters: int
    nonzero: int
    dense_parameters: int
    kernels: dict[str, int]
    verified: Verified


def export_model(
    deployable: Deployable,
    recipe: Recipe,
    kind: str,
    path: Path | None = None,
    *,
    budget: int | None = None,
    say: Say = lambda _: None,
) -> Exported:
    """Write a model for deployment, and check the file.

    Parameters
    ----------
    deployable : Deployable
        From `load_deployable`.
    recipe : Recipe
        How to make it smaller; with a budget, the least that is done.
    kind : {"onnx", "safetensors", "torch-export", "archive"}
        The format.
    path : Path, optional
        The file; in ``exports/`` of the cell's folder, if not given.
    budget : int, optional
        Most bytes of the file.
    say : callable
        Told what is being done.

    Returns
    -------
    Exported

    Raises
    ------
    ConfigError
        If the budget cannot be met, the recipe cannot be followed, or a library is missing.
    FedcompressError
        If the file does not answer as the model that was written; what stood in its place stays.
    OSError
        If the file cannot be written.
    """
    check_installed(*_NEEDS.get(kind, ()))
    if path is not None:
        _check_out(path, deployable)
    choices = [recipe]
    if budget is not None:
        say("looking for the mildest recipe within the budget")
        choices = _within(deployable, recipe, kind, budget)
    least = 0
    for chosen in choices:
        say("pruning, tuning and writing" if chosen.tune else "writing")
        model = prepare(deployable, chosen, kind)
        file = path or _default_path(deployable, chosen, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=file.parent) as folder:
            draft = Path(folder) / file.name
            size = write(deployable, model, chosen, kind, draft)
            if budget is not None and size > budget:
                least = size  # tuning may leave a little more to say than there was before
                continue
            say("checking in a fresh process")
            exported = replace(_checked(deployable, model, chosen, kind, draft, size), path=file)
            draft.replace(file)
        write_json(file.with_name(f"{file.name}.json"), told(exported, deployable))
        return exported
    raise ConfigError(over_budget(least, budget or 0))


def write(deployable: Deployable, model: nn.Module, recipe: Recipe, kind: str, path: Path) -> int:
    """Write a prepared model in a format; give the bytes of the file."""
    quantize = recipe.quantize
    match kind:
        case "archive":
            stored = _stored(model, recipe)
            return write_archive(stored, _head(deployable, recipe), path)
        case "safetensors":
            told = {"model": _model_told(deployable), "quantize": quantize or "none"}
            return write_safetensors(model, path, quantize=quantize, told=told)
        case "torch-export":
            return write_program(model, deployable.example, path, quantize=quantize)
        case _:
            from simulations.export.onnx_file import write_onnx

            return write_onnx(
                _rounded(model, recipe, kind),
                deployable.example,
                path,
                quantize=quantize,
                calibration=deployable.unlabelled[:1024],
            )


def _rounded(model: nn.Module, recipe: Recipe, kind: str) -> nn.Module:
    # The quantizer of int8 rounds weights itself, to the same levels.
    if recipe.quantize is None or (kind == "onnx" and recipe.quantize == "int8"):
        return model
    return round_weights(model, recipe.quantize, recipe.centroids)


def _stored(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """Give the arrays of an archive: int8 and int4 as levels, else floats that the spec rounds."""
    levels = recipe.quantize if recipe.quantize in BITS and recipe.spec is None else None
    return stored_arrays(model, levels)


def _head(deployable: Deployable, recipe: Recipe) -> Head:
    data = deployable.data
    return Head(
        model=_model_told(deployable),
        data={
            "name": data.name,
            "task": data.task,
            "shape": list(data.sample_shape),
            "num_classes": data.num_classes,
            "vocabulary": data.vocabulary,
            "pixel_mean": list(data.pixel_mean),
            "pixel_std": list(data.pixel_std),
        },
        spec=recipe.archive_spec,
        recipe=recipe.told(),
    )


def _model_told(deployable: Deployable) -> dict[str, Any]:
    settings = deployable.settings
    return {"name": settings.name, "hidden": list(settings.hidden), "width": settings.width}


def _within(deployable: Deployable, recipe: Recipe, kind: str, budget: int) -> list[Recipe]:
    """Give the recipes to try, the first of which is within the budget before it is tuned."""

    def measure(rung: Recipe) -> int:
        model = prepare(deployable, rung, kind, tuned=False)
        if kind == "archive":
            return len(archive_bytes(_stored(model, rung), _head(deployable, rung)))
        with tempfile.TemporaryDirectory() as folder:
            return write(deployable, model, rung, kind, Path(folder) / "measured")

    ladder = rungs(recipe, kind)
    try:
        return ladder[meet_budget(ladder, measure, budget) :]
    except ConfigError:
        if kind != "archive":
            raise
    # Beyond the ladder the codecs' own budget decides what of the weights is told.
    last = ladder[-1]
    sizes = _sizes(lambda most: measure(_budgeted(deployable, last, most)))
    if sizes(budget) > budget:
        raise ConfigError(over_budget(least_size(sizes, budget, measure(last)), budget))
    return [_budgeted(deployable, last, budget)]


def _sizes(measure: Callable[[int], int]) -> Callable[[int], float]:
    """Measure a budget's file; infinite where the codec cannot meet the budget."""

    def size(budget: int) -> float:
        try:
            return measure(budget)
        except BudgetError:
            return math.inf

    return size


def _budgeted(deployable: Deployable, recipe: Recipe, budget: int) -> Recipe:
    """Give a recipe whose payload takes what the head leaves of the budget."""
    spec = "budget(bytes={})"
    stored = stored_arrays(deployable.model, None)
    plain = replace(recipe, spec="lossless()", quantize=None)
    from fedcompress import parse, rng_for

    payload, _ = parse("lossless()").encode(stored, {}, rng_for(0))
    head = len(archive_bytes(stored, _head(deployable, plain))) - len(payload)
    return replace(recipe, spec=spec.format(max(budget - head - 16, 32)), quantize=None)


def _check_out(path: Path, deployable: Deployable) -> None:
    """Refuse to write where a folder stands, or a record of the run."""
    if path.is_dir():
        raise ConfigError(f"export: --out {path} is a folder; name a file in it")
    place, run = path.resolve(), deployable.folder.parents[1].resolve()
    is_record = place.is_relative_to(run) and "exports" not in place.relative_to(run).parts
    if is_record and path.exists():
        raise ConfigError(
            f"export: --out {path} is a record of the run; name another file, or leave --out out"
        )


def _default_path(deployable: Deployable, recipe: Recipe, kind: str) -> Path:
    which = "model" if deployable.which == "global" else deployable.which
    return deployable.folder / "exports" / f"{which}{recipe.name}{FORMATS[kind]}"


def _checked(
    deployable: Deployable, model: nn.Module, recipe: Recipe, kind: str, path: Path, size: int
) -> Exported:
    data = deployable.data
    inputs = data.inputs(data.test_x[:CHECKED_ROWS])
    written = load_archive(path) if kind == "archive" else _rounded(model, recipe, kind)
    verified = verify(
        path,
        kind,
        inputs,
        data.test_y[:CHECKED_ROWS],
        written=predict_logits(written, inputs),
        dense=predict_logits(deployable.model, inputs),
        graph=program_bytes(written, deployable.example) if kind == "safetensors" else b"",
        exact=not (kind == "onnx" and recipe.quantize == "int8"),
    )
    kernels: dict[str, int] = {}
    if kind == "onnx":
        from simulations.export.onnx_file import kernels_of

        kernels, _ = kernels_of(path)
    from strategies.student import count_parameters, file_bytes

    return Exported(
        path=path,
        kind=kind,
        recipe=recipe,
        bytes=size,
        dense_bytes=file_bytes(deployable.model),
        parameters=count_parameters(written),
        nonzero=sum(int((p != 0).sum()) for p in written.parameters()),
        dense_parameters=count_parameters(deployable.model),
        kernels=kernels,
        verified=verified,
    )


def told(exported: Exported, deployable: Deployable) -> dict[str, Any]:
    """Give what stands in the file beside an exported one."""
    return {
        "file": exported.path.name,
        "kind": exported.kind,
        "model": deployable.which,
        "settings": _model_told(deployable),
        "recipe": {**exported.recipe.told(), "unlabelled": deployable.unlabelled_from},
        "bytes": exported.bytes,
        "dense_bytes": exported.dense_bytes,
        "parameters": exported.parameters,
        "nonzero": exported.nonzero,
        "dense_parameters": exported.dense_parameters,
        "kernels": exported.kernels,
        "verified": asdict(exported.verified),
    }
