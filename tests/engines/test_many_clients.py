"""A million registered clients cost no more than those that take part."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, strategy_utils

from fedcompress import Compressed
from simulations.engines import LocalGrid


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


class Listed(LocalGrid):
    """Gives its ids as Flower's own grids do."""

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._num_clients + 1))


def asked(strategy: Compressed, grid: LocalGrid, seed: int) -> list[int]:
    random.seed(seed)
    messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    return [message.metadata.dst_node_id for message in messages]


@pytest.mark.parametrize(
    ("clients", "share"), [(1, 1.0), (7, 0.5), (100, 1.0), (1_046, 0.3), (200_000, 0.001)]
)
def test_the_draws_are_those_of_flower(clients: int, share: float) -> None:
    grid, listed = (kind("engine_client:app", clients) for kind in (LocalGrid, Listed))
    strategy = Compressed(
        FedAvg(fraction_train=share, min_train_nodes=1, min_available_nodes=clients)
    )
    for seed in range(3):
        random.seed(seed)
        expected, _ = strategy_utils.sample_nodes(listed, clients, max(1, int(clients * share)))
        assert asked(strategy, grid, seed) == asked(strategy, listed, seed) == expected


def test_drawing_lists_no_clients() -> None:
    grid = LocalGrid("engine_client:app", 1_000_000)
    strategy = Compressed(
        FedAvg(fraction_train=1e-4, fraction_evaluate=1e-4, min_available_nodes=1_000_000)
    )
    asked(strategy, grid, 0)  # what is imported and kept
    with peak_below(1_000_000):
        assert len(asked(strategy, grid, 1)) == 100
        messages = strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)
        assert len(list(messages)) == 100
