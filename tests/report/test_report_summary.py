"""The table: ratios from bytes, intervals over seeds, three file formats."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from simulations.report import load_run, summary_table, terminal_table
from simulations.report.tables import HEADINGS, csv_table, latex_table, markdown_table
from simulations.report.totals import Traffic

MakeRun = Callable[..., Path]
DENSE = 40_000


@pytest.fixture
def table(make_run: MakeRun) -> pd.DataFrame:
    return summary_table(load_run(make_run())).set_index("label", drop=False)


def test_the_dense_row_has_ratio_one(table: pd.DataFrame) -> None:
    for column in ("uplink_ratio", "both_ways_ratio", "all_traffic_ratio"):
        assert table.loc["FedAvg float32", column] == 1


def test_ratios_are_dense_bytes_over_sent_bytes(table: pd.DataFrame) -> None:
    stc = table.loc["STC both ways"]
    assert stc["uplink_ratio"] == pytest.approx(DENSE / 400)
    assert stc["both_ways_ratio"] == pytest.approx(2 * DENSE / (400 + 800))
    assert stc["all_traffic_ratio"] == pytest.approx(2 * DENSE / (400 + 800 + 10_000))
    quantized = table.loc["Quantized, 4 bit"]
    assert quantized["uplink_ratio"] == pytest.approx(10)
    assert quantized["both_ways_ratio"] == pytest.approx(2 * DENSE / (4_000 + DENSE))


def test_kilobytes_are_per_client_and_round_and_decimal(table: pd.DataFrame) -> None:
    assert table.loc["STC both ways", "uplink_kb"] == pytest.approx(0.4)
    assert table.loc["STC both ways", "downlink_kb"] == pytest.approx(10.8)


def test_ratios_do_not_depend_on_client_records(make_run: MakeRun) -> None:
    folder = make_run()
    run = load_run(folder)
    without_clients = replace(run, clients=pd.DataFrame())
    pd.testing.assert_frame_equal(summary_table(without_clients), summary_table(run))


def test_downlinks_that_hold_catchup_alone_are_no_update() -> None:
    first_round_only = Traffic(
        dense_bytes=DENSE,
        uplink_messages=4,
        downlink_messages=4,
        update_messages=0,
        uplink_payload_bytes=400,
        downlink_payload_bytes=4 * DENSE,
        catchup_bytes=4 * DENSE,
        uplink_message_bytes=800,
        downlink_message_bytes=4 * DENSE + 400,
    )
    assert first_round_only.both_ways_ratio == first_round_only.uplink_ratio == 400
    assert first_round_only.all_traffic_ratio == pytest.approx(8 * DENSE / (400 + 4 * DENSE))


def test_the_interval_is_over_seeds(table: pd.DataFrame) -> None:
    # Seeds lie about 0.4 points apart, so s is about 0.4 and the half width t(2) s / sqrt(3).
    interval = table.loc["FedAvg float32", "accuracy_interval_percent"]
    assert interval == pytest.approx(4.303 * 0.4 / math.sqrt(3), rel=0.02)
    assert table.loc["FedAvg float32", "accuracy_change_points"] == 0


def test_one_seed_shows_no_interval(make_run: MakeRun) -> None:
    run = load_run(make_run(seeds=(7,)))
    assert summary_table(run)["accuracy_interval_percent"].isna().all()
    cells = [row[1] for row in terminal_table(run)[1:]]
    assert all(float(cell) > 0 for cell in cells)


def test_the_terminal_table_has_headings_and_equal_rows(make_run: MakeRun) -> None:
    headings, *rows = terminal_table(load_run(make_run()))
    assert headings == tuple(h for h in HEADINGS if h not in {"Rejected/failed", "Seeds"})
    assert len(rows) == 5
    assert {len(row) for row in rows} == {len(headings)}
    assert rows[3][5:8] == ("100×", "66.7×", "7.14×")


def test_lost_clients_bring_their_column(make_run: MakeRun) -> None:
    folder = make_run()
    (records,) = folder.glob("cells/stc*seed3/rounds.jsonl")
    text = records.read_text("utf-8")
    records.write_text(text.replace('"clients_rejected": 0', '"clients_rejected": 1'), "utf-8")
    headings, *rows = terminal_table(load_run(folder))
    place = headings.index("Rejected/failed")
    assert [row[place] for row in rows] == ["0/0", "0/0", "0/0", "20/0", "0/0"]


def test_the_change_is_paired_by_seed(table: pd.DataFrame) -> None:
    # Every strategy's seeds lie apart in the same way, so their differences hardly vary.
    stc = table.loc["STC both ways"]
    assert stc["accuracy_change_interval_points"] < 0.1 < stc["accuracy_interval_percent"]


AWKWARD = "a|b & 50% <b>$x_1$</b> {~^#} \\end"


def test_every_format_escapes_what_it_gives_meaning_to(make_run: MakeRun) -> None:
    from_fixture = load_run(make_run())
    summary = summary_table(from_fixture)
    summary.loc[0, "label"] = AWKWARD
    parsed = list(csv.DictReader(io.StringIO(csv_table(summary))))
    assert parsed[0]["label"] == AWKWARD
    line = markdown_table(summary).splitlines()[2]
    assert line.replace(r"\|", "").count("|") == len(HEADINGS) + 1
    assert "<b>" not in line
    body = latex_table(summary).split(r"\midrule")[1].splitlines()[1]
    assert body.replace(r"\&", "").count("&") == len(HEADINGS) - 1
    assert r"50\%" in body
    assert r"\$x\_1\$" in body
    assert r"\textbackslash{}end" in body


def test_csv_keeps_full_precision(make_run: MakeRun) -> None:
    summary = summary_table(load_run(make_run()))
    again = pd.read_csv(io.StringIO(csv_table(summary)), na_values="n/a", keep_default_na=False)
    pd.testing.assert_series_equal(again["accuracy_percent"], summary["accuracy_percent"])


def test_traffic_of_seeds_adds() -> None:
    one = Traffic(DENSE, 2, 2, 1, 100, 300, 50, 200, 500)
    assert one + one == replace(
        one,
        **{
            name: 2 * getattr(one, name)
            for name in Traffic.__dataclass_fields__
            if name != "dense_bytes"
        },
    )
