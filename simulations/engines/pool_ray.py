"""Workers placed by Ray, on one machine or a cluster, with a connection each to the driver.

Ray starts the processes, holds their CPUs and GPUs and tells which nodes are there. Each worker
connects to the driver, proves that it has the key that Ray brought it, and from then on Ray is not
in the way of a round.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import selectors
import socket
import struct
import time
from contextlib import suppress
from typing import Any, Literal

from fedcompress.errors import ConfigError
from simulations.engines.channel import Channel
from simulations.engines.client_call import AppFactory
from simulations.engines.faults import FaultKind
from simulations.engines.pool import Died, Event, WorkerPool
from simulations.engines.ray_session import (
    ask_ray,
    node_answers,
    open_session,
    workers_that_fit,
)

logger = logging.getLogger(__name__)

CHALLENGE_BYTES = 32
_PROOF = struct.Struct("<q32s")  # who it is, and the challenge signed with the key
_PROOF_SECONDS = 5.0
# Ray tells of a process that never connected only when asked.
_ASK_EVERY_SECONDS = 0.5
_REASON_SECONDS = 2.0
_END_SECONDS = 1.0


class RayWorker:
    """An actor that serves the driver over a connection; its one call lasts as long as it does."""

    def node(self) -> str:
        """Return the id of the Ray node that this process is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def serve(
        self, client_app: AppFactory, address: tuple[str, int], key: bytes, number: int
    ) -> str:
        """Connect to the driver and call clients for it; return why it ended."""
        from simulations.engines.worker import work

        try:
            connection = socket.create_connection(address)
            challenge = _exactly(connection, CHALLENGE_BYTES)
            connection.sendall(_PROOF.pack(number, _signed(key, challenge, number)))
        except OSError as error:
            return f"it could not connect to the driver at {address[0]}:{address[1]} ({error})"
        # An end of the connection says that the driver is gone, or wants this worker no more.
        with suppress(EOFError, ConnectionError):
            work(connection, client_app)
        return "its connection ended"


def _signed(key: bytes, challenge: bytes, number: int) -> bytes:
    return hmac.new(key, challenge + struct.pack("<q", number), hashlib.sha256).digest()


def _kill(actor: Any) -> None:  # noqa: ANN401 - Ray's handles have no type of their own
    import ray

    ray.kill(actor)


def _dead(events: list[Event]) -> set[int]:
    return {event.worker for event in events if isinstance(event, Died)}


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("the connection was closed")
        data += more
    return data


