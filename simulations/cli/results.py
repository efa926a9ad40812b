"""A run's table on the terminal and its report on the disk."""

import logging
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from simulations.cli.table import print_table

PIPED_WIDTH = 160
"""Columns of output that goes to no terminal and has no width of its own."""


def show_results(
    folder: Path, console: Console | None = None, *, quiet: bool = False, keep: bool = False
) -> None:
    """Write the report of a run's folder, print its table and the report's path.

    Parameters
    ----------
    folder : Path
        The run's folder.
    console : Console, optional
        Where to print.
    quiet : bool
        Do not say meanwhile what is done.
    keep : bool
        Leave a report as it is that no record is newer than.

    Raises
    ------
    ConfigError
        If the folder is no run's, or its records cannot be read.
    OSError
        If the report cannot be written.
    """
    console = console or Console()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    with nullcontext() if quiet else console.status("writing the report"):
        # Imported now: a run need not wait for pandas and matplotlib to begin.
        from simulations.report import load_run, terminal_parts, terminal_table, write_report
        from simulations.report.write import current_report

        run = load_run(folder)
        kept = current_report(folder) if keep else None
        report = kept or write_report(folder)
    wide = console if console.is_terminal else Console(width=PIPED_WIDTH)
    print_table(terminal_table(run), wide)
    parts = terminal_parts(run)
    if parts:
        print_table(parts, wide, dispensable_first=("Clients", "Parameters"), captions={})
    for cell in run.unfinished:
        if cell.damaged:
            wide.print(f"{cell.label}, seed {cell.seed}: {cell.reason}", style="red", markup=False)
    note = "" if kept is None else " (no record is newer; `fedcompress report` writes it anew)"
    console.print(f"Report: {report}{note}", soft_wrap=True, highlight=False, markup=False)
