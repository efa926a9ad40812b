"""Workers forked on this machine from a process that has imported everything: no Ray is started."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from fedcompress.errors import ConfigError
from simulations.engines.channel import Channel
from simulations.engines.client_call import AppFactory
from simulations.engines.faults import FaultKind
from simulations.engines.fork_start import ForkServer
from simulations.engines.pool import WorkerPool


class ForkPool(WorkerPool):
    """Workers as forked processes of this machine.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`; a function is pickled.
    server : ForkServer, optional
        One that was started ahead for this app; it is closed with the pool.
    """

    def __init__(self, client_app: AppFactory, server: ForkServer | None = None) -> None:
        super().__init__()
        self._client_app = client_app
        self._server = ForkServer(client_app) if server is None else server
        self._pids: dict[int, int] = {}
        self._out_of_memory = _kills_for_memory()

    @property
    def count(self) -> int:
        return len(self._pids)

    def node(self, worker: int) -> str:
        return ""

    def replace(self, worker: int) -> bool:
        self._disconnect(worker)
        self._why_died(worker)
        self._fork(worker)
        return True

    def close(self) -> None:
        super().close()
        self._server.close()
        self._pids.clear()

    def _launch(self, count: int) -> None:
        for worker in range(count):
            self._fork(worker)

    def _fork(self, worker: int) -> None:
        try:
            pid, connection = self._server.fork()
        except OSError:  # killed, and every worker with it
            self._server.close()
            self._server = ForkServer(self._client_app)
            try:
                pid, connection = self._server.fork()
            except OSError as error:
                raise ConfigError(
                    "workers: the process that workers are forked from died as it started "
                    f"({error}); does importing the app end the process?"
                ) from error
        self._pids[worker] = pid
        self._connect(worker, Channel(connection, blocking=False))

    def _why_died(self, worker: int) -> tuple[str, FaultKind]:
        pid = self._pids.pop(worker, None)
        if pid is None:
            return "", "worker_died"
        try:
            status = self._server.end(pid)
        except OSError:
            self._server.close()  # should it live: it may still answer what is no longer asked
            return "the process that it was forked from is gone", "worker_died"
        if not os.WIFSIGNALED(status):
            code = os.waitstatus_to_exitcode(status)
            return f"it ended by itself with status {code}", "worker_died"
        kills, self._out_of_memory = self._out_of_memory, _kills_for_memory()
        if os.WTERMSIG(status) == signal.SIGKILL and self._out_of_memory > kills:
            return "the machine ran out of memory", "out_of_memory"
        return f"it was ended by {signal.Signals(os.WTERMSIG(status)).name}", "worker_died"


def _kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
