"""Messages are counted as they lie in Flower's own transport."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress.dense import dense_record
from fedcompress.flower_adapter import message_of
from simulations.engines import LocalGrid
from simulations.engines.flower_internals import MAX_CHUNK_BYTES
from simulations.engines.message_bytes import Meter, message_bytes
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


SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 1, -1, 63, 64, -64, -65, 2**62, -(2**62)])
)
NUMBERS = st.one_of(SCALARS, st.floats(width=64), st.lists(SCALARS, max_size=3))
NAMES = st.text(max_size=4)


@st.composite
def records(draw: st.DrawFn) -> ArrayRecord | MetricRecord | ConfigRecord:
    """Any record; some hold equal arrays, equal values, or nothing."""
    kind = draw(st.sampled_from(["arrays", "metrics", "config"]))
    if kind == "metrics":
        return MetricRecord(draw(st.dictionaries(NAMES, NUMBERS, max_size=3)))
    if kind == "config":
        values = st.one_of(NUMBERS, st.booleans(), st.text(max_size=200), st.binary(max_size=3))
        return ConfigRecord(draw(st.dictionaries(NAMES, values, max_size=4)))
    record = ArrayRecord()
    for name in draw(st.sets(NAMES, max_size=3)):
        data = bytes(draw(st.sampled_from([0, 1, 5, 10, 99, 100, 10_000])))
        stype = draw(st.sampled_from(["numpy.ndarray", "fedcompress.v1"]))
        shape = draw(st.sampled_from([(len(data),), (), (2, 50)]))
        record[name] = Array("uint8", shape, stype, data)
    return record


@settings(max_examples=300, deadline=None)
@given(
    held=st.lists(st.tuples(NAMES, records()), max_size=4),
    nodes=st.tuples(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1)),
    texts=st.tuples(NAMES, NAMES),
    numbers=st.tuples(st.floats(0, 1e10), st.floats(0, 1e10)),
)
def test_any_message_weighs_what_flower_sends(
    held: list[tuple[str, Any]],
    nodes: tuple[int, int],
    texts: tuple[str, str],
    numbers: tuple[float, float],
) -> None:
    metadata = Metadata(7, "", *nodes, *texts, *numbers, "train")
    message = message_of(metadata, RecordDict(dict(held)))
    counted = Meter().bytes_of(message)
    assert counted == pushed_bytes(message)
    assert Meter().bytes_of(message) == counted


def test_arrays_of_several_chunks_weigh_what_flower_sends() -> None:
    zeros = np.zeros(3 * MAX_CHUNK_BYTES + 1000, np.uint8)
    mixed = zeros.copy()
    mixed[MAX_CHUNK_BYTES] = 1
    arrays = ArrayRecord(
        {"zeros": Array(zeros), "mixed": Array(mixed), "tail": Array(zeros[:1000])}
    )
    message = Message(RecordDict({"arrays": arrays}), 1, "train")
    assert Meter().bytes_of(message) == pushed_bytes(message)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("records", [1, 2])
def test_arrays_whose_bytes_are_not_made_weigh_what_flower_sends(records: int, alike: bool) -> None:
    shapes = [(3, 4), (4, 3), (3,), (3,) if alike else (5,)]
    for fill in (0.0, 1.0):
        arrays = {f"a{i}": np.full(x, fill * i, np.float32) for i, x in enumerate(shapes)}
        some = {"other": np.zeros((3,), np.float32), "last": np.ones((9,), np.float32)}
        parts = [arrays, some][:records]
        metrics = MetricRecord({"loss": 0.5, "num-examples": 300})
        late = [dense_record(part) for part in parts]
        plain = [ArrayRecord({k: Array(x) for k, x in part.items()}) for part in parts]
        sizes = []
        for given_records in (late, plain):
            content = RecordDict({f"r{i}": r for i, r in enumerate(given_records)})
            content["metrics"] = metrics
            message = message_of(Metadata(7, "", 1, 2, "", "g", 1.0, 2.0, "train"), content)
            sizes += [message_bytes(message), message_bytes(message), Meter().bytes_of(message)]
        assert set(sizes) == {pushed_bytes(message)}
