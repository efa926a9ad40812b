"""Which round a message belongs to, where nobody but the messages can say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from flwr.app import Message, MessageType


def is_training(message: Message) -> bool:
    """Whether a message asks a client to train."""
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


@final
class MessageRounds:
    """Counts rounds from 1: a round begins when clients are asked to train anew.

    That is when the round that Flower's strategies write into their messages changes, or the
    model does where they write none, and whenever a client is asked a second time.
    """

    def __init__(self) -> None:
        self.number = 0
        self._mark: object = None
        self._asked: set[int] = set()

    def number_of(self, messages: Sequence[Message]) -> int:
        """Give the round of messages that are sent together; 0 is before the first training."""
        trained = [message for message in messages if is_training(message)]
        if not trained:
            return self.number
        nodes = {message.metadata.dst_node_id for message in trained}
        mark = _mark(trained[0])
        if not self.number or mark != self._mark or nodes & self._asked:
            self.number += 1
            self._mark = mark
            self._asked = set()
        self._asked |= nodes
        return self.number


def _mark(message: Message) -> object:
    """Say what a round's training messages have in common: its number, or else the model."""
    if not message.has_content():
        return None
    for config in message.content.config_records.values():
        if "server-round" in config:
            return config["server-round"]
    if message.metadata.group_id.isdigit():
        return message.metadata.group_id
    return [
        array.data for record in message.content.array_records.values() for array in record.values()
    ]
