"""The same study gives the same bytes, model and client states on every engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedcompress.errors import ConfigError
from simulations.engines import LocalGrid, RayGrid
from simulations.engines.faults import Fault

pytestmark = pytest.mark.ray

CLIENT_APP = "engine_client:app"


@pytest.mark.parametrize("use_ray", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_agree_with_local(
    workers: int,
    use_ray: bool,
    ray_session: None,
    three_rounds: Callable[[Grid], list[list[RecordDict]]],
) -> None:
    local = LocalGrid(CLIENT_APP, 10)
    expected = three_rounds(local)
    states = local.client_states()
    assert len(states) == 10
    with RayGrid(CLIENT_APP, 10, workers=workers, use_ray=use_ray) as grid:
        assert grid.num_workers == workers
        assert three_rounds(grid) == expected
        assert grid.client_states() == states


@pytest.mark.parametrize("use_ray", [False, True])
@pytest.mark.parametrize(
    ("client_app", "said"),
    [
        ("engine_client", "expected \"package.module:attribute\", got 'engine_client'"),
        ("engine_client:nothing", "cannot load 'engine_client:nothing'"),
        ("no_such_module:app", "No module named 'no_such_module'"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_named(
    client_app: str, said: str, use_ray: bool, ray_session: None
) -> None:
    with pytest.raises(ConfigError, match=said):
        LocalGrid(client_app, 2)
    with pytest.raises(ConfigError, match=said):
        RayGrid(client_app, 2, workers=1, use_ray=use_ray)


@pytest.mark.slow
def test_a_cluster_agrees_and_outlives_its_grid_and_a_node(
    cluster: Any, round_of: Any, three_rounds: Callable[[Grid], list[list[RecordDict]]]
) -> None:
    import ray

    local = LocalGrid(CLIENT_APP, 10)
    expected = three_rounds(local)
    states = local.client_states()
    for _ in range(2):  # the grid leaves the cluster as it found it
        with RayGrid(CLIENT_APP, 10, address=cluster.address) as grid:
            deadline = time.monotonic() + 60  # Ray learns late that a node is gone
        while grid.num_workers > 3:
            assert time.monotonic() < deadline
            grid.send_and_receive(round_of(clients=12, slow=0.2))
            assert three_rounds(grid) == expected
            assert grid.client_states() == states
        assert not ray.is_initialized()
    with RayGrid(CLIENT_APP, 10, address=cluster.address) as grid:
        three_rounds(grid)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        replies = grid.send_and_receive(round_of(round_number=4))
        wanted = local.send_and_receive(round_of(round_number=4))
        assert [reply.content for reply in replies] == [reply.content for reply in wanted]
        assert grid.client_states().keys() == states.keys()


@pytest.mark.slow
def test_a_node_that_dies_in_a_round_changes_no_result(cluster: Any, round_of: Any) -> None:
    local = LocalGrid(CLIENT_APP, 12)
    # The node that goes has two workers, one of which keeps the model for both.
    lost = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    with RayGrid(CLIENT_APP, 12, address=cluster.address) as grid:
        assert grid.num_workers == 5
        faults: list[Fault] = []
        grid.on_fault = faults.append
        for number, slow in ((1, 0.0), (2, 0.6), (3, 0.0)):
            told = {"round_number": number, "slow": slow}
            expected = local.send_and_receive(round_of(clients=12, **told))
            killer = threading.Timer(0.8, cluster.remove_node, [lost, False])
            if slow:
                killer.start()
            replies = grid.send_and_receive(round_of(clients=12, **told))
            if slow:
                killer.join()
            assert [reply.content for reply in replies] == [reply.content for reply in expected]
            assert grid.client_states() == local.client_states()
        assert "node_lost" in {fault.kind for fault in faults}
        deadline = time.monotonic() + 60  # Ray learns late that a node is gone
        while grid.num_workers > 3:
            assert time.monotonic() < deadline
            grid.send_and_receive(round_of(clients=12, slow=0.2))


@pytest.mark.slow
def test_a_run_whose_cluster_goes_away_ends_and_says_so(root: Path) -> None:
    script = textwrap.dedent("""
        import sys, threading, time
        from ray.cluster_utils import Cluster
        from simulations.engines import RayGrid
        from flwr.app import ConfigRecord, Message, RecordDict, ArrayRecord, Array
        import numpy as np

        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        arrays = ArrayRecord({"weight": Array(np.ones(3000, np.float32))})
        told = ConfigRecord({"round": 1, "slow": 1.0})
        content = RecordDict({"arrays": arrays, "config": told})
        with RayGrid("engine_client:app", 20, address=nodes.address) as grid:
            messages = [Message(content, node_id, "train") for node_id in range(1, 21)]
            threading.Timer(2.0, nodes.shutdown).start()
            try:
                grid.on_fault = lambda fault: print(fault.kind, fault.outcome, flush=True)
                grid.send_and_receive(messages)
            except Exception as error:
                print(type(error).__name__, error, flush=True)
    """)
    start = time.monotonic()
    paths = os.pathsep.join([str(root), str(Path(__file__).parent)])
    # There Ray keeps which cluster is this machine's, also when it is gone.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ended = subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env=os.environ | {"PYTHONPATH": paths, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "EngineGoneError engine: Ray does not answer any more" in ended.stdout, ended
    assert "ray_gone stopped" in ended.stdout, ended
    assert time.monotonic() - start < 150
