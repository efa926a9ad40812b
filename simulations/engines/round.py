"""One round on a pool of workers: who is sent what, and what happens when one dies or hangs."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.app import Error, Message

from fedcompress.flower_adapter import message_of, metadata_of
from simulations.engines import frames
from simulations.engines.client_call import Setting
from simulations.engines.faults import EngineGoneError, Fault, Outcome
from simulations.engines.flower_internals import CLIENT_CRASHED, set_message_id
from simulations.engines.held_states import HeldStates
from simulations.engines.packing import Json, Unpacker
from simulations.engines.pool import START_SECONDS, Died, Event, Received, WorkerPool
from simulations.engines.schedule import RangeQueue
from simulations.engines.sending import Sending
from simulations.engines.shared_model import SharedModel
from simulations.engines.shared_sums import SumsFiles
from simulations.engines.state_files import StateFiles
from simulations.engines.summing import RoundSums, from_buffers

logger = logging.getLogger(__name__)

MAX_CRASHES = 3  # of workers, under one client's call
# A worker that will be done this soon is sent its next block: the way there takes part of it.
AHEAD_SECONDS = 0.002
# Of the time that a client or the round is given, what an answer may wait for others.
PATIENT_SHARE = 0.01


def _tell_nobody(_: Fault) -> None:
    pass


class Answer(NamedTuple):
    """What came of one client's call.

    `state` is the file of its new state and the names of those beside it that it refers to, or its
    bytes, None where it stays as it was, and `kept_as`
    the number of the copy that the worker's machine keeps; `lacked_room` where the worker could not
    write its file. `began` is in the seconds of the driver's `time.monotonic`; `seconds` is how
    long the worker was busy with the client, `compute_seconds` how long the app was.
    """

    position: int
    reply: Message
    compute_seconds: float | None = None
    failure: str | None = None
    state: list[str] | bytes | None = None
    kept_as: int | None = None
    lacked_room: bool = False
    worker: int = -1
    began: float = 0.0
    seconds: float = 0.0


@dataclass
class _Work:
    """What one worker has to do: the ranges it was sent, each with the clients to answer."""

    ranges: deque[list[int]] = field(default_factory=deque)
    since: float = 0.0  # it was sent a range while it had none, or answered last
    begun: list[int] = field(default_factory=list)
    begun_at: float = 0.0

    def clients(self) -> list[int]:
        return [position for positions in self.ranges for position in positions]


class Round:
    """The calls of one round.

    Parameters
    ----------
    pool : WorkerPool
        Who calls the clients.
    messages : sequence of Message
        One for each client, in the order of the replies.
    setting : Setting
        What all clients share.
    states : StateFiles
        The clients' states; read only.
    held : HeldStates
        What other machines have of them.
    model : SharedModel
        Where the arrays that messages share are written for the workers of this machine.
    queue : RangeQueue
        Which clients a worker gets.
    costs : sequence of float
        Expected seconds by position.
    client_timeout : float or None
        Seconds that a client may take.
    sums : RoundSums or None
        Where the workers' sums go; without it they do not sum.
    sums_files : SumsFiles
        Where workers of this machine write sums, if not into their frames.
    on_fault : callable, optional
        Told of each fault.
    """

    def __init__(
        self,
        pool: WorkerPool,
        messages: Sequence[Message],
        setting: Setting,
        states: StateFiles,
        held: HeldStates,
        model: SharedModel,
        queue: RangeQueue,
        costs: Sequence[float],
        client_timeout: float | None,
        sums: RoundSums | None,
        sums_files: SumsFiles,
        on_fault: Callable[[Fault], None] = _tell_nobody,
    ) -> None:
        self._pool = pool
        self._messages = messages
        self._states = states
        self._queue = queue
        self._costs = costs
        self._client_timeout = client_timeout
        self._sums = sums
        self._sums_files = sums_files
        self._on_fault = on_fault
        self._sending = Sending(
            pool, messages, setting, states, held, model, sums, sums_files.folder
        )
        self._sending.tells_begun = client_timeout is not None
        self._work: dict[int, _Work] = {}
        self._crashes: Counter[int] = Counter()
        self._failed_starts = 0

    def run(self, deadline: float | None) -> Iterator[Answer]:
        """Yield answers as they come, until `deadline` (of `time.monotonic`)."""
        left = [] if deadline is None else [deadline - time.monotonic()]
        left += [] if self._client_timeout is None else [self._client_timeout]
        self._sending.patience = PATIENT_SHARE * min(left) if left else None
        try:
            self._feed()
            while self._queue or any(work.ranges for work in self._work.values()):
                for event in self._events(deadline):
                    yield from self._handle(event)
                if deadline is not None and time.monotonic() >= deadline:
                    return
                if self._client_timeout is not None:
                    yield from self._give_up_hung()
                self._feed()
        finally:
            for worker, work in self._work.items():
                if work.ranges:  # late, or the caller gave up: these calls must not go on
                    self._pool.replace(worker)

    # ------------------------------------------------------------------ to the workers
    def _feed(self) -> None:
        """Send every worker that is about to run dry its next clients."""
        for worker in sorted(self._pool.ready):
            work = self._work.setdefault(worker, _Work())
            while self._queue and self._is_hungry(work) and self._sending.inform(worker):
                positions = self._queue.take(worker)
                work.since = work.since if work.ranges else time.monotonic()
                work.ranges.append(positions)
                # Clients of a part of a block run again: the rest may have been summed elsewhere.
                sums = self._queue.are_whole_blocks(positions)
                self._sending.send_range(worker, positions, sums)

    def _is_hungry(self, work: _Work) -> bool:
        if not work.ranges:
            return True
        if len(work.ranges) > 1:
            return False
        return sum(self._costs[position] for position in work.ranges[0]) < AHEAD_SECONDS

    # ------------------------------------------------------------------ from the workers
    def _events(self, deadline: float | None) -> list[Event]:
        """Wait for the workers, no longer than until something else is due."""
        now = time.monotonic()
        due = [now + START_SECONDS] if not self._pool.ready else []
        if deadline is not None:
            due.append(deadline)
        if self._client_timeout is not None:
            due += [self._due(work) for work in self._work.values() if work.begun]
        events = self._pool.events(max(min(due) - now, 0.0) if due else None)
        if not events and not self._pool.ready and time.monotonic() >= now + START_SECONDS:
            raise EngineGoneError(
                f"workers: none is left, and none started within {START_SECONDS:g} s; "
                "is the cluster gone, or busy with other work?",
                "no_workers",
            )
        return events

    def _handle(self, event: Event) -> Iterator[Answer]:
        if isinstance(event, Died):
            yield from self._recover(event)
        elif isinstance(event, Received):
            work = self._work[event.worker]
            if event.kind == frames.ANSWERS:
                yield from self._answers(event, work)
            elif event.kind == frames.BEGAN:
                if not work.begun:
                    work.begun_at = time.monotonic()
                work.begun.append(int(bytes(event.parts[0])))
            elif event.kind == frames.WANTED:
                state = self._states.read(int(bytes(event.parts[0])))
                self._pool.send(event.worker, frames.STATE, [state])
            elif event.kind == frames.STORED:
                self._sending.stored(event.worker, bytes(event.parts[0]).decode())

    def _answers(self, event: Received, work: _Work) -> Iterator[Answer]:
        work.since = time.monotonic()
        unpacker = Unpacker(event.parts)
        rows, sums, written = unpacker.value
        for row in rows:
            position = row[0]
            work.ranges[0].remove(position)
            if not work.ranges[0]:
                work.ranges.popleft()
            if position in work.begun:
                work.begun.remove(position)
                work.begun_at = time.monotonic()
        self._feed()  # a worker need not wait until what it sent has been read
        if sums and self._sums is not None:
            buffers = [unpacker.part(number) for number in sums]
            if written is not None:
                buffers += self._sums_files.read(event.worker, *written)
            self._sums.take(from_buffers(buffers))
        for row in rows:
            yield self._unpack(event.worker, row, unpacker)

    def _unpack(self, worker: int, row: list[Json], unpacker: Unpacker) -> Answer:
        position, metadata, content, error, compute_seconds, failure, state, began, seconds = row
        reply = message_of(
            metadata_of(metadata),
            None if content is None else unpacker.content(content),
            None if error is None else Error(*error),
        )
        if isinstance(state, int):
            state = bytes(unpacker.part(state))
        began = self._pool.to_our_clock(worker, began)
        save_as = self._sending.save_as.get(position) if isinstance(state, bytes) else None
        kept_as = save_as if isinstance(save_as, int) else None
        at_work = worker, began, seconds
        return Answer(
            position,
            reply,
            compute_seconds,
            failure,
            state,
            kept_as,
            isinstance(save_as, str),
            *at_work,
        )

    # ------------------------------------------------------------------ faults
    def _recover(self, died: Died) -> Iterator[Answer]:
        """Replace a dead worker; its clients run again, but not the one that keeps killing it."""
        self._failed_starts = 0 if died.started else self._failed_starts + 1
        if died.is_final or self._failed_starts >= MAX_CRASHES:
            if died.kind == "other_data":
                raise EngineGoneError(died.reason, died.kind)
            raise EngineGoneError(f"client_app: no worker could start: {died.reason}", "no_workers")
        work = self._release(died.worker)
        self._pool.replace(died.worker)
        lost = work.clients()
        fault = Fault(died.kind, "replaced", died.reason, None, died.worker, clients=len(lost))
        if not lost:
            self._on_fault(fault)
            return
        # Blocks are the smallest that runs again: what is trained together stays together.
        block = self._queue.block_of(lost[0])
        suspects = [p for p in work.ranges[0] if self._queue.block_of(p) == block]
        self._crashes.update(suspects)
        crashes = self._crashes[lost[0]]
        node_id = self._messages[lost[0]].metadata.dst_node_id
        logger.warning(
            "a worker died at the client of node %d (%d of %d times): %s; %d clients run again",
            node_id,
            crashes,
            MAX_CRASHES,
            died.reason or "for an unknown reason",
            len(lost),
        )
        others = [position for position in lost if position not in suspects]
        is_given_up = len(suspects) == 1 and crashes >= MAX_CRASHES
        self._on_fault(
            fault._replace(
                outcome="left_out" if is_given_up else "run_again",
                node_id=node_id,
                attempt=crashes,
                seconds=time.monotonic() - (work.begun_at if work.begun else work.since),
            )
        )
        if len(suspects) > 1 and crashes >= MAX_CRASHES - 1:
            self._queue.put_back_alone(suspects)
        elif is_given_up:
            reason = f"the worker process died {MAX_CRASHES} times while this client ran"
            yield self._failed(lost[0], f"{reason}: {died.reason}" if died.reason else reason)
        else:
            self._queue.put_back(suspects)
        self._queue.put_back(others)

    def _give_up_hung(self) -> Iterator[Answer]:
        """End workers whose client takes too long; their other clients run again elsewhere."""
        now = time.monotonic()
        for worker, work in list(self._work.items()):
            if not work.begun or self._due(work) > now:
                continue
            self._release(worker)
            self._pool.replace(worker)
            begun = work.begun
            node_id = self._messages[begun[0]].metadata.dst_node_id
            reason = (
                f"the client of node {node_id} did not finish within "
                f"{self._client_timeout:g} s (client_timeout)"
            )
            outcome: Outcome = "left_out" if len(begun) == 1 else "run_again"
            self._on_fault(
                Fault(
                    "client_hung",
                    outcome,
                    reason,
                    node_id,
                    worker,
                    seconds=now - work.begun_at,
                    clients=len(begun),
                )
            )
            if len(begun) == 1:
                logger.warning("%s; its worker was ended", reason)
                yield self._failed(begun[0], reason)
            else:  # trained together: one by one it shows which of them hangs
                self._queue.put_back_alone(begun)
            self._queue.put_back(p for p in work.clients() if p not in begun)

    def _due(self, work: _Work) -> float:
        """When the clients that a worker has begun must be done, of `time.monotonic`."""
        assert self._client_timeout is not None
        return work.begun_at + self._client_timeout * len(work.begun)

    def _release(self, worker: int) -> _Work:
        """Forget what a worker was sent."""
        self._sending.forget(worker)
        return self._work.pop(worker, _Work())

    def _failed(self, position: int, reason: str) -> Answer:
        request = self._messages[position]
        reply = Message(Error(CLIENT_CRASHED, reason), reply_to=request)
        set_message_id(reply, "f" + request.metadata.message_id[1:])
        return Answer(position, reply)
