"""A Ray session for the engines' tests, and rounds of messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from simulations.engines.ray_session import open_session

# Ray's workers are given this process's paths, and so find the client's module.
sys.path.append(str(Path(__file__).parent))

CLIENT_APP = "engine_client:app"

RoundOf = Callable[..., list[Message]]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Ray in this process, with room for four workers whatever the machine has."""
    import ray

    open_session(None, needed_cpus=4)
    yield
    ray.shutdown()


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of three nodes with one CPU each, which is not this process's."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="session")
def round_of() -> RoundOf:
    """Build one round's messages: all hold the same content."""

    def messages(
        clients: int = 10, round_number: int = 1, kind: str = "train", **config: bool | float | str
    ) -> list[Message]:
        rng = np.random.default_rng(round_number)
        weight = Array(rng.standard_normal(3000).astype(np.float32))
        told = ConfigRecord({"round": round_number, "list": [1, 2, 3], **config})
        arrays = ArrayRecord()
        arrays["weight"] = weight
        content = RecordDict({"arrays": arrays, "config": told})
        return [
            Message(content, node_id, kind, group_id=str(round_number))
            for node_id in range(1, clients + 1)
        ]

    return messages


@pytest.fixture(scope="session")
def three_rounds(round_of: RoundOf) -> Callable[[Grid], list[list[RecordDict]]]:
    """Run three rounds and return the replies' contents."""

    def run(grid: Grid) -> list[list[RecordDict]]:
        return [
            [reply.content for reply in grid.send_and_receive(round_of(round_number=number))]
            for number in (1, 2, 3)
        ]

    return run
