"""Messages are counted as they lie in Flower's own transport."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from simulations.engines import LocalGrid
from simulations.traffic import MeasuredGrid

CLIENT_APP = "engine_client:app"


def pushed_bytes(message: Message) -> int:
    """Return what Flower's grid pushes: every nested object once, deflated."""
    return sum(len(nested.deflate()) for nested in get_all_nested_objects(message).values())


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_both_directions_are_counted(kind: str, round_of: Any) -> None:
    measured = MeasuredGrid(LocalGrid(CLIENT_APP, 4))
    messages = round_of(clients=4, kind=kind, **{"raise": 3})
    replies = list(measured.send_and_receive(messages))
    traffic = measured.take()
    assert [(t.direction, t.node_id, t.message_type) for t in traffic] == [
        (direction, node_id, kind)
        for direction in ("downlink", "uplink")
        for node_id in range(1, 5)
    ]
    for counted, message in zip(traffic, messages + replies, strict=True):
        assert counted.message_bytes == pushed_bytes(message)
        assert counted.payload_bytes < counted.message_bytes
        if counted.direction == "downlink":
            assert counted.payload_bytes == len(message.content["arrays"]["weight"].data)
    assert measured.take() == []


def test_pushed_and_pulled_messages_are_counted(round_of: Any) -> None:
    measured = MeasuredGrid(LocalGrid(CLIENT_APP, 2))
    replies = list(measured.pull_messages(measured.push_messages(round_of(clients=2))))
    assert [t.direction for t in measured.take()] == ["downlink", "downlink", "uplink", "uplink"]
    assert len(replies) == 2


def test_every_kind_of_record_is_counted_as_flower_sends_it() -> None:
    zeros = np.zeros((20, 20), np.float32)
    payload = Array("uint8", (5,), "fedcompress.v1", b"abcde")
    arrays = ArrayRecord(
        {"same": Array(zeros), "again": Array(zeros), "scalar": Array(zeros[0, 0:1])}
    )
    arrays["payload"] = payload
    arrays["empty"] = Array(np.zeros(0, np.int64))
    content = RecordDict(
        {
            "arrays": arrays,
            "metrics": MetricRecord({"loss": 0.5, "list": [1, 2]}),
            "config": ConfigRecord({"text": "a", "flag": True, "bytes": b"123"}),
            "same config": ConfigRecord({"text": "a", "flag": True, "bytes": b"123"}),
            "none": ArrayRecord(),
        }
    )
    measured = MeasuredGrid(LocalGrid(lambda: _echo, 2))
    messages = [Message(content, node_id, "query") for node_id in (1, 2)]
    replies = list(measured.send_and_receive(messages))
    for counted, message in zip(measured.take(), messages + replies, strict=True):
        assert counted.message_bytes == pushed_bytes(message)
        assert counted.payload_bytes == sum(len(array.data) for array in arrays.values())


def test_measuring_leaves_nothing_in_the_message(round_of: Any) -> None:
    measured = MeasuredGrid(LocalGrid(CLIENT_APP, 2))
    messages = round_of(clients=2)
    for message in messages + list(measured.send_and_receive(messages)):
        for array in message.content.array_records["arrays"].values():
            assert "_chunks" not in vars(array)


def _echo(message: Message, context: object) -> Message:
    return Message(message.content, reply_to=message)
