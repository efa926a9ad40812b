"""`fedcompress run`."""

import gc
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from fedcompress.errors import ConfigError
from simulations.cli.progress import StudyProgress
from simulations.cli.results import show_results
from simulations.engines.fork_start import ForkServer
from simulations.runner import run_study
from simulations.study import Study, load_study


def run_command(
    study_file: str,
    assignments: Sequence[str],
    *,
    data_dir: Path | None,
    out: Path | None,
    engine: str | None,
    workers: str | None,
    address: str | None,
    resume: bool,
    quiet: bool,
    profile: str | None = None,
    server: ForkServer | None = None,
) -> None:
    """Load the study, run it with progress, and show its results; `server` is for its workers.

    Raises
    ------
    ConfigError
        If the study cannot run, or there is nothing to resume.
    """
    console = Console()
    _log_to(console)
    chosen = {
        "data.data_dir": None if data_dir is None else str(data_dir),
        "engine.kind": engine if address is None else engine or "ray",
        "engine.workers": workers,
        "engine.address": address,
    }
    options = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    study = load_study(study_file, [*assignments, *options])
    folder = out or Path("runs") / _folder_name(study)
    if resume and not (folder / "study.json").is_file():
        raise ConfigError(f"{folder} holds no run to resume; leave --resume out to start one")
    with nullcontext() if quiet else StudyProgress(study, console) as progress:
        trace = None if profile is None else Path(profile or folder / "trace.json")
        # What is imported is no garbage: to look through it takes a tenth of a second each time.
        gc.freeze()
        run_study(study, folder, listen=progress, profile=trace, server=server)
    if trace is not None and not quiet:
        console.print(f"{trace}: open it at ui.perfetto.dev", highlight=False, markup=False)
    show_results(folder, console, quiet=quiet, keep=True)


def _folder_name(study: Study) -> str:
    from simulations.study import slug

    return slug(study.name).replace("-", "_")


def _log_to(console: Console) -> None:
    """Show warnings above the progress display, and leave Flower's own chatter out."""
    handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("flwr").setLevel(logging.ERROR)
