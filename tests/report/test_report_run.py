"""Loading a run's folder: finished cells only, cut-off lines passed over, clear faults."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedcompress.errors import ConfigError
from simulations.report import load_run, summary_table, terminal_table

MakeRun = Callable[..., Path]


def test_order_is_the_studys_and_not_the_folders(make_run: MakeRun) -> None:
    run = load_run(make_run())
    table = summary_table(run)
    assert tuple(table["label"]) == run.labels
    assert run.labels[0] == "FedAvg float32"
    assert run.unfinished == ()
    assert set(table["seeds_finished"]) == {3}


def test_unfinished_cells_are_listed_and_never_counted(make_run: MakeRun) -> None:
    folder = make_run(unfinished=[("STC both ways", 2)])
    run = load_run(folder)
    (cell,) = run.unfinished
    assert (cell.label, cell.seed, cell.rounds_done) == ("STC both ways", 2, 20)
    for frame in (run.rounds, run.clients, run.results):
        assert frame[(frame["label"] == "STC both ways") & (frame["seed"] == 2)].empty
    row = summary_table(run).set_index("label").loc["STC both ways"]
    assert (row["seeds_finished"], row["seeds_expected"]) == (2, 3)
    assert any("2 of 3 (unfinished)" in texts for texts in terminal_table(run))


def test_change_compares_the_seeds_that_both_finished(make_run: MakeRun) -> None:
    whole = summary_table(load_run(make_run(name="whole"))).set_index("label")
    part = make_run(name="part", unfinished=[("STC both ways", 1)])
    partial = summary_table(load_run(part)).set_index("label")
    change = "accuracy_change_points"
    assert partial.loc["STC both ways", change] == pytest.approx(
        whole.loc["STC both ways", change], abs=0.01
    )


def test_a_cell_that_never_started_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    (cell,) = folder.glob("cells/stc*seed3")
    cell.rename(folder / "elsewhere")
    (missing,) = load_run(folder).unfinished
    assert (missing.label, missing.seed, missing.reason) == ("STC both ways", 3, "not started")


def test_a_result_without_its_rounds_is_no_result(make_run: MakeRun) -> None:
    folder = make_run()
    (records,) = folder.glob("cells/stc*seed3/rounds.jsonl")
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join(lines[:8]), "utf-8")
    (cell,) = load_run(folder).unfinished
    assert cell.reason == "records stop at round 7 of 20"


def test_a_cut_off_last_line_is_passed_over(make_run: MakeRun) -> None:
    folder = make_run()
    before = summary_table(load_run(folder))
    (records,) = folder.glob("cells/stc*seed3/rounds.jsonl")
    with records.open("a", encoding="utf-8") as file:
        file.write('{"round": 21, "accur')
    assert summary_table(load_run(folder)).equals(before)


def test_a_broken_line_in_the_middle_names_file_and_line(make_run: MakeRun) -> None:
    folder = make_run()
    (records,) = folder.glob("cells/stc*seed3/rounds.jsonl")
    lines = records.read_text("utf-8").splitlines(keepends=True)
    records.write_text("".join([*lines[:3], '{"round": 3, "acc\n', *lines[4:]]), "utf-8")
    with pytest.raises(ConfigError, match=r"rounds\.jsonl, line 4 is not valid JSON"):
        load_run(folder)


@pytest.mark.parametrize("present", [True, False])
def test_another_folder_is_refused(tmp_path: Path, present: bool) -> None:
    folder = tmp_path / "photos"
    if present:
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"photos.*fedcompress run"):
        load_run(folder)


def test_a_run_just_begun_has_rows_without_numbers(make_run: MakeRun) -> None:
    folder = make_run()
    for result in folder.glob("cells/*/result.json"):
        result.unlink()
    run = load_run(folder)
    assert len(run.unfinished) == 15
    assert run.results.empty
    rows = terminal_table(run)
    assert len(rows) == 6
    assert rows[1][1] == "n/a"


def test_a_study_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="no strategy and no cell"):
        load_run(tmp_path)


def test_a_strategy_without_label_goes_by_its_method(make_run: MakeRun) -> None:
    folder = make_run()
    study = json.loads((folder / "study.json").read_text("utf-8"))
    study["study"]["strategies"] = [{"label": "", "method": "fedprox"}]
    (folder / "study.json").write_text(json.dumps(study), "utf-8")
    assert load_run(folder).labels[0] == "fedprox"


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "pandas", "matplotlib", "jinja2", "scipy"
    code = (
        "import sys, simulations.report; "
        f"sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    package = importlib.import_module("simulations.report")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense
