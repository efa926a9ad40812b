"""Start an engine's run in a process of its own, and read what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, final

from benchmarks.engine_clock import STARTED
from benchmarks.engine_rows import Engine, Job
from benchmarks.engine_run import RESULT

TIMEOUT_SECONDS = 1200  # Flower's simulation hangs where its back end fails
_ROOT = Path(__file__).resolve().parent.parent
_MODULES: dict[Engine, str] = {"pfl": "pfl"}
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class EngineFailedError(Exception):
    """An engine ended without figures; the last line of what it said."""


@final
class Interpreters:
    """Which Python runs which engine.

    Parameters
    ----------
    peer_python : str or None
        For peers that this interpreter lacks.
    """

    def __init__(self, peer_python: str | None) -> None:
        self._pythons = [sys.executable, *([peer_python] if peer_python else [])]
        self._found: dict[Engine, str | None] = {}

    def of(self, engine: Engine) -> str:
        """Give the interpreter that has what an engine needs."""
        return self._find(engine) or sys.executable

    def missing(self, engine: Engine) -> str | None:
        """Say why an engine cannot run here; None if it can."""
        if self._find(engine) is not None:
            return None
        return f"{_MODULES[engine]} is not installed; see --peer-python"

    def _find(self, engine: Engine) -> str | None:
        if engine not in _MODULES:
            return sys.executable
        if engine not in self._found:
            command = f"import importlib.util as u; exit(u.find_spec({_MODULES[engine]!r}) is None)"
            self._found[engine] = next(
                (
                    python
                    for python in self._pythons
                    if subprocess.run([python, "-c", command], check=False).returncode == 0
                ),
                None,
            )
        return self._found[engine]


def run_job(job: Job, data_dir: str | None, interpreters: Interpreters) -> dict[str, Any]:
    """Run one job and give its figures, with the load that the machine had before.

    Raises
    ------
    EngineFailedError
        If it ends without figures, or none in time.
    """
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | _QUIET | dict.fromkeys(_ONE_THREAD, "1")
    environment |= {"PYTHONPATH": os.pathsep.join(paths), STARTED: str(time.time())}
    load = os.getloadavg()[0]
    command = [
        interpreters.of(job.engine),
        *("-m", "benchmarks.engine_run", json.dumps(job.to_json()), data_dir or ""),
    ]
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise EngineFailedError(f"no result within {TIMEOUT_SECONDS} s") from error
            raise
    for line in reversed(said.splitlines()):
        if line.startswith(RESULT):
            figures: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return figures | {"load": load}
    words = [line for line in errors.splitlines() if line.strip()]
    raise EngineFailedError(words[-1].strip() if words else f"ended with {process.returncode}")
