"""Workers forked on this machine from a process that has imported everything: no Ray is started."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.clientapp.typing import ClientAppCallable

from fedcompress.errors import ConfigError
from simulations.engines.channel import Channel
from simulations.engines.client_call import AppFactory
from simulations.engines.faults import FaultKind
from simulations.engines.fork_server import ANSWER, END, FORK, REQUEST
from simulations.engines.pool import START_SECONDS, WorkerPool

# Read by numerical libraries when they are imported: two threads on a busy core take ten times as
# long as one, and a process that has started threads must not fork.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from simulations.engines.fork_server import serve; serve(int(sys.argv[1]))"
)
_ANSWER_SECONDS = 180.0


class ForkServer:
    """The driver's hold on one `fork_server`; the process ends when this is closed or lost.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`.
    """

    def __init__(self, client_app: AppFactory) -> None:
        self._control, theirs = socket.socketpair()
        # A session of its own: Ctrl-C is for the driver, which then closes its workers.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), json.dumps(sys.path)],
                env=os.environ | ONE_THREAD,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control.settimeout(START_SECONDS)
        told = json.dumps(_described(client_app)).encode()
        self._control.sendall(ANSWER.pack(len(told)) + told)
        self._loaded = False

    def fork(self) -> tuple[int, socket.socket]:
        """Fork a worker; return its process id and the connection to it."""
        self._wait_loaded()
        ours, theirs = socket.socketpair()
        with theirs:
            request = REQUEST.pack(FORK, 0)
            socket.send_fds(self._control, [request], [theirs.fileno()])
            return self._answer(), ours

    def end(self, pid: int) -> int:
        """Kill a worker, dead or alive, and return the status that its process ended with."""
        self._control.sendall(REQUEST.pack(END, pid))
        return self._answer()

    def close(self) -> None:
        """End the process and every worker forked from it."""
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_loaded(self) -> None:
        if self._loaded:
            return
        said = self._exactly(self._answer())
        if said:
            raise ConfigError(f"client_app: no worker could start: {said.decode()}")
        self._loaded = True
        self._control.settimeout(_ANSWER_SECONDS)

    def _answer(self) -> int:
        (answer,) = ANSWER.unpack(self._exactly(ANSWER.size))
        return int(answer)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._control.recv(count - len(data))
            if not more:
                raise ConnectionError("the process that workers are forked from is gone")
            data += more
        return data


class ForkPool(WorkerPool):
    """Workers as forked processes of this machine.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`; a function is pickled.
    """

    def __init__(self, client_app: AppFactory) -> None:
        super().__init__()
        self._client_app = client_app
        self._server = ForkServer(client_app)
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


def _described(client_app: AppFactory) -> dict[str, str | None]:
    if isinstance(client_app, str):
        return {"app": client_app}
    return {"app": None, "factory": _pickled(client_app).hex()}


def _pickled(factory: Callable[[], ClientAppCallable]) -> bytes:
    module = getattr(factory, "__module__", type(factory).__module__)
    if module != "__main__":  # which is another module where this is read
        with suppress(pickle.PicklingError, AttributeError, TypeError):
            return pickle.dumps(factory)
    from ray import cloudpickle  # half a second, and it pickles functions by their code

    pickled: bytes = cloudpickle.dumps(factory)  # type: ignore[no-untyped-call]
    return pickled


def _kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
