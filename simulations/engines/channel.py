"""Frames over a socket: a kind and buffers, sent as they lie in memory and read without waiting."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Part = bytes | bytearray | memoryview

# Kind, number of parts, and bytes that follow: the parts' lengths (8 bytes each) and the parts.
_HEAD = struct.Struct("<BIQ")
_AT_ONCE = 512  # parts a system call takes; systems allow 1,024
_SCRATCH_BYTES = 1 << 16
_SOCKET_BYTES = 1 << 20


class Frame(NamedTuple):
    """What the other side sent; its parts lie in one buffer that belongs to the frame."""

    kind: int
    parts: list[memoryview]


class Channel:
    """One end of a connection between the driver and a worker.

    A blocking end (the worker's) sends and receives whole frames. An end that does not block (the
    driver's) keeps what the socket does not take and reads what is there, so that two full sockets
    never wait for each other.

    Parameters
    ----------
    connection : socket
        A connected stream socket; the channel owns it.
    blocking : bool
        Whether calls wait for the other side.
    """

    def __init__(self, connection: socket.socket, *, blocking: bool) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(blocking)
        self._connection = connection
        self._blocking = blocking
        self._unsent: deque[memoryview] = deque()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._head = bytearray()
        self._kind = self._count = self._filled = 0
        self._body: memoryview | None = None
        self._received: deque[Frame] = deque()

    def fileno(self) -> int:
        """Return the socket's file descriptor, as selectors ask for it."""
        return self._connection.fileno()

    # ------------------------------------------------------------------ sending
    def post(self, kind: int, parts: Sequence[Part]) -> None:
        """Queue a frame; the buffers must stay as they are until it is sent."""
        views = [memoryview(part).cast("B") for part in parts]
        lengths = struct.pack(f"<{len(views)}Q", *map(len, views))
        total = len(lengths) + sum(map(len, views))
        self._unsent.append(memoryview(_HEAD.pack(kind, len(views), total) + lengths))
        self._unsent.extend(view for view in views if len(view))

    def flush(self) -> bool:
        """Send what is queued; False where the socket takes no more for now.

        Raises
        ------
        OSError
            If the other side is gone.
        """
        unsent = self._unsent
        while unsent:
            batch = [unsent[i] for i in range(min(len(unsent), _AT_ONCE))]
            try:
                sent = self._connection.sendmsg(batch)
            except BlockingIOError:
                return False
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = unsent[0][sent:]
        return True

    def send(self, kind: int, parts: Sequence[Part] = ()) -> bool:
        """Queue a frame and flush."""
        self.post(kind, parts)
        return self.flush()

    # ------------------------------------------------------------------ receiving
    def receive(self) -> Frame:
        """Wait for the next frame.

        Raises
        ------
        EOFError
            If the other side is gone.
        """
        while not self._received:
            if not self._fill():
                raise EOFError("the other side closed the connection")
        return self._received.popleft()

    def read(self) -> tuple[list[Frame], bool]:
        """Return the frames that have come, and whether the other side is still there."""
        try:
            alive = self._fill()
        except BlockingIOError:
            alive = True
        frames = list(self._received)
        self._received.clear()
        return frames, alive

    def _fill(self) -> bool:
        """Take bytes from the socket, until it has no more or, where it blocks, once."""
        while True:
            direct = self._body is not None and len(self._body) - self._filled > _SCRATCH_BYTES
            into = self._body[self._filled :] if direct and self._body else self._scratch
            try:
                count = self._connection.recv_into(into)
            except (ConnectionError, TimeoutError):
                return False
            if not count:
                return False
            if direct:
                self._filled += count
                self._received.extend(self._parse(into[:0]))
            else:
                self._received.extend(self._parse(into[:count]))
            # A short read emptied the socket: asking again would cost a call to learn that.
            if self._blocking or count < len(into):
                return True

    def _parse(self, data: memoryview) -> Iterator[Frame]:
        while True:
            if self._body is None:
                need = _HEAD.size - len(self._head)
                self._head += data[:need]
                data = data[need:]
                if len(self._head) < _HEAD.size:
                    return
                self._kind, self._count, total = _HEAD.unpack(self._head)
                self._head.clear()
                self._body, self._filled = memoryview(bytearray(total)), 0
            take = min(len(data), len(self._body) - self._filled)
            self._body[self._filled : self._filled + take] = data[:take]
            self._filled += take
            data = data[take:]
            if self._filled < len(self._body):
                return
            yield Frame(self._kind, _split(self._body, self._count))
            self._body = None

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()


def _split(body: memoryview, count: int) -> list[memoryview]:
    parts = []
    start = 8 * count
    for length in struct.unpack_from(f"<{count}Q", body):
        parts.append(body[start : start + length])
        start += length
    return parts
