"""The engine for tests, debugging and small runs: clients run one after another, here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from flwr.app import Message, RecordDict, UserConfig

from simulations.engines.base import SimulatedGrid
from simulations.engines.client_call import AppFactory, ClientCall, call_clients, load_app
from simulations.engines.flower_internals import records_from_bytes, records_to_bytes
from simulations.engines.spans import ClientSpan
from simulations.engines.summing import RangeSums


class LocalGrid(SimulatedGrid):
    """Run clients in this process, one at a time, on one thread.

    Parameters
    ----------
    client_app : str or callable
        Import path ``"package.module:attribute"`` of a ClientApp, or a function that returns one.
    num_clients : int
        Clients get node ids 1 to `num_clients` and partition ids from 0.
    run_config : mapping
        What each client finds in `Context.run_config`.
    """

    def __init__(
        self, client_app: AppFactory, num_clients: int, *, run_config: UserConfig | None = None
    ) -> None:
        super().__init__(num_clients, run_config or {})
        self._app = load_app(client_app)
        self._states: dict[int, RecordDict] = {}

    def _execute(
        self, messages: Sequence[Message], deadline: float | None
    ) -> Iterator[tuple[int, Message]]:
        plan = self._plan_for(messages)
        sums = None if plan is None else RangeSums(plan)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a Ray worker: sums on two threads round differently
        try:
            setting = replace(self._setting(), num_messages=len(messages))
            begun: list[float] = []
            calls = self._calls(messages, deadline, begun)
            results = call_clients(self._app, calls, setting)
            for position, result in enumerate(results):
                node_id = messages[position].metadata.dst_node_id
                if deadline is not None and time.monotonic() >= deadline:
                    return  # too late: as if the client had never answered
                self.compute_seconds[node_id] = result.compute_seconds
                if result.failure is not None:
                    reason, spent = str(result.reply.error.reason), result.compute_seconds
                    self._note_failure(node_id, 0, reason, result.failure, spent)
                if result.state is not None:
                    self._states[node_id] = result.state
                    self._changed.add(node_id)
                reply = result.reply
                if sums is not None:
                    left = sums.add(position, reply)
                    # A payload stays in its reply; dense models would be the memory of them all.
                    reply = left if plan is not None and plan.is_dense else reply
                began = begun[position]
                seconds = time.monotonic() - began
                self.spans.append(ClientSpan(node_id, 0, began, seconds, result.compute_seconds))
                yield position, reply
        finally:
            if sums is not None:
                self._sums.append(sums.take())
            torch.set_num_threads(threads)

    def _calls(
        self, messages: Sequence[Message], deadline: float | None, begun: list[float]
    ) -> Iterator[ClientCall]:
        """Yield the calls, noting when each begins: those of a cohort begin together."""
        for position, message in enumerate(messages):
            if deadline is not None and time.monotonic() >= deadline:
                return
            begun.append(time.monotonic())
            state = self._states.get(message.metadata.dst_node_id, RecordDict())
            yield ClientCall(message.metadata, message.content, state, position)

    def _read_state(self, node_id: int) -> bytes:
        return records_to_bytes(self._states.get(node_id, RecordDict()))

    def _write_state(self, node_id: int, state: bytes) -> None:
        self._states[node_id] = records_from_bytes(state)

    def _clear_states(self) -> None:
        self._states.clear()

    def close(self) -> None:
        """Nothing to release."""
