"""Models that were tested by themselves: on the page, in the tables, in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simulations.report import load_run, part_table, terminal_parts, write_report

MakeRun = Callable[..., Path]
PARTS = {
    "FedAvg float32": {"mlp": 0.80, "lenet": 0.90},
    "STC both ways": {"mlp": 0.85, "lenet": None},
}


@pytest.fixture
def parts_run(make_run: MakeRun) -> Path:
    """A run two of whose strategies have models of groups, one point better with each seed."""
    folder = make_run()
    for path in folder.glob("cells/*/result.json"):
        result: dict[str, Any] = json.loads(path.read_text())
        if result["label"] in PARTS:
            result["final_accuracy_by_part"] = {
                name: None if share is None else share + result["seed"] / 100
                for name, share in PARTS[result["label"]].items()
            }
            result["groups"] = {"mlp": {"clients": 3, "parameters": 1510}}
            path.write_text(json.dumps(result))
    return folder


def test_each_model_has_its_accuracy_and_its_change(parts_run: Path) -> None:
    table = part_table(load_run(parts_run)).set_index(["label", "model"])
    assert list(table.index) == [
        ("FedAvg float32", "mlp"),
        ("FedAvg float32", "lenet"),
        ("STC both ways", "mlp"),
    ]
    seeds = table.loc[("FedAvg float32", "mlp"), "seeds"]
    mean_seed = (seeds + 1) / 2  # seeds count from 1 here
    assert table.loc[("FedAvg float32", "mlp"), "accuracy_percent"] == pytest.approx(80 + mean_seed)
    assert table.loc[("FedAvg float32", "mlp"), "accuracy_interval_percent"] > 0
    changes = table["accuracy_change_points"].astype(float)
    assert list(changes) == pytest.approx([0, 0, 5])
    assert table.loc[("STC both ways", "mlp"), "parameters"] == 1510
    assert pd.isna(table.loc[("FedAvg float32", "lenet"), "parameters"])


@pytest.mark.usefixtures("page_only")
def test_it_is_written_and_printed(parts_run: Path) -> None:
    page = write_report(parts_run).read_text("utf-8")
    markdown = (parts_run / "tables" / "models.md").read_text("utf-8")
    assert "Each model by itself" in page
    assert "| STC both ways | mlp | 3 | 1,510 |" in markdown
    assert (parts_run / "tables" / "models.csv").read_text().count("\n") == 4
    headings, *rows = terminal_parts(load_run(parts_run))
    assert {len(row) for row in rows} == {len(headings)}
    assert rows[-1][0] == "STC both ways · mlp"


@pytest.mark.usefixtures("page_only")
def test_a_run_without_such_models_says_nothing_of_them(make_run: MakeRun) -> None:
    folder = make_run()
    page = write_report(folder).read_text("utf-8")
    assert "Each model by itself" not in page
    assert not (folder / "tables" / "models.md").exists()
    assert terminal_parts(load_run(folder)) == []
    assert "1,210 of 17,226" in (folder / "tables" / "students.md").read_text("utf-8")
