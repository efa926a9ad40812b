"""The engines' parts: chunks, packing, and what is used of Flower's internals."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import FedcompressError
from simulations.engines.flower_internals import (
    CLIENT_CRASHED,
    CLIENT_RAISED,
    copy_records,
    records_from_bytes,
    records_to_bytes,
)
from simulations.engines.packing import (
    MIN_SHARED_BYTES,
    SharedBuffers,
    pack_records,
    unpack_records,
)
from simulations.engines.schedule import MIN_CHUNK_SECONDS, ClientQueue, expected_costs
from simulations.engines.state_files import StateFiles


@given(
    costs=st.lists(st.floats(min_value=1e-6, max_value=100), min_size=1, max_size=200),
    workers=st.integers(1, 16),
)
def test_every_client_is_taken_once_and_the_costliest_first(
    costs: list[float], workers: int
) -> None:
    queue = ClientQueue(dict(enumerate(costs)), workers)
    taken: list[int] = []
    while chunk := queue.take():
        taken += chunk
    assert sorted(taken) == list(range(len(costs)))
    assert [costs[position] for position in taken] == sorted(costs, reverse=True)
    assert queue.take() == []
    queue.put_back([taken[0]])
    assert queue.take() == [taken[0]]


def test_quick_clients_go_in_few_chunks_and_every_worker_has_some() -> None:
    queue = ClientQueue(dict.fromkeys(range(10), MIN_CHUNK_SECONDS / 100), workers=2)
    assert [len(queue.take()) for _ in range(2)] == [5, 5]
    slow = ClientQueue(dict.fromkeys(range(100), 1.0), workers=2)
    sizes = []
    while chunk := slow.take():
        sizes.append(len(chunk))
    assert sizes[0] == 25
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)


def test_costs_are_those_of_the_last_call() -> None:
    assert expected_costs([1, 2, 3], {}) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert expected_costs([3, 2], {3: 0.5, 1: 1.5}) == {0: 0.5, 1: 1.0}


def some_records() -> RecordDict:
    arrays = ArrayRecord(
        {"large": Array(np.arange(4 * MIN_SHARED_BYTES)), "one": Array(np.ones(1))}
    )
    arrays["payload"] = Array("uint8", (0,), "fedcompress.v1", b"")
    metrics = MetricRecord({"loss": 0.5, "counts": [1, 2], "none": []})
    config = ConfigRecord({"text": "a", "flag": True, "data": b"\x00", "names": ["a", "b"]})
    return RecordDict({"arrays": arrays, "metrics": metrics, "config": config, "no": ArrayRecord()})


def test_packing_is_exact_and_shares_what_is_shared() -> None:
    first, second = some_records(), RecordDict()
    second["again"] = ArrayRecord({"large": first.array_records["arrays"]["large"]})
    shared = SharedBuffers([first, second])
    assert len(shared.buffers) == 1
    for records in (first, second):
        packed = pack_records(records, shared)
        unpacked = unpack_records(packed, lambda place: shared.buffers[place].tobytes())
        assert unpacked == records
        assert list(unpacked) == list(records)
    assert unpack_records(pack_records(first)) == first
    assert SharedBuffers([first]).buffers == []


def test_copies_share_bytes_and_nothing_else() -> None:
    records = some_records()
    copied = copy_records(records)
    assert copied == records
    assert list(copied) == list(records)
    one = records.array_records["arrays"]["large"]
    assert copied.array_records["arrays"]["large"] is not one
    assert copied.array_records["arrays"]["large"].data is one.data
    copied.config_records["config"]["names"].append("c")  # type: ignore[union-attr]
    assert records.config_records["config"]["names"] == ["a", "b"]


def test_flowers_serialisation_is_as_we_take_it() -> None:
    records = some_records()
    del records.metric_records["metrics"]["none"]
    assert records_from_bytes(records_to_bytes(records)) == records
    assert records_from_bytes(b"") == RecordDict()
    for some in (
        records,
        RecordDict({"": ArrayRecord({"": Array("", (), "", b"")}), "ü": ArrayRecord()}),
        RecordDict({"s": ArrayRecord({"scalar": Array(np.array(3)), "none": Array(np.ones(0))})}),
    ):
        data = recorddict_to_proto(some).SerializeToString()
        assert records_to_bytes(some) == data
        read = records_from_bytes(data)
        assert read == some
        assert list(read) == list(some)
    for damaged in (data[:-1], data[:1], b"\x08\x01", b"\xff" * 12):
        with pytest.raises((ValueError, FedcompressError)):
            records_from_bytes(damaged)
    assert (CLIENT_RAISED, CLIENT_CRASHED) == (
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        ErrorCode.CLIENT_APP_CRASHED,
    )


def test_a_state_counts_only_once_committed() -> None:
    files = StateFiles()
    try:
        files.write(1, b"first")
        with open(files.new_path(1), "wb") as half:  # noqa: PTH123
            half.write(b"half")
        assert files.read(1) == b"first"
        files.write(1, b"second")
        assert files.read(1) == b"second"
        assert files.read(2) == b""
        files.clear()
        assert files.path(1) is None
    finally:
        files.close()


@pytest.mark.parametrize("name", ["_chunks", "_object_id"])
def test_copies_leave_flowers_caches_behind(name: str) -> None:
    array = Array(np.ones(3))
    assert array.object_id
    assert array.slice_array()
    assert name in vars(array)
    records = copy_records(RecordDict({"arrays": ArrayRecord({"a": array})}))
    assert name not in vars(records.array_records["arrays"]["a"])
