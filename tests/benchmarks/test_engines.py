"""The benchmark of engines: its rows can be asked for, its figures are medians, and it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.engine_rows import ENGINES, SKIPPED_ROUNDS, Bar, Job, Row, chosen_rows, rows
from benchmarks.engine_table import bars_table, judge, medians, row_table
from benchmarks.engines import main
from fedcompress.errors import ConfigError
from simulations.cell import Cell

SECONDS = st.floats(0.001, 1000)


@pytest.mark.parametrize("row", rows().values(), ids=rows())
def test_a_row_can_be_run_and_judged(row: Row) -> None:
    for job in row.jobs.values():
        assert job.engine in ENGINES
        assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
        cell = Cell.from_run_config(job.workload.run_config("/data"))
        assert cell.rounds == SKIPPED_ROUNDS + job.workload.rounds
        assert cell.partition.clients == job.workload.clients
        assert round(cell.federation.fraction * cell.partition.clients) == job.workload.per_round
        assert cell.strategy.uplink == cell.strategy.downlink
        assert (cell.strategy.uplink is None) == (not job.workload.spec)
    assert row.bars
    for bar in row.bars:
        assert bar.over in row.jobs
        assert bar.under is None or bar.under in row.jobs
        assert (bar.at_least is None) != (bar.at_most is None)


def test_registered_clients_draw_rows_of_their_own() -> None:
    registered = [
        job.workload
        for name in ("registered-100k", "registered-1m")
        for job in rows()[name].jobs.values()
    ]
    assert {one.clients for one in registered} == {100, 1_000, 100_000, 1_000_000}
    for workload in registered:
        cell = Cell.from_run_config(workload.run_config("/data"))
        assert cell.partition.kind == "drawn"
        assert cell.partition.samples_per_client == workload.samples > 0
        # What they are compared with differs in nothing but how many there are.
        assert replace(workload, clients=1, rounds=1, spec="") == replace(
            registered[0], clients=1, rounds=1, spec=""
        )


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no row 'mlp'; known: mlp-10, mlp-100"):
        chosen_rows(["mlp"])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "rounds": st.lists(SECONDS, min_size=SKIPPED_ROUNDS + 1, max_size=9),
                "start_seconds": SECONDS,
            }
        ),
        min_size=1,
    )
)
def test_the_first_rounds_count_in_no_median(runs: list[dict[str, Any]]) -> None:
    found = medians(runs)
    others = [
        run | {"rounds": [*[1e9] * SKIPPED_ROUNDS, *run["rounds"][SKIPPED_ROUNDS:]]} for run in runs
    ]
    assert medians(others) == found
    assert found["round_seconds_lowest"] <= found["round_seconds"] <= found["round_seconds_highest"]
    measured = [second for run in runs for second in run["rounds"][SKIPPED_ROUNDS:]]
    assert min(measured) <= found["round_seconds_lowest"]
    assert found["round_seconds_highest"] <= max(measured)
    assert medians([*runs, *runs]) == found


def test_a_figure_that_one_run_lacks_is_left_out() -> None:
    whole = {"rounds": [1.0, 1.0, 2.0], "worker_pss_mb": 3.0}
    assert medians([whole])["worker_pss_mb"] == 3.0
    assert "worker_pss_mb" not in medians([whole, {**whole, "worker_pss_mb": None}])


@given(SECONDS, SECONDS, st.floats(0.1, 10))
def test_bars_judge_quotients(over: float, under: float, limit: float) -> None:
    figures = {"a": {"round_seconds": over}, "b": {"round_seconds": under}}
    least = judge([Bar("a", "b", at_least=limit)], figures)
    most = judge([Bar("a", "b", at_most=limit)], figures)
    assert least[0]["found"] == most[0]["found"] == over / under
    assert least[0]["holds"] == (over / under >= limit)
    assert most[0]["holds"] == (over / under <= limit)
    assert judge([Bar("a", None, at_most=limit)], figures)[0]["found"] == over
    assert judge([Bar("a", "c", at_most=limit), Bar("c", "a", at_most=limit)], figures) == []


def test_tables_name_every_engine_and_bar() -> None:
    figures = {
        "raygrid": {"round_seconds": 1.0, "cpu_seconds": 2.0, "load": 0.5},
        "flower": {"round_seconds": 3.0, "cpu_seconds": 9.0, "load": 0.5},
    }
    lines = row_table(figures).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["raygrid", "1.00", "1.00"],
        ["flower", "3.00", "4.50"],
    ]
    bars = judge([Bar("flower", "raygrid", at_least=7)], figures)
    said = " ".join(bars_table({"MLP": bars}).splitlines()[-1].split())
    assert said == "MLP flower round ÷ raygrid round ≥ 7 3 NO"


@pytest.mark.slow
def test_rows_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    wanted = ["--rows", "digits-100", "start", "--engines", "raygrid", "bare"]
    main([*wanted, "--rounds", "1", "--repeat", "1", "--json", str(path)])
    said = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert {"created", "commit", "machine", "versions", "repeat", "rows"} == found.keys()
    assert found["repeat"] == 1
    assert found["machine"]["cores"] >= 1
    assert list(found["rows"]) == ["digits-100", "start"]
    for row in found["rows"].values():
        assert row["title"] in said
        assert row["failures"] == {}
        for runs in row["runs"].values():
            assert [len(run["rounds"]) for run in runs] == [SKIPPED_ROUNDS + 1]
            assert runs[0]["driver_peak_mb"] > 50
            assert runs[0]["worker_pss_mb"] > 10
            assert runs[0]["workers"] == 2
            assert runs[0]["first_round_seconds"] > runs[0]["start_seconds"] > 0
    reached = found["rows"]["digits-100"]["medians"]
    # The same training of the same clients, added up in another order.
    assert reached["raygrid"]["loss"] == pytest.approx(reached["bare"]["loss"], rel=1e-3)
