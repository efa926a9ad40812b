"""Loading a run's folder: finished cells only, cut-off lines passed over, clear faults."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedcompress.errors import ConfigError
from simulations.report import load_run, summary_table, terminal_table, write_report
from simulations.report.write import current_report

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
    run = load_run(folder)
    (cell,) = run.unfinished
    assert cell.damaged
    assert cell.reason == (
        f"damaged: rounds.jsonl stops at round 7 of 20; remove {records.parent} "
        "and run the study again"
    )
    assert any("2 of 3 (1 damaged)" in texts for texts in terminal_table(run))
    page = write_report(folder).read_text("utf-8")
    assert "1 damaged cell" in page
    assert "unfinished cell" not in page


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_missing_records_of_a_finished_cell_are_damage(make_run: MakeRun, name: str) -> None:
    folder = make_run()
    (records,) = folder.glob(f"cells/stc*seed3/{name}")
    records.unlink()
    (cell,) = load_run(folder).unfinished
    assert cell.damaged
    assert cell.reason.startswith(f"damaged: {name} is missing; remove ")


def test_a_row_lost_in_the_middle_is_damage(make_run: MakeRun) -> None:
    folder = make_run()
    for name, row, said in (
        ("rounds.jsonl", 5, "rounds.jsonl lacks round 5"),
        ("clients.jsonl", 5, "clients.jsonl holds 79 of 80 rows"),
    ):
        (records,) = folder.glob(f"cells/stc*seed3/{name}")
        whole = records.read_bytes()
        lines = whole.splitlines(keepends=True)
        records.write_bytes(b"".join([*lines[:row], *lines[row + 1 :]]))
        (cell,) = load_run(folder).unfinished
        assert said in cell.reason
        records.write_bytes(whole)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_broken_study_file_has_its_own_mend(make_run: MakeRun, content: bytes) -> None:
    folder = make_run()
    (folder / "study.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.json is damaged: .*; put back a copy of it"):
        load_run(folder)


def test_a_report_is_current_until_a_record_is_newer(make_run: MakeRun) -> None:
    folder = make_run(seeds=(1,))
    assert current_report(folder) is None
    report = folder / "report.html"
    report.write_text("page", "utf-8")
    assert current_report(folder) == report
    (result,) = folder.glob("cells/stc*/result.json")
    os.utime(result, (time.time() + 60, time.time() + 60))
    assert current_report(folder) is None


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
    with pytest.raises(ConfigError, match=r"rounds\.jsonl, line 4, is damaged.*remove"):
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
