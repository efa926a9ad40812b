"""A run's table on the terminal and its report on the disk."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_results(folder: Path, console: Console | None = None) -> None:
    """Write the report of a run's folder, print its table and the report's path.

    Raises
    ------
    ConfigError
        If the folder is no run's, or its records cannot be read.
    OSError
        If the report cannot be written.
    """
    # Imported now: a run need not wait for pandas and matplotlib to begin.
    from simulations.report import load_run, terminal_table, write_report
    from simulations.report.tables import CAPTION

    console = console or Console()
    headings, *rows = terminal_table(load_run(folder))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=CAPTION, caption_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    # Piped output has no width of its own; the table keeps the one that it needs.
    wide = console if console.is_terminal else Console(width=160)
    report = write_report(folder)
    wide.print(table)
    console.print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)
