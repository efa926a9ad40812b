"""What every engine of ours shares: ids, messages, timeouts, order of replies, client states."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict, UserConfig
from flwr.serverapp import Grid

from fedcompress.errors import ConfigError
from fedcompress.partial import PartialSum, SumPlan
from simulations.closing import Closing
from simulations.engines.client_call import Setting
from simulations.engines.facts import Facts
from simulations.engines.faults import Fault, kind_of_failure
from simulations.engines.flower_internals import (
    Run,
    assume_server_identity,
    empty_run,
    sample_without_copies,
    set_message_id,
)
from simulations.engines.spans import ClientSpan

logger = logging.getLogger(__name__)

RUN_ID = 1


class SimulatedGrid(Grid, Closing):
    """A Grid whose clients are simulated: nodes 1 to `num_clients`, partition ids from 0.

    A call of a client takes its state and gives it back with its reply; a call that fails or
    comes too late changes nothing. Replies stand in the order of the messages.

    Attributes
    ----------
    compute_seconds : dict of int to float
        Seconds inside the client's app by node id, of each client's last call.
    unanswered : list of int
        Node ids whose reply did not come within the timeout of the last `send_and_receive`.
    spans : list of ClientSpan
        When the clients of the last `send_and_receive` were worked on.
    on_reply : callable or None
        Told of each reply as it comes: how many there are now, and of how many messages.
    on_fault : callable or None
        Told of each `Fault` when what comes of it is decided.
    """

    def __init__(self, num_clients: int, run_config: UserConfig) -> None:
        self._num_clients = _checked(num_clients)
        self._run_config = dict(run_config)
        self._run = empty_run(RUN_ID, run_config)
        self._sent = 0
        self._waiting: dict[str, Message] = {}
        self._changed: set[int] = set()
        self._failures_logged = 0
        self._plan: SumPlan | None = None
        self._sums: list[PartialSum] = []
        self.compute_seconds: dict[int, float] = {}
        self.unanswered: list[int] = []
        sample_without_copies()
        self.spans: list[ClientSpan] = []
        self.on_reply: Callable[[int, int], None] | None = None
        self.on_fault: Callable[[Fault], None] | None = None
        assume_server_identity(RUN_ID)

    # ------------------------------------------------------------------ what an engine provides
    @abstractmethod
    def _execute(
        self, messages: Sequence[Message], deadline: float | None
    ) -> Iterator[tuple[int, Message]]:
        """Yield (position, reply) as replies come, until `deadline` (of `time.monotonic`)."""

    @abstractmethod
    def _read_state(self, node_id: int) -> bytes:
        """Return a client's serialised state; empty where the client has none."""

    @abstractmethod
    def _write_state(self, node_id: int, state: bytes) -> None:
        """Replace a client's state by a serialised one."""

    @abstractmethod
    def _clear_states(self) -> None:
        """Forget the state of every client."""

    @property
    def num_workers(self) -> int:
        """How many clients can be at work at a time."""
        return 1

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds; closing twice is harmless."""

    # ------------------------------------------------------------------ Flower's interface
    def set_run(self, run: Run) -> None:
        """Set the run that messages and contexts name."""
        if not isinstance(run, Run):
            raise ConfigError(f"set_run: expected a Run, got {type(run).__name__}")
        self._run = run
        assume_server_identity(run.run_id)

    @property
    def run(self) -> Run:
        """The run that this grid serves."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to one client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Return the ids of all clients, 1 to `num_clients`, as a `range`."""
        return range(1, self._num_clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; their clients run when the replies are pulled."""
        pushed = []
        for message in messages:
            node_id = message.metadata.dst_node_id
            if not 1 <= node_id <= self._num_clients:
                raise ConfigError(
                    f"message: no client has node id {node_id}; "
                    f"ids run from 1 to {self._num_clients}"
                )
            if not message.has_content():
                raise ConfigError(f"message: the one for node {node_id} has no content")
            self._sent += 1
            # As long as the SHA-256 ids of Flower's transport: replies carry it on the wire.
            message_id = f"{self._sent:064x}"
            set_message_id(message, message_id)
            self._waiting[message_id] = message
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the clients of these messages and return their replies, in the order asked for."""
        return self._collect(list(message_ids), None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run the clients of `messages`; return the replies that come within `timeout` seconds."""
        return self._collect(self.push_messages(messages), timeout)

    def _tell_fault(self, fault: Fault) -> None:
        if self.on_fault is not None:
            self.on_fault(fault)

    def _note_failure(
        self, node_id: int, worker: int, reason: str, failure: str, seconds: float
    ) -> None:
        """Tell of a client that raised; log the first traceback aloud, others are mostly alike."""
        level = logging.DEBUG if self._failures_logged else logging.ERROR
        self._failures_logged += 1
        logger.log(level, "client of node %d raised:\n%s", node_id, failure)
        kind = kind_of_failure(reason)
        self._tell_fault(Fault(kind, "left_out", reason, node_id, worker, seconds=seconds))

    def _collect(self, message_ids: list[str], timeout: float | None) -> list[Message]:
        requests = [
            self._waiting.pop(message_id)
            for message_id in message_ids
            if message_id in self._waiting
        ]
        deadline = None if timeout is None else time.monotonic() + timeout
        self._failures_logged = 0
        self.spans = []
        replies: dict[int, Message] = {}
        for position, reply in self._execute(requests, deadline) if requests else ():
            replies[position] = reply
            if self.on_reply is not None:
                self.on_reply(len(replies), len(requests))
        self.unanswered = [
            request.metadata.dst_node_id
            for position, request in enumerate(requests)
            if position not in replies
        ]
        for node_id in self.unanswered:
            reason = f"no reply within {timeout:g} s"
            self._tell_fault(Fault("client_late", "left_out", reason, node_id, seconds=timeout))
        if self.unanswered:
            logger.warning(
                "%d of %d clients did not reply within %g s: nodes %s",
                len(self.unanswered),
                len(requests),
                timeout if timeout is not None else float("inf"),
                self.unanswered,
            )
        return [replies[position] for position in sorted(replies)]

    # ------------------------------------------------------------------ beyond Flower's interface
    def sum_updates(self, plan: SumPlan | None) -> bool:
        """Arm for the next round's messages: their updates are summed where they arise."""
        self._plan, self._sums = plan, []
        return plan is not None

    def take_sums(self) -> list[PartialSum]:
        """Take the sums of the last round; replies in them may lack their arrays."""
        taken, self._sums = self._sums, []
        return taken

    def _plan_for(self, messages: Sequence[Message]) -> SumPlan | None:
        """Take the plan, if it was made for these messages."""
        plan, self._plan = self._plan, None
        return plan if plan is not None and plan.covers(messages) else None

    def reset(
        self, *, num_clients: int | None = None, run_config: UserConfig | None = None
    ) -> None:
        """Make the grid as new for another run; what is costly to start (workers) stays."""
        if num_clients is not None:
            self._num_clients = _checked(num_clients)
        if run_config is not None:
            self._run_config = dict(run_config)
        self._run = empty_run(RUN_ID, self._run_config)
        assume_server_identity(RUN_ID)
        self._sent = 0
        self._waiting.clear()
        self._changed.clear()
        self.sum_updates(None)
        self.compute_seconds.clear()
        self.unanswered = []
        self.spans = []
        self._clear_states()

    def expect_sizes(self, sizes: Callable[[int], float] | None) -> None:
        """Say how large each client is, for instance its number of samples, by node id.

        It changes no result; engines with several workers balance them by it. `reset` forgets it.
        """

    def expect_facts(self, facts: Facts) -> None:
        """Refuse workers that have other data, say, than the driver; `reset` forgets it.

        The app finds its facts as it told by `offer_facts`. Workers of the driver's machine load
        the same files and are not asked.
        """

    def client_states(self) -> dict[int, bytes]:
        """Return the states that changed since the last call, serialised, by node id."""
        return {node_id: self._read_state(node_id) for node_id in self._take_changed()}

    def changed_states(self) -> Mapping[int, bytes]:
        """Return what `client_states` does, to be read before the next call of a client.

        It is for a checkpoint: not all of it need be in memory at once.
        """
        return self.client_states()

    def load_client_states(self, states: Mapping[int, bytes]) -> None:
        """Put back states that `client_states` gave, for instance from a checkpoint."""
        for node_id, state in states.items():
            self._write_state(node_id, state)

    def _take_changed(self) -> list[int]:
        changed = sorted(self._changed)
        self._changed.clear()
        return changed

    def _setting(self) -> Setting:
        return Setting(self._run.run_id, self._num_clients, self._run_config)


def _checked(num_clients: int) -> int:
    if num_clients < 1:
        raise ConfigError(f"num_clients: must be at least 1, got {num_clients}")
    return num_clients
