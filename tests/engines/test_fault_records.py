"""Every fault is told once, with what came of it, and stays on record in the run's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from simulations.cell import Cell
from simulations.cell_folder import CellFolder
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid, RayGrid
from simulations.engines.faults import Fault, kind_of_failure
from simulations.engines.shared_model import SharedModel
from simulations.records import read_rows

pytestmark = pytest.mark.ray

CLIENT_APP = "engine_client:app"


@pytest.fixture(params=[False, True], ids=["forked", "ray"])
def use_ray(request: pytest.FixtureRequest) -> bool:
    """Whether Ray places the workers."""
    if request.param:
        request.getfixturevalue("ray_session")
    return bool(request.param)


def told_by(grid: LocalGrid | RayGrid) -> list[Fault]:
    told: list[Fault] = []
    grid.on_fault = told.append
    return told


def test_a_killed_worker_is_told_of(use_ray: bool, round_of: Any, tmp_path: Path) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2, use_ray=use_ray) as grid:
        told = told_by(grid)
        grid.send_and_receive(round_of(clients=6, kill=4, marker=str(tmp_path / "killed")))
        [fault] = told
        assert (fault.kind, fault.outcome, fault.node_id) == ("worker_died", "run_again", 4)
        assert (fault.attempt, fault.worker in (0, 1)) == (1, True)
        assert fault.clients >= 1
        assert fault.seconds is not None
        assert 0 <= fault.seconds < 60
        assert use_ray or "SIGKILL" in fault.reason
        told.clear()
        grid.send_and_receive(round_of(clients=6, kill=5, always=True, marker=str(tmp_path / "x")))
        # Of clients whose answers were not sent yet, the first is taken for the one it died at.
        assert [one.outcome for one in told] == ["run_again"] * (len(told) - 1) + ["left_out"]
        assert (told[-1].node_id, told[-1].attempt) == (5, 3)
        assert 3 <= len(told) <= 5


@pytest.mark.parametrize("engine", [LocalGrid, RayGrid])
def test_a_client_that_raises_is_told_of(engine: Any, round_of: Any) -> None:
    with engine(CLIENT_APP, 4) as grid:
        told = told_by(grid)
        grid.send_and_receive(round_of(clients=4, **{"raise": 3}))
        [fault] = told
        assert (fault.kind, fault.outcome, fault.node_id) == ("client_raised", "left_out", 3)
        assert fault.reason == "RuntimeError: client 3 has no data"
        told.clear()
        grid.send_and_receive(round_of(clients=4, hoard=2))
        assert [(one.kind, one.node_id) for one in told] == [("out_of_memory", 2)]
        told.clear()
        grid.send_and_receive(round_of(clients=4, sleep=4, seconds=2), timeout=1)
        assert {(one.kind, one.outcome) for one in told} == {("client_late", "left_out")}
        assert [one.node_id for one in told] == grid.unanswered
        assert 4 in grid.unanswered


def test_a_client_that_hangs_is_told_of(use_ray: bool, round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2, use_ray=use_ray, client_timeout=1) as grid:
        told = told_by(grid)
        grid.send_and_receive(round_of(clients=6, sleep=2))
        [fault] = told
        assert (fault.kind, fault.outcome, fault.node_id) == ("client_hung", "left_out", 2)
        assert fault.seconds is not None
        assert 1 <= fault.seconds < 30


def test_an_idle_worker_that_dies_is_replaced_and_told_of(round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 4, workers=2, use_ray=False) as grid:
        told = told_by(grid)
        first = grid.send_and_receive(round_of(clients=4, kind="evaluate"))
        pids = {int(reply.content["process"]["pid"]) for reply in first}
        for pid in pids:
            os.kill(pid, 9)
        replies = grid.send_and_receive(round_of(clients=4))
        assert not any(reply.has_error() for reply in replies)
        assert {one.kind for one in told} == {"worker_died"}
        assert len(told) == len(pids)
        assert all(one.outcome in ("replaced", "run_again") for one in told)


def test_a_full_memory_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, round_of: Any
) -> None:
    # A file system of one page stands for one that is full; writing past its limit fails alike.
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr("simulations.engines.shared_model.MEMORY", tmp_path)
    found: list[OSError] = []
    model = SharedModel(found.append)
    path = model.write([b"first"])
    assert Path(path).parent.parent == tmp_path
    folder = Path(path).parent
    for name in ("0", "1"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(full)
    elsewhere = model.write([b"second"])
    assert Path(elsewhere).read_bytes() == b"second"
    assert Path(elsewhere).parent.parent != tmp_path
    assert [error.strerror for error in found] == ["No space left on device"]
    model.close()
    with RayGrid(CLIENT_APP, 4, workers=2, use_ray=False) as grid:
        told = told_by(grid)
        grid.send_and_receive(round_of(clients=4))
        mine = Path(grid._model._folders[0][0])
        for name in ("0", "1"):
            (mine / name).unlink(missing_ok=True)
            (mine / name).symlink_to(full)
        replies = grid.send_and_receive(round_of(clients=4, round_number=2))
        local = LocalGrid(CLIENT_APP, 4)
        local.send_and_receive(round_of(clients=4))
        expected = local.send_and_receive(round_of(clients=4, round_number=2))
        assert [r.content for r in replies] == [r.content for r in expected]
        assert [(one.kind, one.outcome) for one in told] == [("memory_full", "on_disk")]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("MemoryError: ", "out_of_memory"),
        ("_ArrayMemoryError: Unable to allocate 64. TiB", "out_of_memory"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        (
            "RuntimeError: [enforce fail at x.cpp:1] . DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 8 bytes",
            "out_of_memory",
        ),
        ("ValueError: MemoryError: no", "client_raised"),
    ],
)
def test_want_of_memory_is_known(reason: str, kind: str) -> None:
    assert kind_of_failure(reason) == kind


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "rounds": 3,
        "partition": {"clients": 6, "min_samples": 5},
        "model": {"hidden": (8,)},
    }
    return Cell.checked(values | changes, "test")


def test_a_runs_folder_holds_its_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    monkeypatch.setenv("FAULTY_CLIENT", json.dumps({"kill": 2, "raise": 5, "marker": str(marker)}))
    settings = cell()
    folder = CellFolder(tmp_path, settings)
    config = settings.to_run_config()
    with RayGrid("faulty_client:app", 6, run_config=config, workers=2, use_ray=False) as grid:
        run_cell(settings, grid, folder)
    rows = read_rows(folder.path / "faults.jsonl")
    assert {tuple(row) for row in rows} == {("round", *Fault._fields)}
    assert [(row["round"], row["node_id"]) for row in rows if row["kind"] == "worker_died"] == [
        (1, 2)
    ]
    raised = [row for row in rows if row["kind"] == "client_raised"]
    assert [(row["round"], row["node_id"], row["outcome"]) for row in raised] == [
        (number, 5, "left_out") for number in (1, 2, 3)
    ]
    clients = read_rows(folder.path / "clients.jsonl")
    assert [row["round"] for row in clients if row["status"] == "error"] == [1, 2, 3]
    # What went wrong stays on record when the cell starts anew, but for half a line.
    with (folder.path / "faults.jsonl").open("a") as file:
        file.write('{"round": 3, "ki')
    folder.open(resume=False)
    assert read_rows(folder.path / "faults.jsonl") == rows
    assert (folder.path / "faults.jsonl").read_bytes().endswith(b"\n")


def test_a_run_without_faults_has_no_such_file(tmp_path: Path) -> None:
    settings = cell(rounds=1)
    folder = CellFolder(tmp_path, settings)
    config = settings.to_run_config()
    run_cell(settings, LocalGrid("simulations.client_app:app", 6, run_config=config), folder)
    assert not (folder.path / "faults.jsonl").exists()
