"""Medians of the engines' runs, the bars they are held to, and both as text."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engine_rows import SKIPPED_ROUNDS, Bar
from benchmarks.tables import text_table

Figures = Mapping[str, float]

_COLUMNS = (
    ("s a round", "round_seconds", ".4f"),
    ("lowest", "round_seconds_lowest", ".4f"),
    ("highest", "round_seconds_highest", ".4f"),
    ("CPU s", "cpu_seconds", ".4f"),
    ("start s", "start_seconds", ".1f"),
    ("1st round s", "first_round_seconds", ".1f"),
    ("PSS MB", "worker_pss_mb", ".0f"),
    ("half", "worker_pss_half_mb", ".0f"),
    ("at end", "worker_pss_end_mb", ".0f"),
    ("driver MB", "driver_peak_mb", ".0f"),
    ("loss", "loss", ".4f"),
    ("load", "load", ".1f"),
)


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give the median over runs of each figure; of the rounds, the median of each run's median.

    The first rounds of each run are left out; the lowest and highest of the runs' medians show
    how far they lie apart.
    """
    of_runs = [statistics.median(run["rounds"][SKIPPED_ROUNDS:]) for run in runs]
    figures = {
        "round_seconds": statistics.median(of_runs),
        "round_seconds_lowest": min(of_runs),
        "round_seconds_highest": max(of_runs),
    }
    for name in runs[0]:
        values = [value for run in runs if isinstance(value := run.get(name), int | float)]
        if len(values) == len(runs):
            figures[name] = statistics.median(values)
    return figures


def judge(bars: Sequence[Bar], figures: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """Judge the bars whose jobs have run."""
    judged = []
    for bar in bars:
        if bar.over not in figures or (bar.under is not None and bar.under not in figures):
            continue
        value = figures[bar.over].get(bar.measure)
        name = f"{bar.over} {_words(bar.measure)}"
        if value is not None and bar.under is not None:
            below = bar.under_measure or bar.measure
            under = figures[bar.under].get(below)
            value = None if under is None else value / under
            name = f"{name} ÷ {bar.under} {_words(below)}"
        if value is not None:
            asked = f"≥ {bar.at_least:g}" if bar.at_least is not None else f"≤ {bar.at_most:g}"
            judged.append({"bar": name, "asked": asked, "found": value, "holds": bar.holds(value)})
    return judged


def row_table(figures: Mapping[str, Figures]) -> str:
    """Lay out one row's engines.

    ``×`` and ``× CPU`` are wall and CPU time of a round against the first engine's. The load is
    that of the machine before each run: well above 0, wall times say little.
    """
    first = next(iter(figures.values()), {"round_seconds": 1.0, "cpu_seconds": 1.0})
    columns = [
        column for column in _COLUMNS if any(column[1] in values for values in figures.values())
    ]
    lines = [
        (
            label,
            *(f"{values[name] / first[name]:.2f}" for name in ("round_seconds", "cpu_seconds")),
            *(f"{values[key]:{form}}" if key in values else "" for _, key, form in columns),
        )
        for label, values in figures.items()
    ]
    return text_table(("engine", "×", "× CPU", *(heading for heading, _, _ in columns)), lines)


def bars_table(bars: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Lay out what was asked and what was found, row by row."""
    lines = [
        (title, one["bar"], one["asked"], f"{one['found']:.3g}", "yes" if one["holds"] else "NO")
        for title, ones in bars.items()
        for one in ones
    ]
    return text_table(("row", "bar", "asked", "found", "holds"), lines)


def _words(measure: str) -> str:
    return {
        "round_seconds": "round",
        "first_round_seconds": "first round's end",
        "start_seconds": "start, s",
        "driver_peak_mb": "driver, MB",
        "worker_pss_mb": "worker, MB",
        "worker_pss_half_mb": "worker after half, MB",
        "worker_pss_end_mb": "worker at the end, MB",
    }[measure]
