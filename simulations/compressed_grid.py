"""A Grid that compresses: the server's end of the protocol, message by message.

`fedcompress.Compressed` stands around a strategy; this stands around the grid, below whatever
the ServerApp does with it: any strategy, or a loop written by hand. What the ServerApp sends
and receives are dense arrays.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedcompress import protocol
from fedcompress.compressor import Compressor
from fedcompress.downlink import Broadcast
from fedcompress.dtypes import restore_dtypes
from fedcompress.errors import ConfigError, FedcompressError, LayoutError, StaleMemoryError
from fedcompress.flower_adapter import message_of, with_content
from fedcompress.grid_around import GridAround
from fedcompress.incoming import read_payload
from fedcompress.links import read_links
from fedcompress.memories import Memories
from fedcompress.outgoing import Outgoing
from fedcompress.reference import NEEDS_WHOLE_MODEL, NO_VERSION
from fedcompress.sent import Sent
from fedcompress.spec import parse
from simulations.engines.flower_internals import REPLY_REFUSED
from simulations.message_rounds import MessageRounds, is_training

logger = logging.getLogger(__name__)


@final
class CompressedGrid(GridAround):
    """Any Grid whose clients carry `compression_mod`, seen as one of dense arrays.

    Messages that ask for training get the spec, and the model as payload where there is a
    downlink; their replies are checked and decoded to the models that the clients trained. A
    reply that does not verify becomes an error reply. All other messages pass as they are, and
    so does training whose message holds no single model of floating-point arrays.

    Parameters
    ----------
    grid : Grid
        Where clients run.
    uplink, downlink : str or Compressor, optional
        Specs, as of `Compressed`.
    seed : int
        Keys all randomness of compression, together with round and client.
    memory_bytes : int
        As of `Compressed`.

    Raises
    ------
    ConfigError
        If a spec cannot work; when messages are sent, if the ServerApp compresses by itself.
    """

    def __init__(
        self,
        grid: Grid,
        uplink: str | Compressor | None = None,
        downlink: str | Compressor | None = None,
        seed: int = 0,
        memory_bytes: int = 500_000_000,
    ) -> None:
        super().__init__(grid)
        up, down = read_links("simulate", uplink, downlink)
        if up is None or callable(up):
            raise ConfigError("simulate: nothing to compress; name an uplink or a downlink")
        self._uplink = parse(up)
        self._seed = seed
        self._broadcast = None if down is None else Broadcast(down, seed)
        self._memories = Memories(memory_bytes)
        self._rounds = MessageRounds()
        self._round = 0
        self._models: list[_Model] = []  # of this round, mostly one
        self._broadcast_model: _Model | None = None
        self._dtypes: dict[str, torch.dtype] = {}  # of the first model
        self._sent: dict[str, _Sent] = {}  # by message id
        self._warned: set[str] = set()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        prepared, sent = self._prepare(list(messages))
        pushed = list(self.grid.push_messages(prepared))
        self._note(prepared, sent)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return self._restore(list(self.grid.pull_messages(message_ids)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        prepared, sent = self._prepare(list(messages))
        replies = list(self.grid.send_and_receive(prepared, timeout=timeout))
        self._note(prepared, sent)
        restored = self._restore(replies)
        for message in prepared:  # what was not answered in time never will be
            self._sent.pop(message.metadata.message_id, None)
        return restored

    # ------------------------------------------------------------------ to the clients
    def _prepare(self, messages: list[Message]) -> tuple[list[Message], list[_Sent | None]]:
        """Copy messages with what the protocol adds; the ServerApp's own stay as they are."""
        number = self._rounds.number_of(messages)
        if number != self._round:
            self._round, self._models = number, []
        models = [self._model_of(message) for message in messages]
        broadcast = self._broadcast_of([model for model in models if model is not None])
        outgoing = Outgoing(number, self._seed, self._memories)
        contents: dict[int, RecordDict] = {}
        prepared: list[Message] = []
        sent: list[_Sent | None] = []
        for message, model in zip(messages, models, strict=True):
            if model is None:
                prepared.append(message)
                sent.append(None)
                continue
            # Messages that share a content go on sharing one: engines ship it once.
            shared = id(message.content)
            if shared not in contents:
                contents[shared] = model.put_into(message.content)
            copy = with_content(message, contents[shared])
            outgoing.prepare(copy, self._uplink, broadcast)
            prepared.append(copy)
            if broadcast is None:
                sent.append(_Sent(number, model.tensors, NO_VERSION))
            else:
                sent.append(_Sent(number, broadcast.reference, broadcast.version))
        return prepared, sent

    def _model_of(self, message: Message) -> _Model | None:
        """Read the model that a message sends to training; None where there is no single one."""
        if not message.has_content() or not is_training(message):
            return None
        if protocol.UPLINK_KEY in protocol.settings_of(message.content):
            raise ConfigError(
                "--uplink: this ServerApp compresses by itself (Compressed around its strategy); "
                "leave --uplink and --downlink out"
            )
        records = message.content.array_records
        if len(records) != 1:
            if records:
                self._warn_once(f"messages with {len(records)} ArrayRecords pass as they are")
            return None
        record = next(iter(records.values()))
        given = {name: array.data for name, array in record.items()}
        for known in self._models:
            if known.given == given:
                return known
        try:
            tensors = protocol.record_to_tensors(record)
        except LayoutError as error:
            self._warn_once(f"messages pass as they are: {error}")
            return None
        if not any(x.is_floating_point() for x in tensors.values()):
            self._warn_once("arrays without floating-point numbers pass as they are")
            return None
        if self._dtypes.keys() != tensors.keys():
            self._dtypes = {name: x.dtype for name, x in tensors.items()}
        model = _Model.of(given, tensors, restore_dtypes(tensors, self._dtypes))
        self._models.append(model)
        return model

    def _broadcast_of(self, models: list[_Model]) -> Broadcast | None:
        """Give the broadcast, brought to the model of these messages, if they have one."""
        if self._broadcast is None or not models:
            return None
        model = models[0]
        if any(other is not model for other in models):
            self._warn_once("a round's messages hold several models; they go down dense")
            return None
        last, self._broadcast_model = self._broadcast_model, model
        if model is not last:
            if last is not None and last.given == model.given:
                self._broadcast.model_stays()
            self._broadcast.advance_to(model.tensors, self._round)
        return self._broadcast

    def _note(self, prepared: list[Message], sent: list[_Sent | None]) -> None:
        for message, note in zip(prepared, sent, strict=True):
            if note is not None:
                self._sent[message.metadata.message_id] = note

    # ------------------------------------------------------------------ from the clients
    def _restore(self, replies: list[Message]) -> list[Message]:
        """Decode what was compressed, and warn once for each reason why it could not be."""
        faults: Counter[str] = Counter()
        restored = [self._restore_one(reply, faults) for reply in replies]
        self._memories.make_room()
        for reason, count in faults.items():
            logger.warning(
                "round %d: %d of %d clients: %s", *(self._round, count, len(replies), reason)
            )
        return restored

    def _restore_one(self, reply: Message, faults: Counter[str]) -> Message:
        sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
        if sent is None:
            return reply
        node_id = reply.metadata.src_node_id
        if reply.has_error():
            reason = reply.error.reason or ""
            if self._broadcast is not None and NEEDS_WHOLE_MODEL in reason:
                self._broadcast.forget(node_id)
            if reason.startswith(protocol.ERROR_PREFIX):
                faults[_one_line(reason)] += 1
            return reply
        try:
            told = Sent(self._uplink, sent.reference)
            answer = read_payload(reply, told, sent.round_number, self._memories)
        except FedcompressError as error:
            if isinstance(error, StaleMemoryError):
                self._memories.forget(node_id)
            faults[_one_line(str(error))] += 1
            refusal = Error(REPLY_REFUSED, f"{protocol.ERROR_PREFIX}{error}")
            return message_of(reply.metadata, None, refusal)
        if answer.memory:
            self._memories.keep(node_id, sent.round_number, answer.memory)
        if self._broadcast is not None and sent.version != NO_VERSION:
            self._broadcast.confirm(node_id, sent.version)
        trained = protocol.advance(sent.reference, answer.dense())
        return with_content(reply, protocol.with_model(reply.content, trained))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("round %d: not compressed: %s", self._round, text)


@final
@dataclass(frozen=True, eq=False)
class _Model:
    """A model as the ServerApp gave it, and as it is sent: with the dtypes of the first one."""

    given: Mapping[str, bytes]
    tensors: dict[str, Tensor]
    changed: ArrayRecord | None

    @classmethod
    def of(
        cls, given: Mapping[str, bytes], tensors: dict[str, Tensor], sent: dict[str, Tensor]
    ) -> _Model:
        same = all(sent[name] is x for name, x in tensors.items())
        return cls(given, sent, None if same else protocol.tensors_to_record(sent))

    def put_into(self, content: RecordDict) -> RecordDict:
        """Give the content to send."""
        if self.changed is None:
            return content
        key, _ = protocol.single_array_record(content, "message")
        copied = RecordDict()
        copied.update(content)
        copied[key] = self.changed
        return copied


@final
@dataclass(frozen=True, eq=False)
class _Sent:
    """What the reply to one message is read against."""

    round_number: int
    reference: Mapping[str, Tensor]
    version: int


def _one_line(text: str) -> str:
    return " ".join(text.split())
