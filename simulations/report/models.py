"""The models of a run beside the global ones: those of groups or widths, and students."""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from simulations.report.intervals import mean_and_interval
from simulations.report.run import Run, rows_of
from simulations.report.text import NOT_AVAILABLE, accuracy_text, bytes_text, change_text

PART_HEADINGS = (
    "Strategy",
    "Model",
    "Clients",
    "Parameters",
    "Accuracy %",
    "Change",
    "Seeds",
)
PART_CAPTION = (
    "Each model by itself: of a group of clients, or of a width. Accuracy: mean of the last rounds "
    "± half the 95 % t-interval over seeds. Change: points against the same model in the first "
    "strategy that has it."
)
STUDENT_HEADINGS = (
    "Strategy",
    "Seed",
    "Global model %",
    "Student %",
    "Agreement %",
    "Parameters",
    "File",
)
STUDENT_CAPTION = (
    "One row per finished cell. Accuracy is on test data after the last round; agreement is how "
    "often the student predicts what the global model predicts, on held-out proxy data."
)


def part_table(run: Run) -> pd.DataFrame:
    """Return one row for each strategy and model that was tested by itself.

    Returns
    -------
    pandas.DataFrame
        Columns `label`, `model` (text), `clients`, `parameters` (counts; None where they are not
        known), `accuracy_percent`, `accuracy_interval_percent` (NaN with one seed),
        `accuracy_change_points`, `seeds`. Empty where the run has no such models.
    """
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    facts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for cell in run.results.to_dict("records"):
        parts = cell.get("final_accuracy_by_part")
        for name, accuracy in (parts if isinstance(parts, Mapping) else {}).items():
            if accuracy is None:
                continue
            key = str(cell["label"]), str(name)
            accuracies.setdefault(key, {})[int(cell["seed"])] = 100 * float(accuracy)
            facts[key] = _facts(cell, name)
    first: dict[str, dict[int, float]] = {}
    rows = []
    for (label, name), by_seed in accuracies.items():
        mean, interval = mean_and_interval(list(by_seed.values()))
        start = first.setdefault(name, by_seed)
        change, _ = mean_and_interval([v - start[s] for s, v in by_seed.items() if s in start])
        rows.append(
            {
                "label": label,
                "model": name,
                "clients": facts[label, name].get("clients"),
                "parameters": facts[label, name].get("parameters"),
                "accuracy_percent": mean,
                "accuracy_interval_percent": interval,
                "accuracy_change_points": change,
                "seeds": len(by_seed),
            }
        )
    rows.sort(key=lambda row: run.labels.index(row["label"]))
    return pd.DataFrame(rows, dtype=object)


def part_rows(parts: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one tuple of texts per model, in the order of `PART_HEADINGS`."""
    return [
        (
            str(row["label"]),
            str(row["model"]),
            _count(row["clients"]),
            _count(row["parameters"]),
            accuracy_text(row["accuracy_percent"], row["accuracy_interval_percent"]),
            change_text(row["accuracy_change_points"]),
            str(row["seeds"]),
        )
        for row in parts.to_dict("records")
    ]


def terminal_parts(run: Run) -> list[tuple[str, ...]]:
    """Return the models as texts, the headings first; nothing where there are none."""
    rows = part_rows(part_table(run))
    table = [(f"{label} · {model}", *texts) for label, model, *texts in rows]
    return [("By itself", *PART_HEADINGS[2:]), *table] if rows else []


def student_rows(run: Run) -> list[tuple[str, ...]]:
    """Return one tuple of texts per finished cell that has a student."""
    if run.results.empty or "student" not in run.results:
        return []
    return [
        (
            str(row["label"]),
            str(row["seed"]),
            _percent(_last_accuracy(run, str(row["label"]), int(row["seed"]))),
            _percent(student.get("accuracy")),
            _percent(student.get("agreement")),
            f"{student['parameters']:,} of {student['teacher_parameters']:,}",
            f"{bytes_text(student['file_bytes'])} of {bytes_text(student['teacher_file_bytes'])}",
        )
        for row in run.results.to_dict("records")
        if isinstance(student := row["student"], Mapping)
    ]


def _facts(cell: Mapping[Hashable, Any], name: str) -> Mapping[str, Any]:
    """Find what a cell's result says of the size of one of its models."""
    for kind in ("groups", "levels"):
        told = cell.get(kind)
        about = told.get(name) if isinstance(told, Mapping) else None
        if isinstance(about, Mapping):
            return about
    return {}


def _last_accuracy(run: Run, label: str, seed: int) -> float | None:
    """Return the accuracy of the model that the student learnt from."""
    evaluated = rows_of(run.rounds, label, seed).sort_values("round")["accuracy"].dropna()
    return None if evaluated.empty else float(evaluated.iloc[-1])


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else NOT_AVAILABLE


def _percent(share: object) -> str:
    return f"{100 * share:.2f}" if isinstance(share, int | float) else NOT_AVAILABLE
