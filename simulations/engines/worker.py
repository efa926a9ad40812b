"""What a worker process does: one app, one thread, one client after another."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fedcompress.errors import ConfigError
from fedcompress.flower_adapter import metadata_of, metadata_values
from fedcompress.partial import SumPlan
from simulations.engines import frames
from simulations.engines.channel import Channel, Frame
from simulations.engines.client_call import (
    AppFactory,
    ClientCall,
    ClientResult,
    Setting,
    call_clients,
    load_app,
)
from simulations.engines.facts import check_facts
from simulations.engines.flower_internals import records_from_bytes, records_to_bytes
from simulations.engines.held_states import KeptStates
from simulations.engines.kept_memory import keep_freed_memory
from simulations.engines.packed_state import StateFolder
from simulations.engines.packing import Json, Packer, Unpacker
from simulations.engines.shared_model import SharedModel, read_arrays
from simulations.engines.shared_sums import SumsFile
from simulations.engines.summing import RangeSums, to_buffers

# Answers of quick clients go back together: a frame costs both sides some 50 microseconds.
SEND_EVERY_SECONDS = 0.01
# With their sum goes a model or several, so it goes less often: never as often as would take more
# than this share of the time, else so that it comes soon beside the time that clients are given.
SEND_SUMS_EVERY_SECONDS = 0.25
SENDING_SHARE = 0.05


def work(connection: socket.socket, client_app: object) -> None:
    """Serve the driver until it closes the connection, which raises EOFError."""
    torch.set_num_threads(1)
    keep_freed_memory()
    channel = Channel(connection, blocking=True)
    try:
        app = load_app(cast(AppFactory, client_app))
    except Exception as error:  # noqa: BLE001 - building an app may raise anything
        said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        _greet(channel, said)
        return
    _greet(channel, "")
    ClientWorker(channel, app).serve()


def _greet(channel: Channel, said: str) -> None:
    channel.send(frames.HELLO, [said.encode(), frames.CLOCK.pack(time.monotonic())])


class ClientWorker:
    """A resident process that calls clients' apps.

    Parameters
    ----------
    channel : Channel
        The connection to the driver.
    app : callable
        The ClientApp, built once.
    """

    def __init__(self, channel: Channel, app: ClientAppCallable) -> None:
        self._channel = channel
        self._app = app
        self._stored = SharedModel()
        self._states = StateFolder()
        self._kept: KeptStates | None = None
        self._waiting: deque[Frame] = deque()
        self._round: Unpacker | None = None
        self._setting = Setting(0, 0, {})
        self._sums: RangeSums | None = None
        self._sums_file: SumsFile | None = None

    def serve(self) -> None:
        """Answer frames until the driver closes the connection, which raises EOFError."""
        try:
            while True:
                frame = self._waiting.popleft() if self._waiting else self._channel.receive()
                if frame.kind == frames.ROUND:
                    self._open_round(frame)
                elif frame.kind == frames.CHECK:
                    said = check_facts(self._app, bytes(frame.parts[0]))
                    self._channel.send(frames.CHECKED, [said.encode()])
                else:
                    self._call_range(frame)
        finally:
            self._stored.close()
            if self._kept is not None:
                self._kept.close()
            if self._sums_file is not None:
                self._sums_file.close()

    def _open_round(self, frame: Frame) -> None:
        self._round = None  # its arrays go before the new ones come
        opened = Unpacker(frame.parts)
        (run_id, num_clients, names, values, count), arrays, shared, *others = opened.value
        plan, kept, sums_folder = others
        self._sums = None if plan is None else RangeSums(SumPlan.from_json(plan))
        config = dict(zip(names, values, strict=True))
        self._setting = Setting(run_id, num_clients, config, count)
        opened.take_shared(shared, self._arrays(opened, *arrays))
        self._round = opened
        if kept is not None:
            folder, outdated = kept
            if self._kept is None:
                self._kept = KeptStates(folder)
            self._kept.delete(outdated)
        self._write_sums_to(sums_folder)

    def _write_sums_to(self, folder: str) -> None:
        if self._sums_file is not None and self._sums_file.folder != folder:
            self._sums_file.close()
            self._sums_file = None
        if self._sums_file is None and folder:
            self._sums_file = SumsFile(folder)
        if self._sums_file is not None:
            self._sums_file.restart()

    def _arrays(
        self,
        opened: Unpacker,
        path: str | None,
        lengths: list[int],
        places: list[int],
        keep: bool,
        blocks: list[int],
    ) -> list[bytes | np.ndarray]:
        """Return the round's shared arrays, which lie in a file here or came with the frame."""
        if path is not None:
            return read_arrays(path, lengths, blocks)
        parts = [opened.part(place) for place in places]
        if keep:
            try:
                stored = self._stored.write(parts)
            except OSError:  # no room: the others get theirs from the driver
                stored = ""
            self._channel.send(frames.STORED, [stored.encode()])
        return [
            np.frombuffer(part, np.uint8).copy() if place in blocks else bytes(part)
            for place, part in enumerate(parts)
        ]

    def _call_range(self, frame: Frame) -> None:
        """Call the clients of one range; send their answers in order, several at a time."""
        assert self._round is not None
        unpacker = Unpacker(frame.parts).shared_with(self._round)
        tell, patience, sums, tasks = unpacker.value
        summed = self._sums if sums else None
        answers = _Answers(
            self._channel, self._states, summed, patience, self._kept, self._sums_file
        )
        begun: list[float] = []

        def calls() -> Iterator[ClientCall]:
            for position, metadata, content, state, _ in tasks:
                if tell:
                    answers.next(position)
                begun.append(time.monotonic())
                about = metadata_of(metadata)
                held = self._state(state, about.dst_node_id, unpacker)
                yield ClientCall(about, unpacker.content(content), held, position)

        results = call_clients(self._app, calls(), self._setting)
        for task, result, began in zip(tasks, results, begun, strict=True):
            answers.add(task[0], result, task[4], began)
        answers.flush()

    def _state(
        self, state: str | int | list[int] | None, node_id: int, unpacker: Unpacker
    ) -> RecordDict:
        """Read a client's state: from a file, from the frame, or as this machine keeps it."""
        if state is None:
            return RecordDict()
        if isinstance(state, str):
            return self._states.read(state)
        if isinstance(state, int):
            return records_from_bytes(bytes(unpacker.part(state)))
        kept = None if self._kept is None else self._kept.read(state[0])
        return records_from_bytes(self._ask_for(node_id) if kept is None else kept)

    def _ask_for(self, node_id: int) -> bytes:
        """Ask the driver for a state; what it says meanwhile waits."""
        self._channel.send(frames.WANTED, [str(node_id).encode()])
        while (frame := self._channel.receive()).kind != frames.STATE:
            self._waiting.append(frame)
        return bytes(frame.parts[0])


