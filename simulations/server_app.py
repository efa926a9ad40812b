"""The server's app: runs one cell on whatever grid it is given.

It knows nothing but the run configuration, so `flwr run .` runs it on Flower's own engines.
There, `records` names a folder for the records; without it they are logged and not kept.
"""

import logging
import tempfile
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from simulations.cell import Cell
from simulations.cell_run import run_cell
from simulations.client_app import without_folder
from simulations.events import Event, RoundDone
from simulations.materials import materials_of
from simulations.readiness import check_ready
from simulations.study import study_of
from simulations.study_folder import StudyFolder

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the cell that the run configuration describes."""
    cell = Cell.from_run_config(without_folder(context.run_config))
    kept = str(context.run_config.get("records", ""))
    with tempfile.TemporaryDirectory() as passing:
        folder = StudyFolder(Path(kept or passing))
        check_ready([cell])
        with folder.claim(study_of(cell), materials_of(cell).data):
            own = folder.cell(cell)
            result = own.result() or run_cell(cell, grid, own, listen=_log)
    logger.info("result: %s", result)


def _log(event: Event) -> None:
    if isinstance(event, RoundDone):
        row = event.row
        logger.info(
            "round %d: accuracy %s, uplink %s B, downlink %s B",
            row["round"],
            row["accuracy"],
            row.get("uplink_payload_bytes", 0),
            row.get("downlink_payload_bytes", 0),
        )
