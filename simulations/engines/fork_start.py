"""The driver's hold on the process that workers are forked from.

This module imports nothing that takes long, so that the process can be started first of all and
import torch and Flower while its driver does.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from simulations.closing import Closing
from simulations.engines.fork_server import ANSWER, END, FORK, REQUEST

if TYPE_CHECKING:
    from flwr.clientapp.typing import ClientAppCallable

    from simulations.engines.client_call import AppFactory

# Read by numerical libraries when they are imported: two threads on a busy core take ten times as
# long as one, and a process that has started threads must not fork.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from simulations.engines.fork_server import serve; serve(int(sys.argv[1]))"
)
LOAD_SECONDS = 180.0
_ANSWER_SECONDS = 180.0


class ForkServer(Closing):
    """The driver's hold on one `fork_server`; the process ends when this is closed or lost.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`.

    Attributes
    ----------
    client_app : str or callable
        What was given.
    """

    def __init__(self, client_app: AppFactory) -> None:
        self.client_app = client_app
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
        self._control.settimeout(LOAD_SECONDS)
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
        """End the process and every worker forked from it; closing twice is harmless."""
        self._control.close()
        if not self._loaded:  # it has no workers, and is importing something
            self._process.kill()
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
            from fedcompress.errors import ConfigError

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
