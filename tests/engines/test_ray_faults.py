"""Workers that are killed or hang, Ray that is not there, and what is left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from fedcompress.errors import ConfigError
from simulations.engines import LocalGrid, RayGrid
from simulations.engines.state_files import StateFiles

pytestmark = pytest.mark.ray

CLIENT_APP = "engine_client:app"


def test_a_killed_worker_changes_no_result(
    ray_session: None, round_of: Any, tmp_path: Path
) -> None:
    local = LocalGrid(CLIENT_APP, 10)
    with RayGrid(CLIENT_APP, 10, workers=2) as grid:
        for number in (1, 2, 3):
            expected = local.send_and_receive(round_of(round_number=number))
            marker = str(tmp_path / f"killed-{number}")
            told = {"kill": 3 * number, "marker": marker}
            replies = grid.send_and_receive(round_of(round_number=number, **told))
            assert Path(marker).exists()
            assert [r.content for r in replies] == [r.content for r in expected]
            assert grid.client_states() == local.client_states()
        assert grid.num_workers == 2


def test_a_client_that_kills_every_worker_is_given_up(
    ray_session: None, round_of: Any, tmp_path: Path
) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2) as grid:
        told = {"kill": 5, "always": True, "marker": str(tmp_path / "killed")}
        replies = grid.send_and_receive(round_of(clients=6, **told))
        assert [r.metadata.src_node_id for r in replies] == [1, 2, 3, 4, 5, 6]
        assert [r.metadata.src_node_id for r in replies if r.has_error()] == [5]
        assert replies[4].error.code == 8
        assert "died 3 times" in str(replies[4].error.reason)
        assert sorted(grid.client_states()) == [1, 2, 3, 4, 6]


def test_a_client_that_hangs_is_left_out(ray_session: None, round_of: Any) -> None:
    with RayGrid(CLIENT_APP, 6, workers=2) as grid:
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
