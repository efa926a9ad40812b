"""The main engine: resident workers, forked on this machine or placed by Ray on a cluster."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from flwr.app import Message, UserConfig

from fedcompress.aggregation import block_size
from fedcompress.errors import ConfigError
from simulations.engines.base import SimulatedGrid
from simulations.engines.client_call import AppFactory
from simulations.engines.cohort import cohort_size, wants_cohorts
from simulations.engines.facts import Facts, pack_check
from simulations.engines.faults import EngineGoneError, Fault
from simulations.engines.fork_start import ForkServer
from simulations.engines.held_states import HeldStates
from simulations.engines.pool import WorkerPool
from simulations.engines.round import Answer, Round
from simulations.engines.schedule import (
    APART_SECONDS,
    ENTRY_SECONDS,
    FIRST_SHARE,
    FIRST_SHARE_UNKNOWN,
    LEAST_SECONDS,
    CostModel,
    RangeQueue,
)
from simulations.engines.shared_model import SharedModel
from simulations.engines.shared_sums import SumsFiles
from simulations.engines.spans import ClientSpan
from simulations.engines.state_files import StateFiles, UnreadStates
from simulations.engines.summing import RoundSums


class RayGrid(SimulatedGrid):
    """Run clients on resident workers: on this machine's CPUs, or on what Ray offers.

    Each worker is one process with one thread that builds the app once. Clients are sent in ranges
    of neighbours that are balanced by what they are expected to cost, replies come back as they
    finish. Client states lie in files on the driver's machine (in memory while there is room) and
    survive every worker and every other node; a worker that dies is replaced and its unanswered
    clients run again from the state they had.

    Without an address, a share of a GPU or a Ray session in this process, Ray is not started: the
    workers are forked from a process that has imported torch, Flower and the app's module. With
    one of these, Ray places the workers, holds their CPUs and GPUs and tells of lost nodes. In
    either case messages go over a connection between driver and worker, not through Ray.

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
        Worker processes; "auto" takes as many as this machine or the session's nodes hold.
    address : str, optional
        ``"host:port"`` of a running Ray cluster or "auto" for this machine's.
    cpus_per_worker, gpus_per_worker : float
        What Ray reserves for each worker; fractions share a device. Without Ray the number of CPUs
        only says how many workers "auto" means.
    use_ray : bool or "auto"
        Whether Ray places the workers; "auto" is as said above. Where Ray is used and neither runs
        in this process nor at an address, it is started, and shut down by `close`.
    client_timeout : float, optional
        Seconds that a client's call may take; one that takes longer is ended and answers with an
        error that names it.
    state_bytes : int, optional
        Most bytes of client states held in memory, the rest lie on the disk; default a quarter of
        what ``/dev/shm`` holds.
    server : ForkServer, optional
        What workers are forked from, started ahead for this app: before torch was imported here,
        say. This grid closes it.

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
        use_ray: bool | Literal["auto"] = "auto",
        client_timeout: float | None = None,
        state_bytes: int | None = None,
        server: ForkServer | None = None,
    ) -> None:
        super().__init__(num_clients, run_config or {})
        if workers != "auto" and workers < 1:
            raise ConfigError(f'workers: must be at least 1 or "auto", got {workers}')
        if cpus_per_worker < 0 or gpus_per_worker < 0 or cpus_per_worker + gpus_per_worker == 0:
            raise ConfigError(
                f"cpus_per_worker: must be positive, got {cpus_per_worker} "
                f"(with gpus_per_worker {gpus_per_worker})"
            )
        if client_timeout is not None and client_timeout <= 0:
            raise ConfigError(f"client_timeout: must be positive seconds, got {client_timeout}")
        if server is not None and server.client_app != client_app:
            raise ConfigError(f"server: it was started for the app {server.client_app!r}")
        needs_ray = address is not None or gpus_per_worker > 0
        if use_ray is False and needs_ray:
            raise ConfigError(
                "use_ray: an address or a share of a GPU needs Ray; leave out use_ray=False"
            )
        self._client_timeout = client_timeout
        self._costs = CostModel()
        self._states = StateFiles(state_bytes)
        self._held = HeldStates()
        self._model = SharedModel(self._note_full)
        self._sums_files = SumsFiles()
        self._pool: WorkerPool | None = None
        try:
            if needs_ray or (_ray_runs_here() if use_ray == "auto" else use_ray):
                from simulations.engines.pool_ray import RayPool

                if server is not None:
                    server.close()
                pool = RayPool(client_app, address, cpus_per_worker, gpus_per_worker, workers)
                self._pool, count = pool, pool.wanted
            else:
                from simulations.engines.pool_fork import ForkPool

                self._pool = ForkPool(client_app, server)
                count = _workers_here(cpus_per_worker) if workers == "auto" else workers
            self._pool.start(count)
        except BaseException:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """How many worker processes there are."""
        return 0 if self._pool is None else self._pool.count

    def expect_sizes(self, sizes: Callable[[int], float] | None) -> None:
        """Say how large each client is; without sizes it is expected to take as long as before."""
        self._costs.clear(sizes)

    def expect_facts(self, facts: Facts) -> None:
        """Refuse workers of other machines that have other data, say, than the driver.

        A round that runs on one ends with an error that names its machine and what differs.
        """
        if self._pool is not None:
            self._pool.expect(pack_check(self._run_config, facts))

    # ------------------------------------------------------------------ a round
    def _execute(
        self, messages: Sequence[Message], deadline: float | None
    ) -> Iterator[tuple[int, Message]]:
        if self._pool is None:
            raise ConfigError("RayGrid: it is closed; make a new one")
        node_ids = [message.metadata.dst_node_id for message in messages]
        costs = self._costs.costs(node_ids, self.compute_seconds)
        share = FIRST_SHARE if self._costs.knows else FIRST_SHARE_UNKNOWN
        setting = replace(self._setting(), num_messages=len(messages))
        size = block_size(len(messages))
        if wants_cohorts(setting.run_config):  # of whole blocks, and never divided among workers
            size = max(size, cohort_size(len(messages)))
        plan = self._plan_for(messages)
        sums = None if plan is None else RoundSums(plan)
        if sums is not None:
            self._sums_files.open()
        least, apart = 0.0, None
        if self._costs.in_seconds:
            least = LEAST_SECONDS
            apart = APART_SECONDS + (0 if plan is None else plan.entries * ENTRY_SECONDS)
        queue = RangeQueue(costs, size, sorted(self._pool.ready), share, least, apart)
        this_round = Round(
            self._pool,
            messages,
            setting,
            self._states,
            self._held,
            self._model,
            queue,
            costs,
            self._client_timeout,
            sums,
            self._sums_files,
            self._tell_fault,
        )
        try:
            for answer in this_round.run(deadline):
                self._accept(answer, node_ids[answer.position])
                yield answer.position, answer.reply
        except EngineGoneError as error:
            self._tell_fault(Fault(error.kind, "stopped", str(error), clients=0))
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._tell_fault(Fault("disk_full", "stopped", str(error), clients=0))
            raise
        finally:
            self._states.end_round()
            self._held.end_round()
        if sums is not None:
            self._sums = sums.finish()

    def _accept(self, answer: Answer, node_id: int) -> None:
        """Commit what a call changed."""
        if isinstance(answer.state, list):
            path, *shared = answer.state
            self._states.commit(node_id, path, shared)
        elif answer.state is not None:
            if answer.lacked_room:
                reason = "a worker found no room for a client's state"
                self._tell_fault(Fault("memory_full", "on_disk", reason, node_id, answer.worker))
            self._states.write(node_id, answer.state)
        if answer.state is not None:
            self._held.commit(node_id, answer.kept_as)
            self._changed.add(node_id)
        if answer.compute_seconds is not None:
            self.compute_seconds[node_id] = answer.compute_seconds
            self._costs.add(node_id, answer.seconds, answer.worker)
            assert self._pool is not None
            at_work = answer.began, answer.seconds, answer.compute_seconds
            node = self._pool.node(answer.worker)
            self.spans.append(ClientSpan(node_id, answer.worker, *at_work, node))
        if answer.failure is not None:
            reason = str(answer.reply.error.reason)
            self._note_failure(node_id, answer.worker, reason, answer.failure, answer.seconds)

    def _note_full(self, error: OSError) -> None:
        reason = f"the round's arrays: {error.strerror or error}"
        self._tell_fault(Fault("memory_full", "on_disk", reason, clients=0))

    # ------------------------------------------------------------------ states
    def changed_states(self) -> Mapping[int, bytes]:
        """Return the states that changed since the last call, each read when it is asked for."""
        return UnreadStates(self._states, self._take_changed())

    def _read_state(self, node_id: int) -> bytes:
        return self._states.read(node_id)

    def _write_state(self, node_id: int, state: bytes) -> None:
        self._held.commit(node_id, None)
        self._states.write(node_id, state)

    def _clear_states(self) -> None:
        self._states.clear()
        self._held.clear()
        self._costs.clear()
        if self._pool is not None:
            self._pool.expect(None)

    def close(self) -> None:
        """End the workers; leave Ray, or shut it down if this grid started it."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._model.close()
        self._sums_files.close()
        self._states.close()


def _ray_runs_here() -> bool:
    ray = sys.modules.get("ray")
    return not hasattr(os, "fork") or (ray is not None and bool(ray.is_initialized()))


def _workers_here(cpus_per_worker: float) -> int:
    # macOS does not say which of its CPUs are this process's.
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(int(cpus / cpus_per_worker + 1e-9), 1)
