"""The Flower app that RayGrid and Flower's own simulation both run, unchanged.

The client is that of the simulations. Flower's `run_simulation` has no run configuration, so there
its settings come by the environment.
"""

import json
import os
import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from benchmarks.engine_clock import Clock
from benchmarks.engine_rows import SKIPPED_ROUNDS, Workload
from fedcompress import Compressed
from fedcompress.errors import FedcompressError
from fedcompress.strategy_around import StrategyAround
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
    strategy = _Counted(_strategy(workload, wrapped))

    def after_round(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        # Flower draws clients by Python's own randomness: the same ones wherever ids are alike.
        random.seed(number + 1)
        if number == 0:
            clock.start()
            return None
        clock.round_ended(number)
        if strategy.updates < workload.per_round:
            raise FedcompressError(
                f"round {number}: {strategy.updates} of {workload.per_round} clients gave an update"
            )
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
        strategy.start(
            grid=grid,
            initial_arrays=model_record(model),
            num_rounds=SKIPPED_ROUNDS + workload.rounds,
            evaluate_fn=after_round,
        )

    return server


def _strategy(workload: Workload, wrapped: bool) -> Strategy:
    inner = FedAvg(
        fraction_train=workload.per_round / workload.clients,
        fraction_evaluate=0.0,
        min_train_nodes=workload.per_round,
        min_available_nodes=workload.clients,
    )
    if not (wrapped or workload.spec):
        return inner
    return Compressed(inner, uplink=workload.spec or None, downlink=workload.spec or None)


@final
class _Counted(StrategyAround):
    """A strategy that tells how many clients gave it an update in the last round.

    A metrics function of ours could count too, but would take the place of FedAvg's own.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.updates = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.updates = 0
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        given = list(replies)
        found = self.strategy.aggregate_train(server_round, given)
        if isinstance(self.strategy, Compressed):
            self.updates = sum(one.status == "ok" for one in self.strategy.last_round.clients)
        else:
            self.updates = sum(reply.has_content() for reply in given)
        return found

    def summary(self) -> None:
        self.strategy.summary()
