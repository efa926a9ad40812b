"""Run one cell on any grid: the same code for our engines and for Flower's own."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import safetensors.numpy
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import nn

from fedcompress.errors import FedcompressError
from simulations.cell import Cell
from simulations.cell_folder import CellFolder, Saved, is_usable
from simulations.checkpoint import load_strategy_state, strategy_state
from simulations.engines import SimulatedGrid
from simulations.engines.faults import Fault
from simulations.events import (
    CellDone,
    CellStarted,
    ClientsWatch,
    Event,
    Listener,
    RoundDone,
)
from simulations.exchanges.exchange import build_exchange
from simulations.materials import materials_of
from simulations.model_record import array_record, record_arrays
from simulations.models import model_arrays
from simulations.rounds import run_rounds
from simulations.rows import before_training_row, client_rows, round_row, timeline_of
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
    FedcompressError
        If no round had a usable update; then there is no result.
    OSError
        If the records cannot be written; then there is no result.
    """
    run = _CellRun(cell, grid, folder, listen or _listen_to_nothing)
    saved = folder.open(resume=run.simulated is not None)
    arrays = run.begin() if saved is None else run.restore(saved)
    arrays = run.train(arrays, 0 if saved is None else saved.round_number, checkpoint_seconds)
    return run.finish(arrays)


@final
class _CellRun:
    """What the steps of a cell share."""

    def __init__(self, cell: Cell, grid: Grid, folder: CellFolder, tell: Listener) -> None:
        self._started = time.perf_counter()
        self._cell = cell
        self._grid = grid
        self._folder = folder
        self._tell = tell
        self._materials = materials_of(cell)
        self._exchange = build_exchange(cell, self._materials)
        self._strategy = build_strategy(cell, self._materials, self._exchange)
        self._rounds_done = 0
        self.simulated = grid if isinstance(grid, SimulatedGrid) else None
        if self.simulated is not None:
            sizes = self._materials.partition.sizes()
            self.simulated.expect_sizes(lambda node_id: float(sizes[node_id - 1]))
            self.simulated.expect_facts(self._exchange.data_facts())

    def begin(self) -> ArrayRecord:
        """Start anew: record the model before training and give it."""
        self._tell(CellStarted(self._cell, 0))
        arrays = self._exchange.start()
        testing = time.perf_counter()
        row = before_training_row(self._test(arrays), time.perf_counter() - testing)
        self._folder.append(row, [])
        self._tell(RoundDone(self._cell, row))
        return arrays

    def restore(self, saved: Saved) -> ArrayRecord:
        """Go on from a checkpoint: give strategy and clients their state, return the model."""
        load_strategy_state(self._strategy, saved.server["strategy"])
        if self.simulated is not None:
            self.simulated.load_client_states(saved.client_states)
        self._started -= float(saved.server["elapsed_seconds"])
        self._tell(CellStarted(self._cell, saved.round_number))
        return array_record(saved.server["arrays"])

    def train(
        self, arrays: ArrayRecord, rounds_done: int, checkpoint_seconds: float
    ) -> ArrayRecord:
        """Run the rounds that are left, recording and saving; return the last model."""
        cell, dense_bytes = self._cell, self._exchange.dense_bytes()
        saved_at = time.perf_counter()
        if self.simulated is not None:
            self.simulated.on_reply = ClientsWatch(cell, self._tell)
            self.simulated.on_fault = self._note_fault
        self._rounds_done = rounds_done
        for done in run_rounds(
            self._strategy,
            MeasuredGrid(self._grid),
            arrays,
            seed=cell.seed,
            first_round=rounds_done + 1,
            last_round=cell.rounds,
            timeout=cell.federation.timeout_seconds,
            evaluate=self._test_when_due,
        ):
            arrays = done.arrays
            self._rounds_done = done.number
            traffic = self._strategy.last_round
            measured = self.simulated.compute_seconds if self.simulated else {}
            clients = client_rows(done, traffic, self._client_of, measured)
            workers = self.simulated.num_workers if self.simulated else 1
            timeline = timeline_of(done, traffic, self._client_of, workers)
            row = round_row(done, traffic, clients, dense_bytes, timeline)
            self._folder.append(row, clients)
            self._tell(RoundDone(cell, row, timeline))
            waited = time.perf_counter() - saved_at
            if done.number < cell.rounds and waited >= checkpoint_seconds:
                self._save(done.number, arrays)
                saved_at = time.perf_counter()
        return arrays

    def finish(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Distil the student if there is to be one, and write models and result."""
        cell = self._cell
        rows = self._folder.rows()
        if not any(is_usable(row) for row in rows):
            self._folder.drop_checkpoint()
            raise FedcompressError(
                f"strategy {cell.label!r}, seed {cell.seed}: no round had a usable update, so it "
                f"has no result; the clients' first reason: {self._folder.first_reason()}"
            )
        model = self._exchange.model_of(arrays)
        student = None
        if cell.strategy.student is not None:
            student, content = train_student(cell, self._materials, model, self._strategy)
            self._folder.write_model("student.safetensors", content)
        model.to("cpu")
        self._folder.write_model(
            "model.safetensors", safetensors.numpy.save(dict(model_arrays(model)))
        )
        by_part = [
            r["accuracy_by_part"] for r in rows if r["round"] > 0 and "accuracy_by_part" in r
        ]
        tested = [r["accuracy"] for r in rows if r["round"] > 0 and r["accuracy"] is not None]
        result = {
            "label": cell.label,
            "method": cell.strategy.method,
            "seed": cell.seed,
            "rounds": cell.rounds,
            "final_accuracy": _mean(tested[-LAST_ROUNDS:]),
            "best_accuracy": max(tested, default=None),
            "final_accuracy_by_part": {
                name: _mean([each[name] for each in by_part[-LAST_ROUNDS:]])
                for name in (by_part[-1] if by_part else {})
            },
            "training_path": self._exchange.path(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "exchange": cell.strategy.exchange_name,
            "uplink": cell.strategy.uplink_spec,
            "downlink": cell.strategy.downlink_spec,
            "student": student,
            "proxy": self._materials.proxy_facts(),
            **self._exchange.facts(arrays),
            "total_seconds": time.perf_counter() - self._started,
            "finished": True,
        }
        self._folder.finish(result)
        self._tell(CellDone(cell, result))
        return result

    def _save(self, number: int, arrays: ArrayRecord) -> None:
        if self.simulated is None:
            return
        server = {
            "arrays": record_arrays(arrays),
            "strategy": strategy_state(self._strategy),
            "elapsed_seconds": time.perf_counter() - self._started,
        }
        self._folder.save(number, server, self.simulated.changed_states())

    def _note_fault(self, fault: Fault) -> None:
        self._folder.append_fault({"round": self._rounds_done + 1, **fault._asdict()})

    def _client_of(self, node_id: int) -> int | None:
        """Partition id of a node: known beforehand on our engines only."""
        return None if self.simulated is None else node_id - 1

    def _test_when_due(self, number: int, arrays: ArrayRecord) -> Evaluation | None:
        due = number % self._cell.federation.evaluate_every == 0 or number == self._cell.rounds
        return self._test(arrays) if due else None

    def _test(self, arrays: ArrayRecord) -> Evaluation:
        def tested(model: nn.Module) -> Evaluation:
            return evaluate(model, data.test_x, data.test_y, data, device=self._cell.device)

        data = self._materials.data
        parts = {n: tested(m).accuracy for n, m in self._exchange.parts_of(arrays).items()}
        return replace(tested(self._exchange.model_of(arrays)), parts=parts)


def _listen_to_nothing(_: Event) -> None:
    pass


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
