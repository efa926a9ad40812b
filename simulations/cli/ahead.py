"""Start what workers are forked from before anything that takes long is imported here.

On two cores and more the workers' imports then run beside those of the command.
"""

import sys
import tomllib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.engines.fork_start import ForkServer

CLIENT_APP = "simulations.client_app:app"
_STUDIES = Path(__file__).parent.parent / "studies"


def server_ahead(
    study: str, assignments: Sequence[str], engine: str | None, address: str | None
) -> "ForkServer | nullcontext[None]":
    """Start the process, if the study is one whose workers are forked; a context manager.

    The study is looked at, not judged: of one that cannot be read nothing is started, and whoever
    reads it next says why.
    """
    if not _forks(study, assignments, engine, address):
        return nullcontext()
    from simulations.engines.fork_start import ForkServer

    return ForkServer(CLIENT_APP)


def _forks(study: str, assignments: Sequence[str], engine: str | None, address: str | None) -> bool:
    if sys.platform == "win32" or engine == "local" or address is not None:
        return False
    if any(one.strip().startswith("engine") for one in assignments):
        return False  # whatever it says: it is not worth reading here
    file = Path(study)
    try:
        file = file if file.is_file() else _STUDIES / f"{study}.toml"
        told = tomllib.loads(file.read_text("utf-8-sig")).get("engine", {})
    except (OSError, ValueError):
        return False
    if not isinstance(told, dict):
        return False
    is_ray = (engine or told.get("kind", "ray")) == "ray"
    return is_ray and not told.get("address") and not told.get("gpus_per_worker")
