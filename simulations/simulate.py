"""Run somebody's Flower app on an engine of ours, compressed if asked for, and measure it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, final

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedcompress.checks import check_integer
from fedcompress.errors import ConfigError
from fedcompress.links import read_links
from simulations.compressed_grid import CompressedGrid
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid
from simulations.engines.base import RUN_ID
from simulations.engines.faults import Fault
from simulations.engines.flower_internals import SERVER_NODE_ID
from simulations.flower_app import ClientLoader, FlowerApp
from simulations.gathered_grid import GatheredGrid
from simulations.recorded_grid import RecordedGrid, RoundRecord, total_of
from simulations.traffic import MeasuredGrid


@final
@dataclass(frozen=True)
class SimulateOptions:
    """How to run it.

    Attributes
    ----------
    clients : int
        How many there are.
    uplink, downlink : str or None
        Specs; None leaves that direction dense.
    engine : "ray" or "local"
        Where clients run.
    workers : int or "auto"
        Worker processes.
    address : str or None
        Head of a running Ray cluster.
    seed : int
        Keys the randomness of compression, and seeds Python's `random` before the ServerApp
        runs: Flower's strategies draw clients by it.
    """

    clients: int
    uplink: str | None = None
    downlink: str | None = None
    engine: Literal["ray", "local"] = "ray"
    workers: int | Literal["auto"] = "auto"
    address: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work, before anything is started; raise `ConfigError`."""
        if self.clients < 1:
            raise ConfigError(
                f"--clients: must be at least 1, got {self.clients}; leave it out for the number "
                "that the app's pyproject.toml names"
            )
        if self.engine == "local" and self.address is not None:
            raise ConfigError(
                f"--address {self.address!r}: a cluster needs --engine ray, got 'local'; leave one "
                "of them out"
            )
        check_integer("simulate", "seed", self.seed, 0, (1 << 63) - 1)
        read_links("simulate", self.uplink, self.downlink)

    @property
    def compresses(self) -> bool:
        """Whether anything is to be compressed."""
        return self.uplink is not None or self.downlink is not None


class ServerAppError(Exception):
    """The ServerApp raised; ``__cause__`` is what."""


@final
@dataclass(frozen=True)
class Simulated:
    """What came of a run, whole or cut off."""

    rounds: list[RoundRecord]
    dense_known: bool
    faults: list[Fault] = field(default_factory=list)

    @property
    def total(self) -> RoundRecord:
        """All rounds together."""
        return total_of(self.rounds)


def simulate(
    app: FlowerApp,
    options: SimulateOptions,
    *,
    started: Callable[[SimulatedGrid], None] | None = None,
    ended: Callable[[Simulated], None],
) -> None:
    """Run an app from its start to its end.

    Parameters
    ----------
    app : FlowerApp
        Its code is run as it is.
    options : SimulateOptions
        See there.
    started : callable, optional
        Told of the engine when clients can run.
    ended : callable
        Given what was measured, also when the run was cut off.

    Raises
    ------
    ConfigError
        If a setting cannot work, or the app cannot be imported.
    FedcompressError
        If the messages cannot be compressed.
    ServerAppError
        If the ServerApp raises.
    """
    options.check()
    server = app.load_server()
    with _open_engine(app, options) as engine:
        if started is not None:
            started(engine)
        faults: list[Fault] = []
        engine.on_fault = faults.append
        recorded = _recorded(engine, options)
        grid = GatheredGrid(recorded)
        context = Context(
            run_id=RUN_ID,
            node_id=SERVER_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(app.run_config),
        )
        random.seed(options.seed)
        try:
            server(grid, context)
        except Exception as error:
            if error is recorded.refusal or error is grid.refusal:
                raise
            raise ServerAppError(app.serverapp) from error
        finally:
            ended(Simulated(recorded.finish(), not recorded.compresses_itself, faults))
        if recorded.refusal is not None:  # the ServerApp took it for a client's failure
            raise recorded.refusal


def _open_engine(app: FlowerApp, options: SimulateOptions) -> SimulatedGrid:
    client_app = ClientLoader(app.folder, app.clientapp, options.compresses)
    if options.engine == "local":
        return LocalGrid(client_app, options.clients, run_config=app.run_config)
    return RayGrid(
        client_app,
        options.clients,
        run_config=app.run_config,
        workers=options.workers,
        address=options.address,
    )


def _recorded(engine: Grid, options: SimulateOptions) -> RecordedGrid:
    """Measure what is sent and, around the compression, what would be without it."""
    sent = MeasuredGrid(engine)
    if not options.compresses:
        return RecordedGrid(sent, sent)
    compressed = CompressedGrid(sent, options.uplink, options.downlink, options.seed)
    return RecordedGrid(MeasuredGrid(compressed), sent)
