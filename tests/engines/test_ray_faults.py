"""Workers that are killed or hang, Ray that is not there, and what is left behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedcompress.errors import ConfigError
from simulations.engines import LocalGrid, RayGrid, pool_ray
from simulations.engines.pool import Died
from simulations.engines.pool_fork import ForkPool
from simulations.engines.pool_ray import RayPool
from simulations.engines.state_files import StateFiles

pytestmark = pytest.mark.ray

CLIENT_APP = "engine_client:app"


@pytest.fixture(params=[False, True], ids=["forked", "ray"])
def use_ray(request: pytest.FixtureRequest) -> bool:
    """Whether Ray places the workers."""
    if request.param:
        request.getfixturevalue("ray_session")
    return bool(request.param)


def test_a_killed_worker_changes_no_result(use_ray: bool, round_of: Any, tmp_path: Path) -> None:
    local = LocalGrid(CLIENT_APP, 10)
    with RayGrid(CLIENT_APP, 10, workers=2, use_ray=use_ray) as grid:
        for number in (1, 2, 3):
            expected = local.send_and_receive(round_of(round_number=number))
            marker = str(tmp_path / f"killed-{number}")
            told = {"kill": 3 * number, "marker": marker}
            replies = grid.send_and_receive(round_of(round_number=number, **told))
            assert Path(marker).exists()
            assert [r.content for r in replies] == [r.content for r in expected]
            assert grid.client_states() == local.client_states()
        assert grid.num_workers == 2


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_dies_starting_while_its_room_goes_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = RayPool(CLIENT_APP, None, 1.0, 0.0, 2)
    try:
        pool.start(2)
        for _ in range(2):  # once as it serves, once as the one in its place starts
            monkeypatch.setattr(pool_ray, "workers_that_fit", lambda *_: 2)
            pool_ray._kill(pool._actors[1])
            if pool.ready == {0}:  # Ray learns now that a node with the room of one is gone
                monkeypatch.setattr(pool_ray, "workers_that_fit", lambda *_: 1)
            (died,) = [e for e in pool.events(60) if isinstance(e, Died)]
            assert died.worker == 1
            has_room = pool.replace(1)
        assert not has_room
        assert pool.count == 1
    finally:
        pool.close()


def test_a_client_that_kills_every_worker_is_given_up(
    use_ray: bool, round_of: Any, tmp_path: Path
) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2, use_ray=use_ray) as grid:
        told = {"kill": 5, "always": True, "marker": str(tmp_path / "killed")}
        replies = grid.send_and_receive(round_of(clients=6, **told))
        assert [r.metadata.src_node_id for r in replies] == [1, 2, 3, 4, 5, 6]
        assert [r.metadata.src_node_id for r in replies if r.has_error()] == [5]
        assert replies[4].error.code == 8
        assert "died 3 times" in str(replies[4].error.reason)
        assert sorted(grid.client_states()) == [1, 2, 3, 4, 6]


def test_in_a_block_the_client_that_kills_is_found(round_of: Any, tmp_path: Path) -> None:
    with RayGrid(CLIENT_APP, 40, workers=2, use_ray=False) as grid:
        told = {"kill": 22, "always": True, "marker": str(tmp_path / "killed")}
        replies = grid.send_and_receive(round_of(clients=40, **told))
        assert [r.metadata.src_node_id for r in replies] == list(range(1, 41))
        assert [r.metadata.src_node_id for r in replies if r.has_error()] == [22]
        assert "SIGKILL" in str(replies[21].error.reason)


def test_a_client_that_takes_too_long_is_ended_and_named(use_ray: bool, round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2, use_ray=use_ray, client_timeout=2) as grid:
        replies = grid.send_and_receive(round_of(clients=6, sleep=2))
        assert [r.metadata.src_node_id for r in replies] == [1, 2, 3, 4, 5, 6]
        assert [r.metadata.src_node_id for r in replies if r.has_error()] == [2]
        assert "client of node 2 did not finish within 2 s" in str(replies[1].error.reason)
        assert sorted(grid.client_states()) == [1, 3, 4, 5, 6]
        again = grid.send_and_receive(round_of(clients=6, round_number=2))
        assert not any(reply.has_error() for reply in again)
        spans = {span.node_id: span for span in grid.spans}
        assert sorted(spans) == [1, 2, 3, 4, 5, 6]
        assert all(span.seconds >= span.compute_seconds for span in spans.values())
        assert all(0 <= time.monotonic() - span.began < 60 for span in spans.values())


def test_workers_end_with_the_driver_and_come_back_with_their_server(
    root: Path, round_of: Any
) -> None:
    with RayGrid(CLIENT_APP, 4, workers=2, use_ray=False) as grid:
        first = grid.send_and_receive(round_of(clients=4, kind="evaluate"))
        pids = {int(reply.content["process"]["pid"]) for reply in first}
        assert isinstance(grid._pool, ForkPool)
        os.kill(grid._pool._server._process.pid, signal.SIGKILL)
        _wait_for_end(pids)
        second = grid.send_and_receive(round_of(clients=4, kind="evaluate"))
        assert [r.metadata.src_node_id for r in second] == [1, 2, 3, 4]
        assert pids.isdisjoint(int(reply.content["process"]["pid"]) for reply in second)
    script = textwrap.dedent("""
        import os, signal
        from simulations.engines import RayGrid
        grid = RayGrid("engine_client:app", 2, workers=2, use_ray=False)
        print(*grid._pool._pids.values(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    left = {int(pid) for pid in killed.stdout.split()}
    assert len(left) == 2
    _wait_for_end(left)


def _wait_for_end(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(_is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text("ascii")
    except OSError:
        return False


def test_forked_workers_draw_different_numbers() -> None:
    with RayGrid(_drawing_app, 2, workers=2, use_ray=False) as grid:
        messages = [Message(RecordDict(), node_id, "query") for node_id in (1, 2)]
        drawn = [r.content["drawn"]["numbers"] for r in grid.send_and_receive(messages)]
        assert all(one != other for one, other in zip(*drawn, strict=True))


def _drawing_app() -> Any:
    def app(message: Message, context: Any) -> Message:
        time.sleep(0.3)  # so that each worker gets one
        numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        return Message(RecordDict({"drawn": MetricRecord({"numbers": numbers})}), reply_to=message)

    return app


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs Ray"):
        RayGrid(CLIENT_APP, 2, address="auto", use_ray=False)
    with pytest.raises(ConfigError, match="client_timeout: must be positive seconds, got 0"):
        RayGrid(CLIENT_APP, 2, client_timeout=0)


def test_a_client_that_hangs_is_left_out(use_ray: bool, round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2, use_ray=use_ray) as grid:
        start = time.monotonic()
        replies = grid.send_and_receive(round_of(clients=6, sleep=2), timeout=3)
        assert time.monotonic() - start < 6
        answered = [r.metadata.src_node_id for r in replies]
        assert 2 in grid.unanswered
        assert sorted(answered + grid.unanswered) == [1, 2, 3, 4, 5, 6]
        assert sorted(grid.client_states()) == answered
        # The next round has all its workers and waits for none of the last one's clients.
        again = grid.send_and_receive(round_of(clients=6, round_number=2))
        assert [r.metadata.src_node_id for r in again] == [1, 2, 3, 4, 5, 6]


def test_a_late_client_is_left_out_locally(round_of: Any) -> None:
    grid = LocalGrid(CLIENT_APP, 3)
    replies = grid.send_and_receive(round_of(clients=3, sleep=2, seconds=0.6), timeout=0.5)
    assert [r.metadata.src_node_id for r in replies] == [1]
    assert grid.unanswered == [2, 3]
    assert sorted(grid.client_states()) == [1]


def test_close_leaves_a_session_that_was_there(ray_session: None, round_of: Any) -> None:
    import ray

    grid = RayGrid(CLIENT_APP, 2, workers=2)
    assert len(grid.send_and_receive(round_of(clients=2))) == 2
    grid.close()
    grid.close()
    assert ray.is_initialized()
    # The workers' CPUs are free again.
    with RayGrid(CLIENT_APP, 2, workers=4) as second:
        assert second.num_workers == 4


def test_workers_that_do_not_fit_are_refused(ray_session: None) -> None:
    with pytest.raises(ConfigError, match="64 workers of 1 CPUs and 0 GPUs each do not fit, 4 do"):
        RayGrid(CLIENT_APP, 2, workers=64)
    with pytest.raises(ConfigError, match="do not fit"):
        RayGrid(CLIENT_APP, 2, workers=1, gpus_per_worker=1)


def test_workers_have_one_thread(ray_session: None, round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 8, workers=4, cpus_per_worker=0.5) as grid:
        replies = grid.send_and_receive(round_of(clients=8, kind="evaluate"))
        assert {r.content["process"]["omp"] for r in replies} == {"1"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("somewhere", 'expected "host:port" of a Ray head or "auto", got \'somewhere\''),
        ("ray://127.0.0.1:10001", "expected .host:port."),
    ],
)
def test_an_address_without_a_cluster_ends_quickly(address: str, said: str) -> None:
    import ray

    ray.shutdown()
    start = time.monotonic()
    with pytest.raises(ConfigError, match=said):
        RayGrid(CLIENT_APP, 2, address=address)
    assert time.monotonic() - start < 10


def test_an_address_where_something_else_listens_ends_quickly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            RayGrid(CLIENT_APP, 2, address=f"127.0.0.1:{port}")
        assert time.monotonic() - start < 20


def test_a_run_that_was_killed_leaves_no_states_behind(root: Path) -> None:
    script = textwrap.dedent("""
        import os, signal
        from simulations.engines.state_files import StateFiles
        files = StateFiles()
        files.write(1, b"state")
        print(files.path(1), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    assert left.read_bytes() == b"state"
    first = StateFiles()
    assert not left.exists()
    first.write(1, b"mine")
    second = StateFiles()
    assert first.read(1) == b"mine"
    for files in (first, second):
        files.close()
