"""Timelines: a round's parts add up, and traces hold every client once, nested and in order."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from simulations.engines.spans import ClientSpan
from simulations.events import CellDone, CellStarted, ClientsDone, Event, RoundDone
from simulations.records import read_rows
from simulations.runner import run_study
from simulations.study import checked_study
from simulations.timeline import PARTS, ClientWork, Phase, RoundTimeline, split_round
from simulations.trace import SERVER, Trace

SECONDS = st.floats(0, 10)


def work(worker: int, began: float, seconds: float, train: float, encode: float) -> ClientWork:
    span = ClientSpan(1, worker, began, seconds, min(train + encode, seconds))
    return ClientWork.of(span, 0, train, encode, 100)


def round_of(
    done: list[ClientWork], clients_seconds: float, workers: int, decode_seconds: float = 0.0
) -> RoundTimeline:
    phases = (
        Phase("download", 0.0, 0.5),
        Phase("clients", 0.5, clients_seconds),
        Phase("decode", 0.5 + clients_seconds, 0.25),
    )
    whole = clients_seconds + 1.0
    return RoundTimeline(1, 0.0, whole, phases, tuple(done), workers, decode_seconds)


@given(
    st.lists(st.builds(work, st.integers(0, 3), SECONDS, SECONDS, SECONDS, SECONDS)),
    SECONDS,
    st.integers(1, 8),
    SECONDS,
)
def test_parts_are_never_negative_and_add_up(
    done: list[ClientWork], clients_seconds: float, workers: int, decode_seconds: float
) -> None:
    # Whatever spans say: of clients trained together, of a clock that is off, out of the phase.
    timeline = round_of(done, clients_seconds, workers, decode_seconds)
    parts = split_round(timeline)
    assert all(seconds >= 0 for seconds in parts.values())
    assert list(parts) == [part for part in PARTS if part in parts]
    inside = sum(parts[part] for part in parts if part != "other") - 0.75
    assert inside == pytest.approx(clients_seconds, abs=1e-9)
    assert sum(parts.values()) == pytest.approx(timeline.seconds, abs=1e-9)
    assert ("clients" in parts) == (not done)


def test_side_by_side_the_mean_of_the_workers_counts() -> None:
    done = [work(0, 0.5, 3.0, 3.0, 0.0), work(1, 0.5, 1.0, 0.75, 0.25)]
    parts = split_round(round_of(done, 3.0, workers=2))
    assert parts["train"] == pytest.approx(3.75 / 2)
    assert parts["encode"] == pytest.approx(0.25 / 2)
    assert parts["wait"] == pytest.approx(1.0)
    assert parts["transfer"] == pytest.approx(0)
    alone = split_round(round_of(done[:1], 3.0, workers=2))
    assert alone["train"] == pytest.approx(1.5)
    assert alone["wait"] == pytest.approx(1.5)


def read_trace(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    events: list[dict[str, Any]] = json.loads(
        gzip.decompress(data) if path.suffix == ".gz" else data, parse_constant=pytest.fail
    )
    return events


def check_trace(events: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    """Check the rules of the trace event format, and Perfetto's; count clients by (pid, tid).

    Perfetto takes events of one row in the order of their times, those of one time in the order of
    the file; one that ends after an event in which it began is dropped.
    """
    process_of: dict[int, int] = {}
    for event in events:
        assert event["ph"] in ("M", "X")
        assert isinstance(event["name"], str)
        assert event["name"]
        assert all(type(event[key]) is int and event[key] >= 0 for key in ("ts", "pid", "tid"))
        # Process and thread 0 are the idle thread, which has no row.
        assert min(event["pid"], event["tid"]) > 0
        assert process_of.setdefault(event["tid"], event["pid"]) == event["pid"]
        if event["ph"] == "X":
            assert event.keys() - {"args"} == {"name", "ph", "ts", "dur", "pid", "tid"}
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
        else:
            kinds = {"process_name": str, "thread_name": str, "process_sort_index": int}
            [(key, value)] = event["args"].items()
            assert key == ("sort_index" if event["name"].endswith("sort_index") else "name")
            assert type(value) is kinds[event["name"]]
    rows: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append(event)
    clients: Counter[tuple[int, int]] = Counter()
    for row, own in rows.items():
        clients[row] += sum(event["name"].startswith("client ") for event in own)
        open_until: list[int] = []
        for event in sorted(own, key=lambda event: int(event["ts"])):
            end = event["ts"] + event["dur"]
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or end <= open_until[-1], event
            open_until.append(end)
    named = [(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"]
    assert sorted(named) == sorted(rows)
    return +clients


@given(st.lists(st.builds(work, st.integers(0, 2), SECONDS, SECONDS, SECONDS, SECONDS)))
def test_clients_that_overlap_are_shown_one_after_another(
    tmp_path_factory: pytest.TempPathFactory, done: list[ClientWork]
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    with Trace(path) as trace:
        now = time.monotonic()
        moved = [
            ClientWork(
                one.span._replace(began=now + one.span.began),
                *(one.client, one.train_seconds, one.encode_seconds),
            )
            for one in done
        ]
        timeline = RoundTimeline(1, now, 20.0, (Phase("clients", now, 20.0),), tuple(moved), 3)
        trace(RoundDone(cell(), {"accuracy": None}, timeline))
    assert check_trace(read_trace(path)).total() == len(done)


def study(**changes: Any) -> Any:
    values = {
        "name": "traced",
        "rounds": 2,
        "seeds": [0],
        "partition": {"clients": 6, "min_samples": 5},
        "model": {"hidden": [8]},
        "federation": {"fraction": 0.5},
        "engine": {"kind": "local"},
        "strategies": [{"label": "dense"}, {"label": "signs", "uplink": "sign() | pack()"}],
    }
    return checked_study(values | changes, "study")


def cell() -> Any:
    return study().cells()[0]


def check_run(folder: Path, trace: Path, most_rows: int) -> None:
    events = read_trace(trace)
    clients = check_trace(events)
    assert clients.total() == 2 * 2 * 3
    assert 1 <= len(clients) <= most_rows
    assert all(pid > SERVER for pid, _ in clients)
    names = Counter(event["name"] for event in events)
    assert names["round 1"] == names["round 2"] == names["decode"] / 2 == 2
    assert names["train"] == 12
    assert names["encode"] == 6
    assert not list(trace.parent.glob("*.partial"))
    for rounds in folder.glob("cells/*/rounds.jsonl"):
        for row in read_rows(rounds)[1:]:
            parts = row["split_seconds"]
            assert min(parts.values()) >= 0
            assert sum(parts.values()) == pytest.approx(row["round_seconds"], abs=1e-9)
            assert parts["train"] > 0
            assert parts["other"] < 0.5 * row["round_seconds"]
            assert 0 < parts["decode"] <= row["decode_seconds"] + 0.01


@pytest.mark.parametrize("name", ["trace.json", "deeper/trace.json.gz"])
def test_a_run_is_traced(tmp_path: Path, name: str) -> None:
    told: list[Event] = []
    run_study(study(), tmp_path / "run", listen=told.append, profile=tmp_path / name)
    check_run(tmp_path / "run", tmp_path / name, most_rows=1)
    rounds = [event for event in told if isinstance(event, RoundDone)]
    assert [len(event.timeline.work) for event in rounds if event.timeline] == [3] * 4
    assert {type(event) for event in told} <= {CellStarted, ClientsDone, RoundDone, CellDone}


def test_clients_of_a_cohort_share_its_time(tmp_path: Path) -> None:
    told: list[Event] = []
    together = study(training={"path": "cohort"}, strategies=[{"label": "dense"}])
    run_study(together, tmp_path / "run", listen=told.append, profile=tmp_path / "trace.json")
    for event in told:
        if isinstance(event, RoundDone) and event.timeline is not None:
            seconds = [one.train_seconds for one in event.timeline.work]
            assert min(seconds) > 0
            parts = split_round(event.timeline)
            assert parts["train"] == pytest.approx(sum(seconds), rel=0.1)
            assert parts["train"] <= event.row["train_seconds"]
    events = read_trace(tmp_path / "trace.json")
    assert check_trace(events).total() == 2 * 3
    assert sum(event["name"] == "3 clients together" for event in events) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_workers_have_rows_of_their_own(tmp_path: Path) -> None:
    both = study(engine={"kind": "ray", "workers": 2})
    run_study(both, tmp_path / "run", profile=tmp_path / "trace.json")
    check_run(tmp_path / "run", tmp_path / "trace.json", most_rows=2)


def test_a_run_that_is_stopped_leaves_a_whole_trace(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, RoundDone) and event.row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study(), tmp_path / "run", listen=stop, profile=tmp_path / "trace.json")
    assert check_trace(read_trace(tmp_path / "trace.json")).total() == 3


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_timeline import RoundDone, run_study, study

def kill(event):
    if isinstance(event, RoundDone) and event.row["round"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path({folder!r})
run_study(study(), folder / "run", listen=kill, profile=folder / {name!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_what_a_killed_run_leaves_lacks_its_end_alone(tmp_path: Path, name: str) -> None:
    script = KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path), name=name)
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | {}, check=False)
    assert ended.returncode == -signal.SIGKILL
    left = (tmp_path / f"{name}.partial").read_bytes()
    if name.endswith(".gz"):
        import zlib

        left = zlib.decompressobj(31).decompress(left)
    events = json.loads(left.rstrip().removesuffix(b",") + b"]")
    assert check_trace(events).total() == 3


def test_a_file_that_is_no_trace_is_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "study.toml"
    precious.write_text("rounds = 3")
    with pytest.raises(ConfigError, match=r"must end in \.json or \.json\.gz"):
        run_study(study(), tmp_path / "run", profile=precious)
    assert precious.read_text() == "rounds = 3"
    assert not (tmp_path / "run").exists()
