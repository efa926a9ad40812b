"""The one-file HTML page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulations.report.deployment import Deployment
from simulations.report.deployment_page import deployment_parts
from simulations.report.figure import Figure
from simulations.report.inline import inline_svg, key_svg
from simulations.report.models import (
    PART_CAPTION,
    PART_HEADINGS,
    STUDENT_CAPTION,
    STUDENT_HEADINGS,
    part_rows,
    student_rows,
)
from simulations.report.run import Run
from simulations.report.study import resolved_study, section
from simulations.report.style import SERIES
from simulations.report.tables import HEADINGS, text_rows
from simulations.report.text import bytes_text, change_text, ratio_text
from simulations.report.totals import traffic_by_label

_HERE = Path(__file__).parent
ACCEPTED_LOSS_POINTS = 1.0
"""A saving is a headline only where accuracy stays within this of the first row."""


def page(
    run: Run,
    summary: pd.DataFrame,
    parts: pd.DataFrame,
    figures: Sequence[Figure],
    deployment: Deployment | None = None,
    deployment_figures: Sequence[Figure] = (),
) -> str:
    """Return `report.html`: one file, nothing loaded from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    resolved = resolved_study(run.study)
    has_results = not run.results.empty
    drawn = [_figure_parts(figure) for figure in figures] if has_results else []
    keys = next((f.legend for f in figures if f.by_strategy), ()) if has_results else ()
    return environment.get_template("page.html.jinja").render(
        css=Markup((_HERE / "page.css").read_text("utf-8")),  # noqa: S704 - the package's own file
        series_count=len(SERIES),
        run=run,
        title=run.title,
        lead=_lead(run),
        findings=_findings(summary),
        headings=HEADINGS,
        rows=text_rows(summary),
        single_seed=has_results and int(summary["seeds_finished"].max()) == 1,
        figures=drawn,
        keys=[(run.labels.index(key.text), key.text, Markup(key_svg(key))) for key in keys],  # noqa: S704
        deployment=None
        if deployment is None
        else {
            **deployment_parts(deployment),
            "figures": [_figure_parts(figure) for figure in deployment_figures],
        },
        dense=_dense_model(run),
        strategies=summary[["label", "method", "uplink", "downlink"]].to_dict("records"),
        parts=_table(PART_HEADINGS, part_rows(parts), PART_CAPTION),
        students=_table(STUDENT_HEADINGS, student_rows(run), STUDENT_CAPTION),
        settings=flattened({k: v for k, v in resolved.items() if k not in _SHOWN_APART}),
        provenance=flattened({k: v for k, v in run.study.items() if k not in _SHOWN_APART}),
        commit=_commit(run).removesuffix("-dirty"),
        dirty=_commit(run).endswith("-dirty"),
        resolved_json=json.dumps(resolved, indent=2, ensure_ascii=False, sort_keys=False),
    )


_SHOWN_APART = ("study", "strategies", "strategy")


def flattened(source: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of a dotted key and its value as text."""
    rows: list[tuple[str, str]] = []
    for key, value in source.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flattened(value, f"{name}.")
        elif isinstance(value, str):
            rows.append((name, value))
        elif value is not None:
            rows.append((name, json.dumps(value, ensure_ascii=False)))
    return rows


def _table(
    headings: tuple[str, ...], rows: list[tuple[str, ...]], caption: str
) -> dict[str, object] | None:
    return {"headings": headings, "rows": rows, "caption": caption} if rows else None


def _figure_parts(figure: Figure) -> dict[str, object]:
    keys = [] if figure.by_strategy else figure.legend
    return {
        "name": figure.name,
        "kind": "curve" if figure.by_strategy else "rows",
        "title": figure.title,
        "caption": figure.caption,
        "svg": Markup(inline_svg(figure)),  # noqa: S704 - drawn here, labels escaped by matplotlib
        "keys": [(entry.text, Markup(key_svg(entry))) for entry in keys],  # noqa: S704
        "notes": figure.notes,
        "columns": figure.columns,
        "rows": figure.rows,
    }


def _lead(run: Run) -> str:
    resolved = resolved_study(run.study)
    data, partition = section(resolved, "data"), section(resolved, "partition")
    parts = [_count(len(run.labels), "strategy", "strategies")]
    seeds = max(run.seeds_expected.values(), default=0)
    if seeds:
        parts.append(_count(seeds, "seed", "seeds"))
    if data.get("name"):
        parts.append(f"{data['name']} data")
    if partition.get("clients"):
        kind = partition.get("kind", "")
        skewed = kind in ("dirichlet", "drawn_dirichlet") and "alpha" in partition
        spread = f"({partition['alpha']})" if skewed else ""
        parts.append(f"{partition['clients']} clients, {kind}{spread} partition")
    if resolved.get("rounds"):
        parts.append(f"{resolved['rounds']} rounds")
    return " · ".join(parts)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _findings(summary: pd.DataFrame) -> list[dict[str, str]]:
    """Return the three figures that a reader looks for first."""
    finished = summary[summary["seeds_finished"] > 0]
    if len(finished) < 2:
        return []
    close = finished[finished["accuracy_change_points"] >= -ACCEPTED_LOSS_POINTS]
    lost = f"at most {ACCEPTED_LOSS_POINTS:g} point lost"
    chosen = (
        ("Most accurate", finished, "accuracy_percent"),
        (f"Smallest uplink, {lost}", close, "uplink_ratio"),
        (f"Least traffic in all, {lost}", close, "all_traffic_ratio"),
    )
    found = []
    for title, rows, column in chosen:
        if rows[column].isna().all():
            continue
        row = rows.sort_values([column, "accuracy_percent"], kind="stable").iloc[-1]
        found.append(
            {
                "title": title,
                "value": _finding_value(column, float(row[column])),
                "label": str(row["label"]),
                "note": _finding_note(column, row, str(summary["label"].iloc[0])),
            }
        )
    return found


def _finding_value(column: str, value: float) -> str:
    return f"{value:.2f} %" if column == "accuracy_percent" else ratio_text(value)


def _finding_note(column: str, row: pd.Series, first: str) -> str:
    what = {
        "accuracy_percent": "test accuracy, mean over seeds",
        "uplink_ratio": "fewer uplink bytes than dense",
        "all_traffic_ratio": "fewer bytes than dense, both directions",
    }[column]
    change = float(row["accuracy_change_points"])
    if math.isnan(change) or row["label"] == first:
        return what
    return f"{what}; {change_text(change)} points against {first}"


def _dense_model(run: Run) -> str:
    traffic = traffic_by_label(run)
    return bytes_text(max(t.dense_bytes for t in traffic.values())) if traffic else ""


def _commit(run: Run) -> str:
    commit = run.study.get("commit")
    return commit if isinstance(commit, str) else ""