class RayPool(WorkerPool):
    """Workers as Ray actors.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`.
    address : str or None
        See `open_session`.
    cpus_per_worker, gpus_per_worker : float
        What Ray reserves for each worker.
    workers : int or "auto"
        How many are wanted.

    Raises
    ------
    ConfigError
        If no cluster answers, or the workers do not fit.
    """

    def __init__(
        self,
        client_app: AppFactory,
        address: str | None,
        cpus_per_worker: float,
        gpus_per_worker: float,
        workers: int | Literal["auto"],
    ) -> None:
        super().__init__()
        import ray

        self._client_app = client_app
        self._resources = (cpus_per_worker, gpus_per_worker)
        self._owns_session = open_session(
            address, 0.0 if workers == "auto" else workers * cpus_per_worker
        )
        self._actors: dict[int, Any] = {}
        self._calls: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._serials: dict[int, int] = {}  # by which a worker's number is known as it connects
        self._begun = 0
        self._asked = 0.0
        fit = workers_that_fit(cpus_per_worker, gpus_per_worker)
        self.wanted = fit if workers == "auto" else workers
        if self.wanted > fit or not self.wanted:
            self._leave()
            raise ConfigError(
                f"workers: {workers} workers of {cpus_per_worker:g} CPUs and {gpus_per_worker:g} "
                f"GPUs each do not fit, {fit} do; ask for fewer, or lower cpus_per_worker"
            )
        self._here = str(ray.get_runtime_context().get_node_id())
        self._actor_class: Any = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, scheduling_strategy="SPREAD"
        )(RayWorker)
        self._key = secrets.token_bytes(32)
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._listener = socket.create_server((host, 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    @property
    def count(self) -> int:
        return len(self._actors)

    def node(self, worker: int) -> str:
        node = self._nodes[worker]
        return "" if node == self._here else node

    def replace(self, worker: int) -> bool:
        self._disconnect(worker)
        actor = self._actors.pop(worker)
        ask_ray(lambda: _kill(actor))
        fit = ask_ray(lambda: workers_that_fit(*self._resources))
        if fit <= len(self._actors) and self._actors:
            return False  # a lost node took its room
        ask_ray(lambda: self._begin(worker))
        return True

    def events(self, timeout: float | None) -> list[Event]:
        """Wait as the others do; while a worker is starting, ask Ray whether it still is."""
        if len(self._channels) == len(self._actors):
            return super().events(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _ASK_EVERY_SECONDS if deadline is None else deadline - time.monotonic()
            found = super().events(max(min(left, _ASK_EVERY_SECONDS), 0.0))
            if time.monotonic() - self._asked >= _ASK_EVERY_SECONDS:
                found += self._failed_starts(_dead(found))
                self._drop_homeless(_dead(found))
                self._asked = time.monotonic()
            if found or (deadline is not None and time.monotonic() >= deadline):
                return found

    def close(self) -> None:
        connected = set(self._channels)
        elsewhere = [self._calls[worker][1] for worker in connected if self.node(worker)]
        super().close()
        self._listener.close()
        if elsewhere:
            self._let_end(elsewhere)
        # Ray may keep the CPUs of an actor that is killed as it starts; one that finds nobody to
        # connect to ends by itself.
        self._actors = {w: actor for w, actor in self._actors.items() if w in connected}
        self._leave()

    def _let_end(self, calls: list[Any]) -> None:
        """Let workers that noticed the end delete what they keep on machines of their own."""
        import ray

        if ray.is_initialized():
            with suppress(ray.exceptions.RayError):
                ray.wait(calls, num_returns=len(calls), timeout=_END_SECONDS)

    def _launch(self, count: int) -> None:
        for worker in range(count):
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        actor = self._actor_class.remote()
        self._begun += 1
        self._actors[worker] = actor
        self._serials = {s: w for s, w in self._serials.items() if w != worker}
        self._serials[self._begun] = worker
        self._nodes[worker] = ""
        host, port = self._listener.getsockname()[:2]
        self._calls[worker] = (
            actor.node.remote(),
            actor.serve.remote(self._client_app, (host, port), self._key, self._begun),
        )

    def _welcome(self) -> None:
        import ray

        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        try:
            connection.settimeout(_PROOF_SECONDS)
            challenge = secrets.token_bytes(CHALLENGE_BYTES)
            connection.sendall(challenge)
            serial, signed = _PROOF.unpack(_exactly(connection, _PROOF.size))
            if not hmac.compare_digest(signed, _signed(self._key, challenge, serial)):
                raise ConnectionError("wrong key")
            if self._serials.get(serial) not in self._actors:
                raise ConnectionError("a worker that was given up")
            worker = self._serials.pop(serial)
            self._nodes[worker] = str(ray.get(self._calls[worker][0], timeout=_PROOF_SECONDS))
        except (OSError, struct.error, ray.exceptions.RayError) as error:
            logger.warning("a connection that is no worker's was refused: %s", error)
            connection.close()
            return
        self._connect(worker, Channel(connection, blocking=False))

    def _failed_starts(self, told: set[int]) -> list[Event]:
        """Tell of workers that died before they connected, but for those just told of."""
        import ray

        waiting = {
            self._calls[worker][1]: worker
            for worker in self._actors.keys() - self._channels.keys() - told
        }
        if not waiting:
            return []
        ended, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        died = [(waiting[call], *self._why_died(waiting[call])) for call in ended]
        return [Died(worker, reason, started=False, kind=kind) for worker, reason, kind in died]

    def _drop_homeless(self, told: set[int]) -> None:
        """Give up workers that cannot start: Ray learns late that a node with their room is gone.

        One is kept, for a cluster whose last worker died may have room again; and those just told
        of as dead, whom the caller will replace.
        """
        homeless = self._actors.keys() - self._channels.keys() - told
        if not homeless:
            return
        fit = ask_ray(lambda: workers_that_fit(*self._resources))
        for worker in list(homeless)[: max(len(self._actors) - max(fit, 1), 0)]:
            del self._actors[worker]

    def _why_died(self, worker: int) -> tuple[str, FaultKind]:
        """Ask the worker's machine, then Ray, which may know nothing yet."""
        import ray

        node = self.node(worker)
        if node and not ask_ray(lambda: node_answers(node)):
            return f"its machine, Ray node {node[:8]}, is lost", "node_lost"
        try:
            return str(ray.get(self._calls[worker][1], timeout=_REASON_SECONDS)), "worker_died"
        except ray.exceptions.OutOfMemoryError:
            return "the machine ran out of memory", "out_of_memory"
        except ray.exceptions.GetTimeoutError:
            return "", "worker_died"
        except Exception as error:  # noqa: BLE001 - what ended the worker, told and no more
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return lines[-1] if lines else type(error).__name__, "worker_died"

    def _leave(self) -> None:
        import ray

        if ray.is_initialized():
            for actor in self._actors.values():
                _kill(actor)
            if self._owns_session:
                ray.shutdown()
        self._actors.clear()
        self._owns_session = False
