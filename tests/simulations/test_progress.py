"""Progress: rates and times left that are right, lines where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.cell import Cell
from simulations.cli.progress import StudyProgress
from simulations.events import CellDone, CellStarted, ClientsDone, ClientsWatch, Event, RoundDone
from simulations.runner import run_study
from simulations.study import Study, checked_study


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def study(rounds: int = 10) -> Study:
    values = {"name": "watched", "rounds": rounds, "seeds": [0, 1], "strategies": [{"label": "a"}]}
    return checked_study(values, "study")


def row(number: int, seconds: float) -> dict[str, Any]:
    sent = {"uplink_payload_bytes": 4_000_000, "downlink_payload_bytes": 80_000}
    clients = {"clients_sampled": 20, "clients_failed": 0, "clients_rejected": 0}
    return {"round": number, "accuracy": 0.5, "round_seconds": seconds, **sent, **clients}


def shown(progress: StudyProgress, width: int) -> list[str]:
    paper = Console(width=width, file=io.StringIO(), record=True)
    paper.print(progress.bars.get_renderable())
    return paper.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_rates_and_times_left(width: int) -> None:
    clock = Clock()
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    cell = study().cells()[0]
    with StudyProgress(study(), console, clock) as progress:
        progress(CellStarted(cell, 0))
        progress(RoundDone(cell, {"round": 0, "accuracy": 0.1}))
        clock.now += 4
        progress(ClientsDone(cell, 5, 20))  # of the first round there is a rate, but no time left
        assert "1.2 clients/s" in shown(progress, width)[2]
        assert ("0:00:12 left" in shown(progress, width)[2]) == (width >= 100)
        for number in (1, 2, 3):
            clock.now += 4
            progress(RoundDone(cell, row(number, 4.0)))
        clock.now += 2
        progress(ClientsDone(cell, 5, 20))
        cells, rounds, clients = shown(progress, width)
        assert "2.5 clients/s" in clients
        assert "5/20" in clients
        assert ("up    1 MB/s" in clients) == (width >= 80)
        # Of 10 rounds of about 4.67 s (the first was told of after 8) 7 are left, and one cell.
        if width >= 100:
            assert "0:00:35 left" in rounds
            assert "0:01:28 left" in cells
            assert "0:00:06 left" in clients
        elif width >= 80:
            assert "0:01:28 left" in clients
        assert {len(line) <= width for line in (cells, rounds, clients)} == {True}


def test_in_quick_rounds_the_bar_of_clients_stands_still() -> None:
    clock = Clock()
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system=None)
    cell = study().cells()[0]
    with StudyProgress(study(), console, clock) as progress:
        progress(CellStarted(cell, 0))
        for number in range(1, 6):
            clock.now += 0.3
            progress(RoundDone(cell, row(number, 0.3)))
            before = shown(progress, 100)[2]
            assert "20/20" in before
            clock.now += 0.2
            progress(ClientsDone(cell, 3, 20))
            assert "20/20" in shown(progress, 100)[2]


def test_without_a_terminal_there_are_whole_lines_now_and_then() -> None:
    clock = Clock()
    paper = io.StringIO()
    cell = study(100).cells()[0]
    with StudyProgress(study(100), Console(width=200, file=paper), clock) as progress:
        progress(CellStarted(cell, 0))
        for number in range(1, 101):
            clock.now += 2
            progress(ClientsDone(cell, 10, 20))
            clock.now += 2
            progress(RoundDone(cell, row(number, 4.0)))
        progress(CellDone(cell, {"final_accuracy": 0.5, "total_seconds": 400.0}))
    lines = paper.getvalue().splitlines()
    assert all(line.startswith(f"{cell.label}, seed 0: ") for line in lines)
    assert lines[-1].endswith("accuracy 50.00%, 400.0 s")
    assert 10 <= len(lines) <= 15
    assert "round 7 of 100, 10 of 20 clients of the next one, accuracy" in lines[0]
    assert lines[0].endswith("50.0%, 5.0 clients/s, 0:12:50 left")
    assert "\x1b" not in paper.getvalue()


def test_clients_are_told_of_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("simulations.events.time.monotonic", clock)
    told: list[Event] = []
    watch = ClientsWatch(study().cells()[0], told.append)
    for done in range(1, 1001):
        clock.now += 0.001
        watch(done, 1000)
    assert 9 <= len(told) <= 10
    assert all(isinstance(event, ClientsDone) and event.asked == 1000 for event in told)


def test_a_run_tells_of_its_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.events._TOLD_EVERY_SECONDS", 0.0)
    values = {"name": "s", "rounds": 2, "seeds": [0], "engine": {"kind": "local"}}
    told: list[tuple[Cell, int, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, ClientsDone):
            told.append((event.cell, event.done, event.asked))

    values |= {"strategies": [{}]}
    small = {"partition": {"clients": 4, "min_samples": 5}, "model": {"hidden": [4]}}
    run_study(checked_study(values | small, "s"), tmp_path / "run", listen=listen)
    assert [(done, asked) for _, done, asked in told] == [(n, 4) for n in (1, 2, 3, 4)] * 2
