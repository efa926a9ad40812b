"""Write figures, tables and the page into a run's folder."""

from pathlib import Path

from simulations.records import write_whole
from simulations.report import deployment as deployments
from simulations.report.bars import direction_figure, stream_figure
from simulations.report.curves import curve_figures
from simulations.report.deployment_figures import deployment_figures
from simulations.report.figure import FORMATS, Figure, render
from simulations.report.models import (
    PART_CAPTION,
    PART_HEADINGS,
    STUDENT_CAPTION,
    STUDENT_HEADINGS,
    part_rows,
    part_table,
    student_rows,
)
from simulations.report.page import page
from simulations.report.run import Run, load_run
from simulations.report.seconds import seconds_figure
from simulations.report.simulated import time_figure
from simulations.report.summary import summary_table
from simulations.report.tables import csv_table, latex_table, markdown_of, markdown_table


def write_report(folder: str | Path) -> Path:
    """Write `figures/`, `tables/` and `report.html` from the records in `folder`.

    The same records give the same bytes. Each file appears whole or not at all. Without any
    finished cell the page says so and no figure is drawn.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    ConfigError
        If `folder` is not a run's folder or its records cannot be read.
    OSError
        If a file cannot be written.
    """
    run = load_run(folder)
    summary = summary_table(run)
    figures = all_figures(run)
    deployment = deployments.load_deployment(run)
    deployed = [] if deployment is None else deployment_figures(deployment)
    if not run.results.empty:
        for figure in [*figures, *deployed]:
            for file_format in FORMATS:
                path = run.folder / "figures" / f"{figure.name}.{file_format}"
                _write(path, render(figure, file_format))
    tables = {
        "results.csv": csv_table(summary),
        "results.md": markdown_table(summary),
        "results.tex": latex_table(summary),
    }
    parts, students = part_table(run), student_rows(run)
    if len(parts):
        tables["models.csv"] = csv_table(parts)
        tables["models.md"] = markdown_of(PART_HEADINGS, part_rows(parts), PART_CAPTION, texts=2)
    if students:
        tables["students.md"] = markdown_of(STUDENT_HEADINGS, students, STUDENT_CAPTION)
    if deployment is not None:
        tables["deployment.md"] = markdown_of(
            deployments.HEADINGS,
            deployments.text_rows(deployment),
            deployments.caption(deployment),
        )
    for name, text in tables.items():
        _write(run.folder / "tables" / name, text.encode("utf-8"))
    report = run.folder / "report.html"
    _write(report, page(run, summary, parts, figures, deployment, deployed).encode("utf-8"))
    return report


def current_report(folder: str | Path) -> Path | None:
    """Return the page of a run's folder if every record was there when it was written."""
    folder = Path(folder)
    report = folder / "report.html"
    if not report.is_file():
        return None
    records = [folder / "study.json", *folder.glob("cells/*"), *folder.glob("cells/*/*.json*")]
    newest = max(path.stat().st_mtime_ns for path in records)
    return report if newest <= report.stat().st_mtime_ns else None


def all_figures(run: Run) -> list[Figure]:
    """Return every figure of how a run trained, in the page's order."""
    bars, seconds = [direction_figure(run), stream_figure(run)], seconds_figure(run)
    if seconds.rows:  # older records say nothing of it
        bars.append(seconds)
    return [*curve_figures(run), time_figure(run), *bars]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
