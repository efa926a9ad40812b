"""Run one cell on any grid: the same code for our engines and for Flower's own."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import safetensors.numpy
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import nn

from fedcompress import Compressed
from simulations.cell import Cell
from simulations.cell_folder import CellFolder, Saved
from simulations.checkpoint import load_strategy_state, strategy_state
from simulations.engines import SimulatedGrid
from simulations.events import CellDone, CellStarted, Listener, RoundDone
from simulations.materials import Materials, materials_of
from simulations.model_record import array_record, load_record, model_record, record_arrays
from simulations.rounds import run_rounds
from simulations.rows import before_training_row, client_rows, round_row
from simulations.strategy import build_strategy
from simulations.student import train_student
from simulations.traffic import MeasuredGrid
from simulations.training import Evaluation, evaluate

logger = logging.getLogger(__name__)

LAST_ROUNDS = 5
"""The final accuracy is the mean over this many of the last rounds that were tested."""


def run_cell(
    cell: Cell,
    grid: Grid,
    folder: CellFolder,
    *,
    listen: Listener | None = None,
    checkpoint_seconds: float = 10.0,
) -> dict[str, Any]:
    """Train one strategy with one seed, from its start or from its last checkpoint.

    Parameters
    ----------
    cell : Cell
        What to run.
    grid : Grid
        Where clients run. Engines of ours can be resumed; on others a cell starts anew.
    folder : CellFolder
        Where records, checkpoints and the result go.
    listen : callable, optional
        Told of every event.
    checkpoint_seconds : float
        Least time between two checkpoints; 0 saves after every round.

    Returns
    -------
    dict
        The contents of ``result.json``.

    Raises
    ------
    ConfigError
        If the settings cannot work on these data.
    OSError
        If the records cannot be written; then there is no result.
    """
    tell = listen or (lambda _event: None)
    started = time.perf_counter()
    materials = materials_of(cell)
    strategy = build_strategy(cell, materials)
    model = materials.new_model(cell.model, cell.seed)
    simulated = grid if isinstance(grid, SimulatedGrid) else None
    saved = folder.open(resume=simulated is not None)
    arrays = model_record(model)
    dense_bytes = sum(len(array.data) for array in arrays.values())
    if saved is not None and simulated is not None:
        arrays = _restore(saved, strategy, simulated)
        started -= float(saved.server["elapsed_seconds"])
    tell(CellStarted(cell, 0 if saved is None else saved.round_number))
    if saved is None:
        testing = time.perf_counter()
        tested = _test(model, materials, cell, arrays)
        first_row = before_training_row(tested, time.perf_counter() - testing)
        folder.append(first_row, [])
        tell(RoundDone(cell, first_row))

    def test_when_due(number: int, current: ArrayRecord) -> Evaluation | None:
        due = number % cell.federation.evaluate_every == 0 or number == cell.rounds
        return _test(model, materials, cell, current) if due else None

    saved_at = time.perf_counter()
    for done in run_rounds(
        strategy,
        MeasuredGrid(grid),
        arrays,
        seed=cell.seed,
        first_round=1 if saved is None else saved.round_number + 1,
        last_round=cell.rounds,
        timeout=cell.federation.timeout_seconds,
        evaluate=test_when_due,
    ):
        arrays = done.arrays
        traffic = strategy.last_round
        own_ids = range(1, materials.partition.num_clients + 1)
        clients = client_rows(
            done,
            traffic,
            lambda node_id: node_id - 1 if simulated and node_id in own_ids else None,
            simulated.compute_seconds if simulated else {},
        )
        row = round_row(done, traffic, clients, dense_bytes)
        folder.append(row, clients)
        tell(RoundDone(cell, row))
        now = time.perf_counter()
        if simulated and done.number < cell.rounds and now - saved_at >= checkpoint_seconds:
            server = {
                "arrays": record_arrays(arrays),
                "strategy": strategy_state(strategy),
                "elapsed_seconds": now - started,
            }
            folder.save(done.number, server, simulated.client_states())
            saved_at = time.perf_counter()
    result = _finish(cell, materials, model, arrays, folder, started)
    tell(CellDone(cell, result))
    return result


def _restore(saved: Saved, strategy: Compressed, grid: SimulatedGrid) -> ArrayRecord:
    load_strategy_state(strategy, saved.server["strategy"])
    grid.load_client_states(saved.client_states)
    return array_record(saved.server["arrays"])


def _test(model: nn.Module, materials: Materials, cell: Cell, arrays: ArrayRecord) -> Evaluation:
    load_record(model, arrays)
    data = materials.data
    return evaluate(model, data.test_x, data.test_y, data, device=cell.device)


def _finish(
    cell: Cell,
    materials: Materials,
    model: nn.Module,
    arrays: ArrayRecord,
    folder: CellFolder,
    started: float,
) -> dict[str, Any]:
    load_record(model, arrays)
    student = None
    if cell.strategy.student is not None:
        student, content = train_student(cell, materials, model)
        folder.write_model("student.safetensors", content)
    folder.write_model("model.safetensors", safetensors.numpy.save(record_arrays(arrays)))
    rows = folder.rows()
    tested = [row["accuracy"] for row in rows if row["round"] > 0 and row["accuracy"] is not None]
    result = {
        "label": cell.label,
        "method": cell.strategy.method,
        "seed": cell.seed,
        "rounds": cell.rounds,
        "final_accuracy": _mean(tested[-LAST_ROUNDS:]),
        "best_accuracy": max(tested, default=None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "uplink": cell.strategy.uplink_spec,
        "downlink": cell.strategy.downlink_spec,
        "student": student,
        "total_seconds": time.perf_counter() - started,
        "finished": True,
    }
    folder.finish(result)
    return result


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
