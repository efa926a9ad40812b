"""The Flower app that RayGrid and Flower's own simulation both run, unchanged.

The client is that of the simulations. Flower's `run_simulation` has no run configuration, so there
its settings come by the environment.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from benchmarks.engine_clock import Clock
from benchmarks.engine_rows import SKIPPED_ROUNDS, Workload
from fedcompress import Compressed
from fedcompress.errors import FedcompressError
from simulations.cell import Cell
from simulations.client_app import app as client_app
from simulations.engines.base import SimulatedGrid
from simulations.materials import materials_of
from simulations.model_record import load_record, model_record
from simulations.settings import Scalar

SETTINGS = "FEDCOMPRESS_BENCHMARK_SETTINGS"
"""Names the environment variable with the client's settings as JSON."""


class _FromEnvironment(ClientApp):
    """The client's app of the simulations on settings of the environment."""

    def __call__(self, message: Message, context: Context) -> Message:
        # Flower refuses a node's context whose settings have changed; the state is the node's own.
        own = replace(context, run_config=_settings())
        return client_app(message, own)


app = _FromEnvironment()


@cache
def _settings() -> dict[str, Scalar]:
    settings: dict[str, Scalar] = json.loads(os.environ[SETTINGS])
    return settings


def server_app(
    workload: Workload, settings: dict[str, Scalar], clock: Clock, wrapped: bool
) -> ServerApp:
    """Make a ServerApp that trains by FedAvg and stamps the rounds.

    Parameters
    ----------
    workload : Workload
        What is trained.
    settings : dict
        The client's settings.
    clock : Clock
        Stamped after every round, and told of the last model.
    wrapped : bool
        Whether FedAvg stands in `Compressed` where nothing is compressed, too: RayGrid's workers
        then add up the models.

    Raises
    ------
    FedcompressError
        In the app, if a client did not reply with a usable update.
    """
    cell = Cell.from_run_config(settings)
    materials = materials_of(cell)
    model, sizes = materials.new_model(cell.model, cell.seed), materials.partition.sizes()
    replies = 0

    def count(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
        nonlocal replies
        replies = len(contents)
        return aggregate_metricrecords(contents, weighted_by)

    def after_round(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        # Flower draws clients by Python's own randomness: the same ones wherever ids are alike.
        random.seed(number + 1)
        if number == 0:
            clock.start()
            return None
        clock.round_ended(number)
        nonlocal replies
        if replies < workload.per_round:
            raise FedcompressError(
                f"round {number}: {replies} of {workload.per_round} clients gave an update"
            )
        replies = 0
        if number == clock.last_round:
            load_record(model, arrays)
            clock.test(model, materials.data)
        return None

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        torch.set_num_threads(1)
        if isinstance(grid, SimulatedGrid):  # as a study tells it
            grid.expect_sizes(lambda node_id: float(sizes[node_id - 1]))
        _strategy(workload, count, wrapped).start(
            grid=grid,
            initial_arrays=model_record(model),
            num_rounds=SKIPPED_ROUNDS + workload.rounds,
            evaluate_fn=after_round,
        )

    return server


def _strategy(
    workload: Workload,
    aggregate: Callable[[list[RecordDict], str], MetricRecord],
    wrapped: bool,
) -> Strategy:
    inner = FedAvg(
        fraction_train=workload.per_round / workload.clients,
        fraction_evaluate=0.0,
        min_train_nodes=workload.per_round,
        min_available_nodes=workload.clients,
        train_metrics_aggr_fn=aggregate,
    )
    if not (wrapped or workload.spec):
        return inner
    return Compressed(inner, uplink=workload.spec or None, downlink=workload.spec or None)
