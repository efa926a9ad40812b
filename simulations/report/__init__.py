"""Reports: a run's folder of records in; the summary table, figures and one-file page out.

Names load on first use, so that importing this package costs neither pandas nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.report.models import part_table, terminal_parts
    from simulations.report.run import Run, load_run
    from simulations.report.summary import summary_table
    from simulations.report.tables import terminal_table
    from simulations.report.write import write_report

__all__ = [
    "Run",
    "load_run",
    "part_table",
    "summary_table",
    "terminal_parts",
    "terminal_table",
    "write_report",
]

_HOMES = {
    "Run": "simulations.report.run",
    "load_run": "simulations.report.run",
    "part_table": "simulations.report.models",
    "summary_table": "simulations.report.summary",
    "terminal_parts": "simulations.report.models",
    "terminal_table": "simulations.report.tables",
    "write_report": "simulations.report.write",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
