"""What runs workers and carries frames to and from them; how they are started is for subclasses."""

from __future__ import annotations

import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fedcompress.errors import ConfigError
from simulations.engines import frames
from simulations.engines.channel import Channel, Part
from simulations.engines.faults import FaultKind

START_SECONDS = 180.0


@dataclass(frozen=True)
class Ready:
    """A worker has built its app and waits for clients."""

    worker: int


@dataclass(frozen=True)
class Received:
    """A worker sent a frame."""

    worker: int
    kind: int
    parts: list[memoryview]


@dataclass(frozen=True)
class Died:
    """A worker's connection ended.

    `started` says whether it had been ready before, `is_final` whether another in its place would
    fail as it did: its app cannot be built.
    """

    worker: int
    reason: str
    started: bool
    is_final: bool = False
    kind: FaultKind = "worker_died"


Event = Ready | Received | Died


class WorkerPool(ABC):
    """Worker processes, known by numbers that stay when a process is replaced.

    A worker's death is seen as the end of its connection, at once and without asking.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._channels: dict[int, Channel] = {}
        self._ready: set[int] = set()
        self._noticed: list[Event] = []
        self._clocks: dict[int, float] = {}
        self._check: bytes | None = None

    # ------------------------------------------------------------------ what a back end provides
    @abstractmethod
    def _launch(self, count: int) -> None:
        """Begin to start `count` workers; each connects by `_connect`."""

    @abstractmethod
    def _why_died(self, worker: int) -> tuple[str, FaultKind]:
        """Say why a worker's connection ended, in words that are empty if that is not known."""

    @abstractmethod
    def replace(self, worker: int) -> bool:
        """End a worker and begin to start another of its number; False if there is no room."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many workers there are, those that are starting among them."""

    @abstractmethod
    def node(self, worker: int) -> str:
        """Return the machine of a worker that is ready; empty for the driver's own."""

    # ------------------------------------------------------------------ for the engine
    def start(self, count: int) -> None:
        """Start workers and wait until they are ready.

        Raises
        ------
        ConfigError
            If the app cannot be built there or they do not start in time.
        """
        self._launch(count)
        deadline = time.monotonic() + START_SECONDS
        while len(self._ready) < count:
            left = deadline - time.monotonic()
            events = self.events(max(left, 0.0))
            if not events and left <= 0:
                raise ConfigError(
                    f"workers: {len(self._ready)} of {count} workers started within "
                    f"{START_SECONDS:g} s; is the cluster busy with other work?"
                )
            for event in events:
                if isinstance(event, Died):
                    raise ConfigError(f"client_app: no worker could start: {event.reason}")

    def expect(self, check: bytes | None) -> None:
        """Let workers of other machines, there or to come, check what `pack_check` wrote.

        One that finds something wrong is told of as one that died and needs no replacement.
        """
        self._check = check
        for worker in self._ready:
            self._ask_to_check(worker)

    @property
    def ready(self) -> set[int]:
        """The workers that wait for clients or run them."""
        return self._ready

    def send(self, worker: int, kind: int, parts: Sequence[Part]) -> None:
        """Send a frame; one to a worker that has died is lost, and its death will be told."""
        channel = self._channels[worker]
        try:
            everything = channel.send(kind, parts)
        except OSError:
            return
        if not everything:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(channel, both, worker)

    def events(self, timeout: float | None) -> list[Event]:
        """Wait until a worker says something, at most `timeout` seconds, and tell what."""
        if not self._noticed:
            for key, mask in self._selector.select(timeout):
                if key.data is None:
                    self._welcome()
                    continue
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
        events, self._noticed = self._noticed, []
        return events

    def close(self) -> None:
        """End every worker."""
        for worker in list(self._channels):
            self._disconnect(worker)
        self._selector.close()

    def to_our_clock(self, worker: int, seconds: float) -> float:
        """Translate a moment of a worker's `time.monotonic` to the driver's."""
        return seconds + self._clocks[worker] if self.node(worker) else seconds

    # ------------------------------------------------------------------ for back ends
    def _connect(self, worker: int, channel: Channel) -> None:
        self._channels[worker] = channel
        self._selector.register(channel, selectors.EVENT_READ, worker)

    def _disconnect(self, worker: int) -> None:
        channel = self._channels.pop(worker, None)
        self._ready.discard(worker)
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()

    def _welcome(self) -> None:
        """Accept a worker that connects."""
        raise NotImplementedError

    def _hello(self, worker: int, said: str) -> None:
        """A worker said its first word: what is wrong with its app, or nothing."""
        if said:
            self._disconnect(worker)
            self._noticed.append(Died(worker, said, started=False, is_final=True))
        else:
            self._ready.add(worker)
            self._ask_to_check(worker)
            self._noticed.append(Ready(worker))

    def _ask_to_check(self, worker: int) -> None:
        if self._check is not None and self.node(worker):
            self.send(worker, frames.CHECK, [self._check])

    def _checked(self, worker: int, said: str) -> None:
        if said:
            node = self.node(worker)
            reason = f"data: the worker on Ray node {node[:8]} has others than the driver: {said}"
            self._disconnect(worker)
            died = Died(worker, reason, started=True, is_final=True, kind="other_data")
            self._noticed.append(died)

    def _lose(self, worker: int) -> None:
        started = worker in self._ready
        self._disconnect(worker)
        reason, kind = self._why_died(worker)
        self._noticed.append(Died(worker, reason, started, kind=kind))

    def _flush(self, worker: int) -> None:
        channel = self._channels[worker]
        try:
            done = channel.flush()
        except OSError:
            done = True  # what it sent before it died is still to be read
        if done:
            self._selector.modify(channel, selectors.EVENT_READ, worker)

    def _read(self, worker: int) -> None:
        received, alive = self._channels[worker].read()
        for frame in received:
            if frame.kind == frames.HELLO:
                said, clock = frame.parts
                self._clocks[worker] = time.monotonic() - frames.CLOCK.unpack(clock)[0]
                self._hello(worker, bytes(said).decode())
            elif frame.kind == frames.CHECKED:
                self._checked(worker, bytes(frame.parts[0]).decode())
            else:
                self._noticed.append(Received(worker, frame.kind, frame.parts))
        if not alive and worker in self._channels:
            self._lose(worker)
