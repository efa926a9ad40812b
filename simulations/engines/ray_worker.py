"""What runs in a Ray worker process: one app, one thread, one client after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from flwr.app import Error, Metadata, RecordDict

from simulations.engines.client_call import (
    AppFactory,
    ClientCall,
    ClientResult,
    Setting,
    call_client,
    load_app,
)
from simulations.engines.flower_internals import records_from_bytes, records_to_bytes
from simulations.engines.packing import Buffer, PackedRecords, pack_records, unpack_records

# Answers of quick clients go back together: each transfer costs driver and worker half a
# millisecond.
SEND_EVERY_SECONDS = 0.01


@dataclass(frozen=True)
class Task:
    """One client's call as it is sent to a worker.

    `state` is the file that holds the client's state, or the state itself for a worker on another
    machine; `save_as` is the file for the new state, None where it shall come with the answer.
    """

    position: int
    metadata: Metadata
    content: PackedRecords
    state: str | Buffer | None
    save_as: str | None


@dataclass(frozen=True)
class Answer:
    """One client's reply as it comes back; `state` is None where it stays as it was."""

    position: int
    metadata: Metadata
    content: PackedRecords | None
    error: Error | None
    compute_seconds: float
    failure: str | None
    state: str | Buffer | None


class ClientWorker:
    """A resident process that calls clients' apps.

    Parameters
    ----------
    client_app : str or callable
        See `load_app`; the app is built once.
    """

    def __init__(self, client_app: AppFactory) -> None:
        torch.set_num_threads(1)
        self._app = load_app(client_app)
        self._round = -1
        self._shared: dict[int, bytes] = {}

    def node(self) -> str:
        """Return the id of this worker's Ray node, once it can work."""
        return str(ray.get_runtime_context().get_node_id())

    def run(
        self, round_number: int, setting: Setting, buffers: Sequence[Buffer], tasks: Sequence[Task]
    ) -> Iterator[list[Answer]]:
        """Call the clients of one chunk; yield their answers in order, several at a time."""
        if round_number != self._round:
            self._round = round_number
            self._shared.clear()

        def shared(place: int) -> bytes:
            if place not in self._shared:
                self._shared[place] = buffers[place].tobytes()
            return self._shared[place]

        answers: list[Answer] = []
        sent = time.perf_counter()
        for task in tasks:
            content = unpack_records(task.content, shared)
            call = ClientCall(task.metadata, content, _read(task.state))
            result = call_client(self._app, call, setting)
            answers.append(_answer(task, result))
            if time.perf_counter() - sent > SEND_EVERY_SECONDS or task is tasks[-1]:
                yield answers
                answers = []
                sent = time.perf_counter()


def _read(state: str | Buffer | None) -> RecordDict:
    if state is None:
        return RecordDict()
    return records_from_bytes(
        Path(state).read_bytes() if isinstance(state, str) else state.tobytes()
    )


def _save(state: RecordDict, path: str | None) -> str | Buffer:
    data = records_to_bytes(state)
    if path is not None:
        try:
            Path(path).write_bytes(data)
        except OSError:  # no room there: the driver finds some
            Path(path).unlink(missing_ok=True)
        else:
            return path
    return np.frombuffer(data, np.uint8)


def _answer(task: Task, result: ClientResult) -> Answer:
    reply = result.reply
    return Answer(
        position=task.position,
        metadata=reply.metadata,
        content=pack_records(reply.content) if reply.has_content() else None,
        error=reply.error if reply.has_error() else None,
        compute_seconds=result.compute_seconds,
        failure=result.failure,
        state=None if result.state is None else _save(result.state, task.save_as),
    )
