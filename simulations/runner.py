"""Run a study: every cell that has no result yet, on one engine that stays for all of them."""

import logging
from contextlib import ExitStack
from pathlib import Path

from simulations.cell_folder import CellFolder
from simulations.cell_run import run_cell
from simulations.engines import LocalGrid, RayGrid, SimulatedGrid
from simulations.engines.fork_start import ForkServer
from simulations.events import CellDone, Event, Listener
from simulations.materials import materials_of
from simulations.readiness import check_ready
from simulations.settings import Scalar
from simulations.study import EngineSettings, Study
from simulations.study_folder import StudyFolder
from simulations.trace import Trace, check_trace_path
from simulations.training_path import with_training_path

logger = logging.getLogger(__name__)

CLIENT_APP = "simulations.client_app:app"


def run_study(
    study: Study,
    out: str | Path,
    *,
    listen: Listener | None = None,
    profile: Path | None = None,
    server: ForkServer | None = None,
) -> None:
    """Run the grid of cells, skipping finished ones and going on with one that was killed.

    A killed cell continues at its last checkpoint and ends with the same model and the same
    records, but for what a clock measured, as one that was never interrupted.

    Parameters
    ----------
    study : Study
        What to run.
    out : str or Path
        Folder of the records.
    listen : callable, optional
        Told of every event.
    profile : Path, optional
        File for what ran when; see `Trace`.
    server : ForkServer, optional
        What workers are forked from, started ahead for `CLIENT_APP`; closed with the engine.

    Raises
    ------
    ConfigError
        If a setting cannot work, the data are missing, the folder holds another study, or the
        engine cannot start.
    FedcompressError
        If no round of a cell had a usable update.
    OSError
        If the records cannot be written.
    """
    cells = study.cells()
    folder = StudyFolder(Path(out))
    folder.check(study)
    if profile is not None:
        check_trace_path(profile)
    check_ready([cell for cell in cells if folder.cell(cell).result() is None])
    data = materials_of(cells[0]).data
    listeners: list[Listener] = [] if listen is None else [listen]

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    grid: SimulatedGrid | None = None
    with ExitStack() as stack:
        stack.enter_context(folder.claim(study, data))
        if profile is not None:
            listeners.append(stack.enter_context(Trace(profile)))
        try:
            for cell in cells:
                own = folder.cell(cell)
                result = own.result()
                if result is not None:
                    _warn_of_damage(own)
                    tell(CellDone(cell, result, skipped=True))
                    continue
                clients = materials_of(cell).partition.num_clients
                decided = with_training_path(cell, folder.path)
                run_config = decided.to_run_config()
                if grid is None:
                    grid = open_grid(study.engine, clients, run_config, server)
                else:
                    grid.reset(num_clients=clients, run_config=run_config)
                run_cell(
                    decided, grid, own, listen=tell, checkpoint_seconds=study.checkpoint_seconds
                )
        finally:
            if grid is not None:
                grid.close()


def _warn_of_damage(folder: CellFolder) -> None:
    damage = folder.damage()
    if damage is not None:
        logger.warning(
            "%s is finished but damaged: %s; remove that folder and run again", folder.path, damage
        )


def open_grid(
    engine: EngineSettings,
    clients: int,
    run_config: dict[str, Scalar],
    server: ForkServer | None = None,
) -> SimulatedGrid:
    """Start the engine that a study names; `server` is what its workers may be forked from.

    Raises
    ------
    ConfigError
        If it cannot start, such as when no Ray cluster answers at the address.
    """
    if engine.kind == "local":
        return LocalGrid(CLIENT_APP, clients, run_config=run_config)
    workers = engine.workers
    return RayGrid(
        CLIENT_APP,
        clients,
        run_config=run_config,
        workers="auto" if isinstance(workers, str) else workers,
        address=engine.address,
        cpus_per_worker=engine.cpus_per_worker,
        gpus_per_worker=engine.gpus_per_worker,
        client_timeout=engine.client_timeout_seconds,
        state_bytes=engine.state_bytes,
        server=server,
    )
