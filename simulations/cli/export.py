"""`fedcompress export`: a finished cell's model as a file for deployment."""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from simulations.export import Exported, export_model, load_deployable, read_recipe
from simulations.export.budget import read_bytes_text
from simulations.export.export import told
from simulations.export.recipe import check_format


def export_command(
    folder: Path,
    *,
    to: str,
    cell: str | None,
    model: str,
    prune: Sequence[str],
    quantize: str | None,
    tune: int,
    importance: str,
    budget: str | None,
    out: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Export a model of a run, and print what was written.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    to, prune, quantize, tune, importance
        See `simulations.export.read_recipe`.
    cell : str or None
        Which cell, where there are several.
    model : str
        ``global``, ``student``, or a group's name.
    budget : str or None
        Most bytes of the file, such as ``100kB``.
    out : Path or None
        The file, in place of one in the cell's folder.
    data_dir : Path or None
        Where data sets lie now.
    as_json : bool
        Print one JSON object.

    Raises
    ------
    ConfigError
        If an option cannot work on this run.
    FedcompressError
        If the file does not answer as the model that was written.
    """
    # Options are read first: a slip is told before data are loaded.
    kind, recipe = check_format(to), read_recipe(prune, quantize, tune, importance)
    most = None if budget is None else read_bytes_text(budget)
    console = Console()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    quiet = as_json or not console.is_terminal
    with nullcontext() if quiet else console.status("loading") as status:
        deployable = load_deployable(
            folder, cell, model, None if data_dir is None else str(data_dir)
        )
        exported = export_model(
            deployable,
            recipe,
            kind,
            out,
            budget=most,
            say=(lambda _: None) if status is None else status.update,
        )
    about = told(exported, deployable)
    if as_json:
        Console().print_json(json.dumps({**about, "file": str(exported.path)}))
        return
    _show(exported, about, console)


def _show(exported: Exported, about: dict[str, Any], console: Console) -> None:
    verified, recipe = exported.verified, exported.recipe
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    smaller = exported.dense_bytes / exported.bytes
    table.add_row("bytes", f"{exported.bytes:,}")
    table.add_row("smaller than float32", f"{smaller:.2f} ×")
    table.add_row("parameters", f"{exported.parameters:,} of {exported.dense_parameters:,}")
    if recipe.entries:
        table.add_row("of them not zero", f"{exported.nonzero:,}")
    table.add_section()
    table.add_row("accuracy", f"{verified.accuracy:.2%}")
    table.add_row("accuracy as trained", f"{verified.dense_accuracy:.2%}")
    table.add_row("same class as trained", f"{verified.agreement:.2%}")
    table.add_row("largest difference of a logit", f"{verified.max_difference:.2g}")
    console.print(table)
    integers = [f"{n} {kind}" for kind, n in exported.kernels.items() if kind.startswith(_INTEGERS)]
    notes = [
        f"Checked in a fresh process{' without this package' if verified.alone else ''} on "
        f"{verified.rows:,} test rows.",
        f"Integer kernels: {', '.join(integers)}." if integers else "",
        f"Tuned or calibrated on {about['recipe']['unlabelled']}."
        if recipe.tune or recipe.quantize == "int8"
        else "",
    ]
    console.print(" ".join(filter(None, notes)), style="dim italic", highlight=False, markup=False)
    console.print(f"File: {exported.path}", soft_wrap=True, highlight=False, markup=False)


_INTEGERS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
