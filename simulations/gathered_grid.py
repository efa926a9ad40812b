"""A Grid for ServerApps of several threads: what they send at the same time goes together.

Flower's older server (`ServerApp(server_fn=…)`) sends one message from each of a pool's threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from flwr.app import Message
from flwr.serverapp import Grid

from fedcompress.errors import ConfigError
from fedcompress.grid_around import GridAround

GATHER_SECONDS = 0.002
"""How long the first thread waits for others of its pool to send, too."""
MOST_LOOKS = 8
LOOKING_SECONDS = 5.0
SILENT_SECONDS = 20.0

logger = logging.getLogger(__name__)


@final
class GatheredGrid(GridAround):
    """Any Grid that one thread at a time may use, for any number of threads.

    A ServerApp that keeps looking for more clients than there are would wait for ever, since
    their number does not change: it is stopped.

    Parameters
    ----------
    grid : Grid
        Around which this stands; the thread that makes this is the ServerApp's own.

    Attributes
    ----------
    refusal : ConfigError or None
        Why the ServerApp was stopped, if it was.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._main = threading.current_thread()
        self._turn = threading.Lock()
        self._queue = threading.Lock()
        self._waiting: list[_Request] = []
        self._looks: list[float] = []
        self._idle_since = time.monotonic()
        self._warned = False
        self.refusal: ConfigError | None = None

    def get_node_ids(self) -> Sequence[int]:
        found = self.grid.get_node_ids()
        node_ids = found if isinstance(found, range) else list(found)
        now = time.monotonic()
        if threading.current_thread() is not self._main:
            self._warn_of_silence(now, len(node_ids))
            return node_ids
        self._looks.append(now)
        if len(self._looks) >= MOST_LOOKS and now - self._looks[0] >= LOOKING_SECONDS:
            self.refusal = ConfigError(
                f"--clients: the ServerApp waits for more clients than the {len(node_ids)} that "
                "there are; raise --clients, or lower what it waits for"
            )
            raise self.refusal
        return node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        with self._exchange():
            return list(self.grid.push_messages(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        with self._exchange():
            return list(self.grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        request = _Request(list(messages), timeout)
        with self._queue:
            self._waiting.append(request)
        with self._exchange():
            if not request.served:
                if threading.current_thread() is not self._main:
                    time.sleep(GATHER_SECONDS)
                self._serve(timeout)
        if request.error is not None:
            raise request.error
        return request.replies

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Let one thread at a time through, and note that something goes on."""
        with self._turn:
            self._looks.clear()
            try:
                yield
            finally:
                self._idle_since = time.monotonic()

    def _warn_of_silence(self, now: float, clients: int) -> None:
        """Say so once where the older server, which waits without a word, seems to wait."""
        if self._warned or self._turn.locked() or now - self._idle_since < SILENT_SECONDS:
            return
        self._warned = True
        logger.warning(
            "no message for %.0f s: if the ServerApp waits for more clients than the %d that "
            "there are, raise --clients",
            *(now - self._idle_since, clients),
        )

    def _serve(self, timeout: float | None) -> None:
        """Send all that wait for their turn and for as long as this thread does."""
        with self._queue:
            batch = [request for request in self._waiting if request.timeout == timeout]
            self._waiting = [request for request in self._waiting if request.timeout != timeout]
        messages = [message for request in batch for message in request.messages]
        error: Exception | None = None
        replies: list[Message] = []
        try:
            replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        except Exception as raised:  # noqa: BLE001 - raised again in each of the threads
            error = raised
        owners = {
            message.metadata.message_id: request
            for request in batch
            for message in request.messages
        }
        for reply in replies:
            # A reply that names no message can only be given to one who asked alone.
            owners.get(reply.metadata.reply_to_message_id, batch[0]).replies.append(reply)
        for request in batch:
            request.error = error
            request.served = True


@dataclass(eq=False)
class _Request:
    messages: list[Message]
    timeout: float | None
    replies: list[Message] = field(default_factory=list)
    error: Exception | None = None
    served: bool = False
