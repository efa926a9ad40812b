"""The main engine: resident Ray workers on one machine or a cluster."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from flwr.app import Error, Message, UserConfig

from fedcompress.errors import ConfigError
from simulations.engines.base import SimulatedGrid
from simulations.engines.client_call import AppFactory
from simulations.engines.flower_internals import CLIENT_CRASHED, build_message, set_message_id
from simulations.engines.packing import Buffer, SharedBuffers, pack_records, unpack_records
from simulations.engines.ray_session import live_nodes, open_session, workers_that_fit
from simulations.engines.schedule import ClientQueue, expected_costs
from simulations.engines.state_files import StateFiles

if TYPE_CHECKING:
    import ray

    from simulations.engines.ray_worker import Answer

logger = logging.getLogger(__name__)

START_SECONDS = 180.0
MAX_CRASHES = 3  # of workers, under one client's call
QUEUED_CLIENTS = 1  # a worker with no more than these left gets its next chunk


@dataclass
class _Chunk:
    """A call of a worker: its stream of results and the clients that are still to answer."""

    stream: Any
    positions: deque[int]


@dataclass
class _Worker:
    actor: Any
    node: str | None = None  # unknown until the process has said where it runs
    chunks: deque[_Chunk] = field(default_factory=deque)

    def clients(self) -> list[int]:
        return [position for chunk in self.chunks for position in chunk.positions]


class RayGrid(SimulatedGrid):
    """Run clients on resident Ray workers.

    Each worker is one process with one thread that builds the app once. Clients are sent in
    chunks, replies stream back as they finish. Client states lie in files on the driver's machine
    (in memory while there is room) and survive every worker and every other node; a worker that
    dies is replaced and its unanswered clients run again from the state they had.

    Parameters
    ----------
    client_app : str or callable
        Import path ``"package.module:attribute"`` of a ClientApp, or a function that returns one;
        it must be importable (or picklable) where the workers run.
    num_clients : int
        Clients get node ids 1 to `num_clients` and partition ids from 0.
    run_config : mapping
        What each client finds in `Context.run_config`.
    workers : int or "auto"
        Worker processes; "auto" takes as many as the session's nodes hold.
    address : str, optional
        ``"host:port"`` of a running cluster or "auto" for this machine's; without it the session
        of this process is used, else one is started and shut down by `close`.
    cpus_per_worker, gpus_per_worker : float
        What Ray reserves for each worker; fractions share a device.

    Raises
    ------
    ConfigError
        If no cluster answers at `address`, the workers do not fit, or the app cannot be built.
    """

    def __init__(
        self,
        client_app: AppFactory,
        num_clients: int,
        *,
        run_config: UserConfig | None = None,
        workers: int | Literal["auto"] = "auto",
        address: str | None = None,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
    ) -> None:
        super().__init__(num_clients, run_config or {})
        if workers != "auto" and workers < 1:
            raise ConfigError(f'workers: must be at least 1 or "auto", got {workers}')
        if cpus_per_worker < 0 or gpus_per_worker < 0 or cpus_per_worker + gpus_per_worker == 0:
            raise ConfigError(
                f"cpus_per_worker: must be positive, got {cpus_per_worker} "
                f"(with gpus_per_worker {gpus_per_worker})"
            )
        self._client_app = client_app
        self._states = StateFiles()
        self._workers: list[_Worker] = []
        self._resources = (cpus_per_worker, gpus_per_worker)
        self._rounds = 0
        needed_cpus = 0.0 if workers == "auto" else workers * cpus_per_worker
        self._owns_session = open_session(address, needed_cpus)
        try:
            self._start_workers(workers)
        except BaseException:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """How many worker processes there are."""
        return len(self._workers)

    # ------------------------------------------------------------------ workers
    def _start_workers(self, workers: int | Literal["auto"]) -> None:
        import ray

        from simulations.engines.ray_worker import ClientWorker

        cpus_per_worker, gpus_per_worker = self._resources
        fit = workers_that_fit(cpus_per_worker, gpus_per_worker)
        wanted = fit if workers == "auto" else workers
        if wanted > fit or not wanted:
            raise ConfigError(
                f"workers: {workers} workers of {cpus_per_worker:g} CPUs and {gpus_per_worker:g} "
                f"GPUs each do not fit, {fit} do; ask for fewer, or lower cpus_per_worker"
            )
        self._here = str(ray.get_runtime_context().get_node_id())
        self._actor_class: Any = ray.remote(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, scheduling_strategy="SPREAD"
        )(ClientWorker)
        actors = [self._actor_class.remote(self._client_app) for _ in range(wanted)]
        self._workers = [_Worker(actor) for actor in actors]
        ready = [actor.node.remote() for actor in actors]
        try:
            for worker, node in zip(
                self._workers, ray.get(ready, timeout=START_SECONDS), strict=True
            ):
                worker.node = node
        except ray.exceptions.GetTimeoutError as error:
            started = len(ray.wait(ready, num_returns=len(ready), timeout=0)[0])
            raise ConfigError(
                f"workers: {started} of {wanted} workers started within {START_SECONDS:g} s; "
                "is the cluster busy with other work?"
            ) from error
        except ray.exceptions.RayActorError as error:
            raise ConfigError(f"client_app: no worker could start: {_last_line(error)}") from error

    def _replace(self, worker: _Worker) -> None:
        """Put a new process in a worker's place, or none where a lost node took its room."""
        import ray

        ray.kill(worker.actor)
        worker.chunks.clear()
        if workers_that_fit(*self._resources) < len(self._workers) > 1:
            self._workers.remove(worker)
        else:
            worker.actor = self._actor_class.remote(self._client_app)
            worker.node = self._here if live_nodes() == 1 else None

    # ------------------------------------------------------------------ a round
    def _execute(
        self, messages: Sequence[Message], deadline: float | None
    ) -> Iterator[tuple[int, Message]]:
        import ray

        self._rounds += 1
        shared = SharedBuffers(message.content for message in messages)
        buffers = ray.put(shared.buffers)
        node_ids = [message.metadata.dst_node_id for message in messages]
        queue = ClientQueue(expected_costs(node_ids, self.compute_seconds), len(self._workers))
        crashes: dict[int, int] = {}
        try:
            self._feed(queue, messages, shared, buffers)
            while busy := [worker for worker in self._workers if worker.chunks]:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                streams = [worker.chunks[0].stream for worker in busy]
                ready, _ = ray.wait(streams, timeout=left, fetch_local=False)
                if not ready:
                    return  # too late for the rest
                worker = next(w for w in busy if w.chunks[0].stream is ready[0])
                try:
                    answers = self._receive(worker)
                except ray.exceptions.RayActorError as error:
                    yield from self._recover(worker, error, queue, messages, crashes)
                else:
                    for answer in answers:
                        yield answer.position, self._accept(answer, messages)
                self._feed(queue, messages, shared, buffers)
        finally:
            for worker in list(self._workers):
                if worker.chunks:  # late, or the caller gave up: these calls must not go on
                    self._replace(worker)

    def _feed(
        self,
        queue: ClientQueue,
        messages: Sequence[Message],
        shared: SharedBuffers,
        buffers: ray.ObjectRef[list[Buffer]],
    ) -> None:
        """Give every worker that is about to run dry its next chunk."""
        from simulations.engines.ray_worker import Task

        hungry = [worker for worker in self._workers if len(worker.clients()) <= QUEUED_CLIENTS]
        for worker in sorted(hungry, key=lambda worker: len(worker.chunks)):
            positions = queue.take()
            if not positions:
                return
            is_here = worker.node == self._here
            tasks = []
            for position in positions:
                metadata = messages[position].metadata
                node_id = metadata.dst_node_id
                content = pack_records(messages[position].content, shared)
                if is_here:
                    state: str | Buffer | None = self._states.path(node_id)
                    save_as: str | None = self._states.new_path(node_id)
                else:
                    state = np.frombuffer(self._states.read(node_id), np.uint8)
                    save_as = None
                tasks.append(Task(position, metadata, content, state, save_as))
            stream = worker.actor.run.options(num_returns="streaming").remote(
                self._rounds, self._setting(), buffers, tasks
            )
            worker.chunks.append(_Chunk(stream, deque(positions)))

    def _receive(self, worker: _Worker) -> list[Answer]:
        """Take the next answers of a worker; its death is what `ray.get` raises."""
        import ray

        chunk = worker.chunks[0]
        answers: list[Answer] = ray.get(next(chunk.stream))
        for answer in answers:
            chunk.positions.remove(answer.position)
        if not chunk.positions:
            worker.chunks.popleft()
        return answers

    def _accept(self, answer: Answer, messages: Sequence[Message]) -> Message:
        """Commit what a call changed, and rebuild its reply."""
        node_id = messages[answer.position].metadata.dst_node_id
        if answer.state is not None:
            if isinstance(answer.state, str):
                self._states.commit(node_id, answer.state)
            else:
                self._states.write(node_id, answer.state.tobytes())
            self._changed.add(node_id)
        self.compute_seconds[node_id] = answer.compute_seconds
        if answer.failure is not None:
            self._log_failure(node_id, answer.failure)
        content = None if answer.content is None else unpack_records(answer.content)
        return build_message(answer.metadata, content, answer.error)

    def _recover(
        self,
        worker: _Worker,
        error: Exception,
        queue: ClientQueue,
        messages: Sequence[Message],
        crashes: dict[int, int],
    ) -> Iterator[tuple[int, Message]]:
        """Replace a dead worker; its clients run again, but not the one that keeps killing it."""
        if getattr(error, "actor_init_failed", False):
            raise ConfigError(f"client_app: no worker could start: {_last_line(error)}") from error
        lost = worker.clients()
        suspect = lost[0]
        request = messages[suspect]
        crashes[suspect] = crashes.get(suspect, 0) + 1
        logger.warning(
            "a worker died at the client of node %d (%d of %d times); %d clients run again",
            request.metadata.dst_node_id,
            crashes[suspect],
            MAX_CRASHES,
            len(lost),
        )
        self._replace(worker)
        if crashes[suspect] >= MAX_CRASHES:
            lost.remove(suspect)
            reason = f"the worker process died {MAX_CRASHES} times while this client ran"
            reply = Message(Error(CLIENT_CRASHED, reason), reply_to=request)
            set_message_id(reply, "f" + request.metadata.message_id[1:])
            yield suspect, reply
        queue.put_back(lost)

    # ------------------------------------------------------------------ states
    def _read_state(self, node_id: int) -> bytes:
        return self._states.read(node_id)

    def _write_state(self, node_id: int, state: bytes) -> None:
        self._states.write(node_id, state)

    def _clear_states(self) -> None:
        self._states.clear()

    def close(self) -> None:
        """End the workers; leave Ray, or shut it down if this grid started it."""
        import ray

        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker.actor)
            if self._owns_session:
                ray.shutdown()
        self._workers.clear()
        self._states.close()
        self._owns_session = False


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else type(error).__name__
    return last.removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")
