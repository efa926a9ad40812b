"""A million registered clients cost no more than those that take part."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, strategy_utils

from fedcompress import Compressed
from simulations.cell import Cell
from simulations.cell_folder import CellFolder
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid
from simulations.records import read_rows


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


def test_a_run_holds_nothing_of_clients_that_take_no_part(tmp_path: Path) -> None:
    spec = "error_feedback(top_k(0.05) | quantize(4))"

    def run(clients: int) -> tuple[LocalGrid, int, list[dict[str, object]]]:
        cell = Cell.checked(
            {
                "rounds": 3,
                "data": {"name": "digits"},
                "partition": {"kind": "drawn", "clients": clients, "samples_per_client": 5},
                "model": {"name": "mlp", "hidden": (8,)},
                "federation": {"fraction": 10 / clients},
                "strategy": {"uplink": spec, "downlink": spec},
            },
            "test",
        )
        folder = CellFolder(tmp_path / str(clients), cell)
        grid = LocalGrid("simulations.client_app:app", clients, run_config=cell.to_run_config())
        tracemalloc.start()
        try:
            run_cell(cell, grid, folder, checkpoint_seconds=0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return grid, peak, read_rows(folder.path / "clients.jsonl")

    run(100)  # what is imported and kept
    _, few_peak, _ = run(1_000)
    grid, many_peak, rows = run(200_000)
    asked = {row["node_id"] for row in rows}
    assert len(rows) == 30
    assert all(row["status"] == "ok" for row in rows)
    assert max(int(str(node_id)) for node_id in asked) > 1_000
    assert set(grid.compute_seconds) == set(grid._states) == asked
    # Of 200,000 objects of any kind the smallest would take 1.6 MB for their places alone.
    assert many_peak < few_peak + 800_000
