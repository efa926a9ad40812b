"""Run one engine on one workload in this process and print its figures as one line of JSON.

`benchmarks.engines` starts it with the job, and the folder of the data sets or "", as arguments.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.engines.fork_start import ForkServer

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

    from benchmarks.engine_clock import Clock
    from benchmarks.engine_rows import Engine, Workload
    from simulations.settings import Scalar

    Runner = Callable[[Workload, dict[str, Scalar], ForkServer | None], dict[str, Any]]

CLIENT_APP = "simulations.client_app:app"
WORKERS = 2
RESULT = "RESULT "
"""Begins the line that holds the figures; what frameworks print stands around it."""


def main() -> None:
    """Run the job that the command line holds."""
    told = json.loads(sys.argv[1])
    # As the command `fedcompress run` does, before anything that takes long is imported.
    server = ForkServer(CLIENT_APP) if told["engine"] in ("raygrid", "study") else None
    from benchmarks.engine_rows import Job

    job = Job.from_json(told)
    settings = job.workload.run_config(sys.argv[2] or None)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    figures = _RUNNERS[job.engine](job.workload, settings, server)
    sys.stdout.write(f"\n{RESULT}{json.dumps(figures)}\n")


def _run_raygrid(
    workload: Workload, settings: dict[str, Scalar], ahead: ForkServer | None
) -> dict[str, Any]:
    from flwr.app import Context, RecordDict

    from simulations.engines import RayGrid

    clock, server = _flower_app(workload, settings, wrapped=True)
    with RayGrid(
        CLIENT_APP, workload.clients, run_config=settings, workers=WORKERS, server=ahead
    ) as grid:
        server(grid, Context(1, 1, {}, RecordDict(), dict(settings)))
    return clock.figures()


def _run_flower(
    workload: Workload, settings: dict[str, Scalar], ahead: ForkServer | None
) -> dict[str, Any]:
    del ahead
    from flwr.simulation import run_simulation

    from benchmarks.engine_app import app

    clock, server = _flower_app(workload, settings, wrapped=False)
    run_simulation(
        server,
        app,
        workload.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
            # A cluster that runs on this machine for others is not joined.
            "init_args": {"address": "local", "num_cpus": WORKERS, "include_dashboard": False},
        },
    )
    return clock.figures()


def _flower_app(
    workload: Workload, settings: dict[str, Scalar], wrapped: bool
) -> tuple[Clock, ServerApp]:
    from benchmarks.engine_app import SETTINGS, server_app
    from benchmarks.engine_clock import Clock
    from benchmarks.engine_rows import SKIPPED_ROUNDS

    os.environ[SETTINGS] = json.dumps(settings)
    clock = Clock(SKIPPED_ROUNDS + workload.rounds)
    return clock, server_app(workload, settings, clock, wrapped)


def _run_study(
    workload: Workload, settings: dict[str, Scalar], ahead: ForkServer | None
) -> dict[str, Any]:
    """Run what `fedcompress run` runs: every message counted, every client recorded."""
    import safetensors.numpy

    from benchmarks.engine_clock import Clock
    from benchmarks.engine_rows import SKIPPED_ROUNDS
    from simulations.cell import Cell
    from simulations.cell_folder import CellFolder
    from simulations.cell_run import run_cell
    from simulations.engines import RayGrid
    from simulations.events import Event, RoundDone
    from simulations.materials import materials_of
    from simulations.models import load_arrays

    clock = Clock(SKIPPED_ROUNDS + workload.rounds)

    def listen(event: Event) -> None:
        if not isinstance(event, RoundDone):
            return
        if event.row["round"] == 0:
            clock.start()
        else:
            clock.round_ended(event.row["round"], uncounted=event.row["evaluate_seconds"])

    cell = Cell.from_run_config(settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        RayGrid(
            CLIENT_APP, workload.clients, run_config=settings, workers=WORKERS, server=ahead
        ) as grid,
    ):
        own = CellFolder(Path(folder), cell)
        run_cell(cell, grid, own, listen=listen)
        arrays = safetensors.numpy.load_file(own.path / "model.safetensors")
    materials = materials_of(cell)
    model = materials.new_model(cell.model, cell.seed)
    load_arrays(model, arrays)
    clock.test(model, materials.data)
    return clock.figures()


def _run_bare(
    workload: Workload, settings: dict[str, Scalar], ahead: ForkServer | None
) -> dict[str, Any]:
    del ahead
    from benchmarks.engine_bare import run_bare

    return run_bare(workload, settings)


def _run_pfl(
    workload: Workload, settings: dict[str, Scalar], ahead: ForkServer | None
) -> dict[str, Any]:
    del ahead
    from benchmarks.engine_pfl import run_pfl

    return run_pfl(workload, settings)


_RUNNERS: dict[Engine, Runner] = {
    "raygrid": _run_raygrid,
    "study": _run_study,
    "flower": _run_flower,
    "pfl": _run_pfl,
    "bare": _run_bare,
}

if __name__ == "__main__":
    main()