class _Answers:
    """Answers that wait to be sent; those whose updates are summed go when their block is whole.

    Parameters
    ----------
    channel : Channel
        The connection to the driver.
    states : StateFolder
        Writes states to files of the driver's machine.
    sums : RangeSums, optional
        Where updates are summed, if they are; then the range is one of whole blocks.
    patience : float or None
        Seconds that answers with sums may wait for others; None where nobody waits for them.
    kept : KeptStates, optional
        Where states are kept, if this machine is not the driver's.
    sums_file : SumsFile, optional
        Where sums are written, if it is.
    """

    def __init__(
        self,
        channel: Channel,
        states: StateFolder,
        sums: RangeSums | None,
        patience: float | None,
        kept: KeptStates | None = None,
        sums_file: SumsFile | None = None,
    ) -> None:
        self._states = states
        self._sums_file = sums_file
        self._kept = kept
        self._channel = channel
        self._sums = sums
        self._send_every = SEND_EVERY_SECONDS
        if sums is not None:
            patience = SEND_SUMS_EVERY_SECONDS if patience is None else patience
            self._send_every = min(max(patience, SEND_EVERY_SECONDS), SEND_SUMS_EVERY_SECONDS)
        self._packer = Packer()
        self._waiting: list[Json] = []
        self._sent = time.monotonic()

    def add(
        self, position: int, result: ClientResult, save_as: str | int | None, began: float
    ) -> None:
        reply, packer = result.reply, self._packer
        if self._sums is not None:
            reply = self._sums.add(position, reply)
        self._waiting.append(
            [
                position,
                metadata_values(reply.metadata),
                packer.content(reply.content) if reply.has_content() else None,
                [reply.error.code, reply.error.reason] if reply.has_error() else None,
                result.compute_seconds,
                result.failure,
                None if result.state is None else self._save(result.state, save_as),
                began,
                time.monotonic() - began,
            ]
        )
        if self._is_due:
            self.flush()

    def _save(self, state: RecordDict, save_as: str | int | None) -> Json:
        """Write a state to its file, or keep it here and send it."""
        if isinstance(save_as, str):
            try:
                return [save_as, *self._states.write(save_as, state)]
            except OSError:  # no room there: the driver finds some
                Path(save_as).unlink(missing_ok=True)
        data = records_to_bytes(state)
        if isinstance(save_as, int) and self._kept is not None:
            self._kept.keep(save_as, data)
        return self._packer.part(data)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._sent > self._send_every

    def next(self, began: int) -> None:
        """Say which client is called next, and send what waits if that may be now."""
        if self._sums is None or self._is_due:
            self.flush()
        self._channel.send(frames.BEGAN, [str(began).encode()])

    def flush(self) -> None:
        """Send what waits, but no part of a block that is summed."""
        if not self._waiting or not (self._sums is None or self._sums.is_between_blocks):
            return
        started = time.monotonic()
        sums = [] if self._sums is None else to_buffers(self._sums.take())
        written = None
        if len(sums) > 1 and self._sums_file is not None:
            places = self._sums_file.write(sums[1:])
            if places is not None:
                written, sums = [self._sums_file.name, places], sums[:1]
        parts = [self._packer.part(buffer) for buffer in sums]
        self._channel.send(frames.ANSWERS, self._packer.finish([self._waiting, parts, written]))
        self._packer, self._waiting = Packer(), []
        self._sent = time.monotonic()
        if sums:
            self._send_every = max(self._send_every, (self._sent - started) / SENDING_SHARE)
