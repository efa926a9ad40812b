"""The page: one whole file, everything on it, nothing loaded, anything escaped."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from simulations.report import load_run, write_report
from simulations.report.curves import curves
from simulations.report.figure import FORMATS
from simulations.report.write import all_figures

MakeRun = Callable[..., Path]
Strategies = tuple[Any, ...]
VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADS = ("src", "href", "xlink:href", "data", "poster", "srcset", "action")


class Page(HTMLParser):
    """Collects what the tests ask of a page, and whether its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.headings: list[int] = []
        self.refers: list[str] = []
        self.texts: list[str] = []
        self.svgs: list[dict[str, str | None]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._attributes(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids[str(values["id"])] += 1
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg":
            self.svgs.append(values)
        for name in ("aria-labelledby", "aria-describedby"):
            self.refers += (values.get(name) or "").split()
        self.loads += [str(values[name]) for name in LOADS if name in values]


@pytest.fixture(scope="module", params=["module_run", "explained_run"])
def report(request: pytest.FixtureRequest) -> Path:
    """The page of a run, without and with models for deployment."""
    return write_report(request.getfixturevalue(request.param))


def test_every_figure_is_on_the_page_and_in_its_files(report: Path) -> None:
    page = Page(report.read_text("utf-8"))
    figures = all_figures(load_run(report.parent))
    assert len(figures) == 7
    for figure in figures:
        assert page.ids[figure.name] == 1
        assert figure.title in page.texts
        for file_format in FORMATS:
            written = report.parent / "figures" / f"{figure.name}.{file_format}"
            assert written.stat().st_size > 1000
    for ending in ("csv", "md", "tex"):
        assert (report.parent / "tables" / f"results.{ending}").is_file()
    assert not list(report.parent.rglob("*.draft"))


def test_the_page_loads_nothing(report: Path) -> None:
    text = report.read_text("utf-8")
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert all(target.startswith("#") for target in page.loads)
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_ids_are_unique_and_every_reference_resolves(report: Path) -> None:
    text = report.read_text("utf-8")
    page = Page(text)
    assert [name for name, count in page.ids.items() if count > 1] == []
    targets = [t[1:] for t in page.loads] + page.refers + re.findall(r"url\(#([^)]*)\)", text)
    assert set(targets) <= set(page.ids)


def test_the_page_speaks_to_a_screen_reader(report: Path) -> None:
    text = report.read_text("utf-8")
    page = Page(text)
    assert '<html lang="en">' in text
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = [b - a for a, b in zip(page.headings, page.headings[1:], strict=False)]
    assert max(steps) == 1
    assert page.tags["caption"] == page.tags["table"] > 3
    for svg in page.svgs:
        assert svg.get("role") == "img" or svg.get("aria-hidden") == "true"
    assert "STC both ways ends at" in text


def test_the_page_follows_light_and_dark(report: Path) -> None:
    text = report.read_text("utf-8")
    body = text.split("<body>")[1]
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"(?:fill|stroke): ?#[0-9a-f]{6}", body) == []
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = text.split("prefers-color-scheme: dark")[:2]
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_what_the_page_says(report: Path) -> None:
    text = " ".join(Page(report.read_text("utf-8")).texts)
    for said in (
        "digits: five ways",
        "What is counted as bytes",
        "Whole message",
        "training.learning_rate",
        "versions.flwr",
        "git checkout 0123abcd",
        "mobilebandwidth.github.io",
        "error_feedback(top_k(0.02) | ternary() | entropy())",
        "100×",
        "Students for deployment",
        "87.65",
        "1,210 of 17,226",
        "5.14 kB of 69.4 kB",
    ):
        assert said in text


def test_the_same_records_give_the_same_bytes(make_run: MakeRun) -> None:
    def written() -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in [*folder.glob("figures/*"), *folder.glob("tables/*"), report]
        }

    folder = make_run()
    report = write_report(folder)
    first = written()
    write_report(folder)
    assert written() == first


def test_labels_are_escaped_and_shown_as_written(make_run: MakeRun, strategies: Strategies) -> None:
    awkward = ('<script>alert("x")</script>', "_under & $2^n$ 50 %", "--><b>bold</b>")
    renamed = [replace(each, label=label) for each, label in zip(strategies, awkward, strict=False)]
    report = write_report(make_run(renamed))
    page = Page(report.read_text("utf-8"))
    assert page.tags["script"] == 0
    for label in awkward:
        assert page.texts.count(label) >= 2
    alone = (report.parent / "figures/accuracy_against_rounds.svg").read_text("utf-8")
    assert "_under &amp; $2^n$ 50 %" in alone


@pytest.mark.usefixtures("page_only")
def test_unfinished_cells_are_on_the_page(make_run: MakeRun) -> None:
    report = write_report(make_run(unfinished=[("STC both ways", 2)]))
    text = " ".join(Page(report.read_text("utf-8")).texts)
    assert "1 unfinished cell" in text
    assert "seed 2: running or stopped after round 20" in " ".join(text.split())


@pytest.mark.usefixtures("page_only")
def test_a_run_without_results_still_has_a_page(make_run: MakeRun) -> None:
    folder = make_run()
    for result in folder.glob("cells/*/result.json"):
        result.unlink()
    page = Page(write_report(folder).read_text("utf-8"))
    assert page.tags["figure"] == 0
    assert "15 unfinished cells" in page.texts
    assert not (folder / "figures").exists()


@pytest.mark.usefixtures("page_only")
def test_one_seed_is_said_and_has_no_band(make_run: MakeRun) -> None:
    report = write_report(make_run(seeds=(1,)))
    text = report.read_text("utf-8")
    assert "One seed only" in text
    assert "there is no interval" in text


@pytest.mark.usefixtures("page_only")
def test_rounds_without_evaluation_are_passed_over(make_run: MakeRun) -> None:
    folder = make_run(rounds=12)
    for records in folder.glob("cells/*/rounds.jsonl"):
        rows = [json.loads(line) for line in records.read_text("utf-8").splitlines()]
        for row in rows:
            never = "stc" in records.parent.name
            row["accuracy"] = None if never or row["round"] % 5 else row["accuracy"]
        records.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    drawn = {curve.label: curve for curve in curves(load_run(folder))}
    dense = drawn["FedAvg float32"]
    assert dense.rounds.tolist() == [0, 5, 10]
    assert dense.uplink_bytes.tolist() == [0, 5 * 4 * 40_000, 10 * 4 * 40_000]
    assert drawn["STC both ways"].rounds.tolist() == []
    assert Page(write_report(folder).read_text("utf-8")).tags["figure"] == 7


@pytest.mark.usefixtures("page_only")
def test_more_strategies_than_colours(make_run: MakeRun, strategies: Strategies) -> None:
    many = [replace(strategies[1], label=f"quantize({bits})") for bits in range(1, 12)]
    page = Page(write_report(make_run(many, seeds=(1, 2), rounds=3)).read_text("utf-8"))
    assert page.tags["figure"] == 7


@pytest.mark.usefixtures("page_only")
def test_the_studys_networks_are_the_ones_shown(make_run: MakeRun) -> None:
    report = write_report(make_run(network=["5g", "50/10"], rounds=5))
    texts = Page(report.read_text("utf-8")).texts
    assert "50/10" in texts
    assert "5g" in texts
    assert "slow" not in texts
