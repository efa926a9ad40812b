"""What the smaller models of a run cost and why: measured, written to the report, printed."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.status import Status

from fedcompress.errors import ConfigError
from simulations.cli.results import PIPED_WIDTH
from simulations.cli.table import print_table

DISPENSABLE = (
    "Seeds",
    "Saliency",
    "Not zero %",
    "Parameters",
    "ECE %",
    "Multiply-adds",
    "Faster at 64",
    "Batch 64 µs",
    "Agreement %",
)
CAPTIONS = {
    "Smaller": "Smaller, faster: the dense model's ÷ this one's.",
    "Batch 1 µs": "µs: a call on one thread of onnxruntime, median, all models in turn.",
    "Change": "Change: points against the dense model ± half the 95 % interval.",
    "Agreement %": "Agreement: answers as the dense model does.",
    "ECE %": "ECE: expected calibration error.",
    "Saliency": "Saliency: rank correlation of what they look at with the dense model's.",
}


def explain_command(folder: Path, *, cell: str | None, rows: int, data_dir: Path | None) -> None:
    """Measure the deployed models of a run's cells, write the report, and print them.

    Parameters
    ----------
    folder : Path
        The run's folder.
    cell : str, optional
        Name of one cell's folder; all finished cells without it.
    rows : int
        Test rows that models answer, at most.
    data_dir : Path, optional
        Where data sets lie now, if not where they lay.

    Raises
    ------
    ConfigError
        If the folder is no run's, no such cell is finished, or a package is missing.
    OSError
        If a file cannot be written.
    """
    if rows < 1:
        raise ConfigError(f"explain: --rows must be at least 1, got {rows}; did you mean 1000?")
    console = Console()
    with console.status("reading the run") as status:
        from simulations.explain.cell import cells_to_explain, explain_cell
        from simulations.report import load_run, write_report
        from simulations.report.deployment import HEADINGS, load_deployment, text_rows

        load_run(folder)  # a folder that no report can be made of is refused before the work
        for path in cells_to_explain(folder, cell):
            explain_cell(
                path,
                most_rows=rows,
                data_dir=None if data_dir is None else str(data_dir),
                tell=_teller(status, path.name),
            )
        status.update("writing the report")
        report = write_report(folder)
        deployment = load_deployment(load_run(folder))
    wide = console if console.is_terminal else Console(width=PIPED_WIDTH)
    if deployment is not None:
        table = [HEADINGS, *text_rows(deployment)]
        print_table(table, wide, dispensable_first=DISPENSABLE, captions=CAPTIONS)
        for file, reason in deployment.problems:
            wide.print(f"{file}: {reason}", style="red", markup=False)
    console.print(f"Report: {report}#deployment", soft_wrap=True, highlight=False, markup=False)


def _teller(status: Status, name: str) -> Callable[[str], None]:
    return lambda what: status.update(f"{name}: {what}")
