"""The engines' parts: ranges, frames, packing, and what is used of Flower's internals."""

from __future__ import annotations

import errno
import json
import random
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.aggregation import block_size
from fedcompress.dense import dense_record, whole_block
from fedcompress.errors import ConfigError, FedcompressError
from fedcompress.flower_adapter import metadata_of, metadata_values
from simulations.engines.channel import Channel, Frame, Part
from simulations.engines.flower_internals import (
    CLIENT_CRASHED,
    CLIENT_RAISED,
    copy_records,
    records_from_bytes,
    records_to_bytes,
)
from simulations.engines.packing import (
    MIN_SHARED_BYTES,
    Packer,
    SharedContents,
    Unpacker,
)
from simulations.engines.schedule import FIRST_SHARE, CostModel, RangeQueue
from simulations.engines.shared_model import SharedModel, read_arrays
from simulations.engines.state_files import StateFiles
from simulations.engines.whole_files import write_file


@given(
    costs=st.lists(st.floats(min_value=1e-6, max_value=100), min_size=1, max_size=200),
    workers=st.integers(0, 16),
    turns=st.randoms(use_true_random=False),
    apart=st.sampled_from([None, 0.0, 1.0]),
)
def test_every_client_is_taken_once_in_whole_blocks(
    costs: list[float], workers: int, turns: random.Random, apart: float | None
) -> None:
    size = block_size(len(costs))
    queue = RangeQueue(costs, size, range(workers), FIRST_SHARE, apart=apart)
    taken: list[int] = []
    while queue:
        chunk = queue.take(turns.randrange(workers + 1))
        blocks = [range(first, min(first + size, len(costs))) for first in chunk[::size]]
        assert chunk == [position for block in blocks for position in block]
        assert all(block.start % size == 0 for block in blocks)
        assert queue.are_whole_blocks(chunk)
        assert apart is not None or chunk == list(range(chunk[0], chunk[-1] + 1))
        taken += chunk
    assert sorted(taken) == list(range(len(costs)))
    assert queue.take(0) == []


def test_blocks_of_a_dead_worker_run_again_each_by_itself() -> None:
    queue = RangeQueue([1.0] * 100, 4, [0], 1.0)
    lost = queue.take(0)[2:]
    assert not queue
    queue.put_back(lost)
    assert queue.take(0) == [2, 3]
    assert queue.take(1) == [4, 5, 6, 7]
    queue.put_back_alone([0, 1])
    while (chunk := queue.take(0)) != [0]:
        assert len(chunk) == 4
    assert queue.take(0) == [1]


def test_ranges_are_balanced_and_idle_workers_take_from_the_longest() -> None:
    costs = [5.0] * 10 + [1.0] * 50
    queue = RangeQueue(costs, 1, [0, 1], 0.8)
    assert queue.take(0) == list(range(8))
    assert queue.take(1) == list(range(10, 50))
    assert queue.take(0) == [8]
    assert queue.take(0) == [9]
    assert queue.take(0) == [59]
    assert queue.take(1) == [50]
    assert queue.take(2) == [58]


@given(
    costs=st.lists(st.floats(min_value=1e-3, max_value=100), min_size=2, max_size=60),
    workers=st.integers(2, 4),
    apart=st.sampled_from([0.0, 0.1, 1e9]),
)
def test_blocks_leave_their_neighbours_only_where_that_balances(
    costs: list[float], workers: int, apart: float
) -> None:
    def largest(apart: float | None) -> float:
        queue = RangeQueue(costs, 1, range(workers), 1.0, apart=apart)
        shares = [queue.take(worker) for worker in range(workers) if queue]
        return max(sum(costs[position] for position in share) for share in shares)

    neighbours, found = largest(None), largest(apart)
    assert found <= neighbours * (1 + 1e-12)
    assert apart < 1e9 or found == neighbours


def test_two_shares_of_neighbours_that_differ_change_blocks() -> None:
    costs = [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0]
    assert RangeQueue(costs, 1, [0, 1], 1.0).take(0) == [0, 1, 2]
    queue = RangeQueue(costs, 1, [0, 1], 1.0, apart=0.1)
    first, second = queue.take(0), queue.take(1)
    assert sum(costs[position] for position in first) == 8
    assert sorted(first + second) == list(range(7))
    # A sum more would cost all that is won.
    assert RangeQueue(costs, 1, [0, 1], 1.0, apart=1.0).take(0) == [0, 1, 2]


def test_what_is_hardly_any_work_is_not_sent_by_itself() -> None:
    queue = RangeQueue([1.0] * 20, 1, [0, 1], 0.8, least=2.5)
    assert queue.take(0) == list(range(10))
    assert queue.take(1) == list(range(10, 20))
    assert not queue


def test_block_size_grows_with_the_number_of_messages() -> None:
    sizes = [block_size(count) for count in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1


def test_costs_are_a_line_over_the_sizes_or_those_of_the_last_call() -> None:
    model = CostModel()
    assert model.costs([1, 2, 3], {}) == [1.0, 1.0, 1.0]
    assert not model.knows
    model.add(3, 0.5)
    assert model.knows
    model.add(1, 1.5)
    assert model.costs([3, 2], {3: 0.5, 1: 1.5}) == [0.5, 1.5]
    model.clear(lambda node_id: 10.0 * node_id)
    assert model.costs([1, 2], {}) == pytest.approx([11.0, 21.0])
    for node_id in (9, 1, 2, 3):
        model.add(node_id, 0.25 + 0.1 * node_id)
    assert model.costs([10, 1], {}) == pytest.approx([1.25, 0.35])


def test_first_calls_of_workers_and_calls_of_long_ago_say_little_of_costs() -> None:
    model = CostModel()
    model.clear(float)
    for worker in (0, 1):  # they load their programs
        model.add(10, 500.0, worker)
    assert model.costs([10], {}) == pytest.approx([500.0])
    for node_id in (1, 5, 9):
        model.add(node_id, 1.0 + 2.0 * node_id, worker=0)
    assert model.costs([20, 3], {}) == pytest.approx([41.0, 7.0])
    model.add(4, 500.0, worker=2)
    assert model.costs([20, 3], {}) == pytest.approx([41.0, 7.0])
    for node_id in [1, 5, 9] * 300:  # the machine has become slower
        model.add(node_id, 2.0 + 3.0 * node_id, worker=1)
    assert model.costs([20, 3], {}) == pytest.approx([62.0, 11.0], rel=1e-2)


def some_records() -> RecordDict:
    arrays = ArrayRecord(
        {"large": Array(np.arange(4 * MIN_SHARED_BYTES)), "one": Array(np.ones(1))}
    )
    arrays["payload"] = Array("uint8", (0,), "fedcompress.v1", b"")
    metrics = MetricRecord({"loss": 0.5, "counts": [1, 2], "none": []})
    config = ConfigRecord({"text": "a", "flag": True, "data": b"\x00", "names": ["a", "b"]})
    return RecordDict({"arrays": arrays, "metrics": metrics, "config": config, "no": ArrayRecord()})


def test_packing_is_exact_and_shares_what_is_shared() -> None:
    first, second, third = some_records(), RecordDict(), RecordDict()
    second["again"] = ArrayRecord({"large": first.array_records["arrays"]["large"]})
    third["config"] = first["config"]
    contents = [first, second, third, first]
    shared = SharedContents(contents)
    assert shared.buffers == [first.array_records["arrays"]["large"].data]
    packer = Packer(shared)
    told = Unpacker(views(packer.finish(shared.pack(packer))))
    told.take_shared(told.value, shared.buffers)
    packer = Packer(shared)
    frame = views(packer.finish([packer.content(content) for content in contents]))
    assert sum(map(len, frame)) < 200
    unpacker = Unpacker(frame).shared_with(told)
    unpacked = [unpacker.content(packed) for packed in unpacker.value]
    assert unpacked == contents
    assert [list(content) for content in unpacked] == [list(content) for content in contents]
    assert unpacked[3] is unpacked[0]
    assert unpacked[2]["config"] is unpacked[0]["config"]


def test_blocks_are_packed_as_they_lie_and_may_be_written_to_where_they_come() -> None:
    values = {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "b": np.ones(7, np.float32)}
    shared_record, other = dense_record(values), dense_record({"w": values["w"] * 2})
    contents = [RecordDict({"model": shared_record}), RecordDict({"model": shared_record})]
    contents += [RecordDict({"model": other})]
    shared = SharedContents(contents)
    assert [bytes(x) for x in shared.buffers] == [shared_block(shared_record).tobytes()]
    assert shared.blocks == [0]
    packer = Packer(shared)
    told = Unpacker(views(packer.finish(shared.pack(packer))))
    told.take_shared(told.value, [np.frombuffer(shared.buffers[0], np.uint8).copy()])
    packer = Packer(shared)
    frame = views(packer.finish([packer.content(content) for content in contents]))
    unpacker = Unpacker(frame).shared_with(told)
    first, second, third = [unpacker.content(packed) for packed in unpacker.value]
    assert [first, second, third] == contents
    assert shared_block(first["model"]) is shared_block(second["model"])
    for content in (first, third):  # compiled code takes no arrays that must not be written to
        assert shared_block(content["model"]).flags.writeable
        assert shared_block(content["model"]).flags.aligned


def shared_block(record: ArrayRecord) -> np.ndarray:
    whole = whole_block(record)
    assert whole is not None
    return whole[0]


@given(st.lists(st.one_of(st.binary(), st.floats(), st.integers(), st.text(), st.booleans())))
def test_every_value_is_packed_exactly(values: list[bytes | float | str]) -> None:
    records = some_records()
    for number, value in enumerate(values):
        records[f"{number}"] = ConfigRecord({"part": value, "": [value, value]})
    packer = Packer()
    unpacker = Unpacker(views(packer.finish(packer.content(records))))
    assert unpacker.content(unpacker.value) == records or "nan" in repr(records)
    assert repr(unpacker.content(unpacker.value)) == repr(records)
    metadata = Metadata(1, "a", 2, 3, "b", "c", 1.1, 2.2, "train", None, 4)
    said = json.loads(json.dumps(metadata_values(metadata)))
    assert vars(metadata_of(said)) == vars(metadata)


def views(parts: list[Part]) -> list[memoryview]:
    return [memoryview(part) for part in parts]


@given(st.lists(st.lists(st.binary(max_size=300), max_size=6), max_size=10), st.integers(1, 50))
def test_frames_arrive_as_they_were_sent(sent: list[list[bytes]], kind: int) -> None:
    here, there = socket.socketpair()
    writer, reader = Channel(here, blocking=True), Channel(there, blocking=False)
    for parts in sent:
        writer.send(kind, parts)
    received, alive = reader.read() if sent else ([], True)
    assert alive
    assert [(frame.kind, [bytes(part) for part in frame.parts]) for frame in received] == [
        (kind, parts) for parts in sent
    ]
    writer.close()
    assert reader.read() == ([], False)
    reader.close()


def test_two_ends_that_send_more_than_fits_do_not_wait_for_each_other() -> None:
    here, there = socket.socketpair()
    driver, worker = Channel(here, blocking=False), Channel(there, blocking=True)
    large = [bytes([n]) * 3_000_000 for n in range(4)]
    assert not driver.send(1, large)
    answering = threading.Thread(target=lambda: worker.send(2, worker.receive().parts))
    answering.start()
    received: list[Frame] = []
    while not received:
        driver.flush()
        received += driver.read()[0]
    answering.join()
    assert [bytes(part) for part in received[0].parts] == large
    for end in (driver, worker):
        end.close()


def test_a_rounds_arrays_lie_on_disk_where_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SharedModel()
    arrays = [b"first" * 1000, b"", b"last"]
    lengths = [len(array) for array in arrays]
    try:
        one, other = model.write(arrays), model.write(arrays[::-1])
        assert read_arrays(one, lengths) == arrays
        read = read_arrays(one, lengths, blocks=range(len(lengths)))
        assert [bytes(x) for x in read] == arrays
        assert all(isinstance(x, np.ndarray) and x.flags.writeable for x in read)
        assert read_arrays(other, lengths[::-1]) == arrays[::-1]
        with pytest.raises(OSError, match="shorter"):
            read_arrays(one, [6000])
    finally:
        model.close()
    assert not Path(one).exists()
    if Path("/dev/full").exists():
        memory = tmp_path / "memory"
        memory.mkdir()
        monkeypatch.setattr("simulations.engines.shared_model.MEMORY", memory)
        model.write([b""])
        for generation in ("0", "1"):
            (next(memory.glob("*")) / generation).unlink(missing_ok=True)
            (next(memory.glob("*")) / generation).symlink_to("/dev/full")
        try:
            path = model.write(arrays)
            assert memory not in Path(path).parents
            assert read_arrays(path, lengths) == arrays
        finally:
            model.close()


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


def written(files: StateFiles, node_id: int, state: bytes) -> str:
    path = files.new_path(node_id)
    write_file(path, state)
    files.commit(node_id, path)
    return path


@pytest.mark.parametrize("lengths", [[], [0], [5], [3, 0, 4], [1] * 2500, [70_000, 1, 300_000]])
def test_files_are_written_in_pieces(tmp_path: Path, lengths: list[int]) -> None:
    rng = np.random.default_rng(1)
    pieces = [rng.bytes(length) for length in lengths]
    path = tmp_path / "state"
    path.write_bytes(b"longer than what comes now" * 20_000)
    write_file(str(path), pieces)
    assert path.read_bytes() == b"".join(pieces)


def folder_bytes(*folders: Path) -> int:
    return sum(p.stat().st_size for folder in folders for p in folder.iterdir())


def test_files_of_replaced_states_are_written_over_when_the_round_is_over() -> None:
    rng = np.random.default_rng(0)
    files = StateFiles()
    try:
        held: dict[int, bytes] = {}
        for _ in range(30):
            names = set()
            for node_id in rng.choice(40, 10, replace=False).tolist():
                reading = files.path(node_id)
                before = held.get(node_id, b"")
                if rng.random() < 0.2:
                    names.add(files.new_path(node_id))  # the call failed, or changed nothing
                    if rng.random() < 0.5:
                        write_file(files.new_path(node_id), b"half")
                    continue
                held[node_id] = rng.bytes(int(rng.integers(0, 9_000)))
                names.add(written(files, node_id, held[node_id]))
                # Another call of the round may still read what it replaces.
                assert reading is None or Path(reading).read_bytes() == before
            assert len(names) == 10
            files.end_round()
            assert {node_id: files.read(node_id) for node_id in held} == held
        # What lies there is the states, and at most what a round replaced.
        assert (
            folder_bytes(*{files._memory, files._disk}) <= sum(map(len, held.values())) + 10 * 9_000
        )
        assert len(list(files._memory.iterdir())) <= len(held) + 10 + 1
        files.clear()
        assert folder_bytes(*{files._memory, files._disk}) == 0
    finally:
        files.close()


@pytest.mark.parametrize("limit", [0, 25_000, 10**9])
def test_states_past_the_limit_lie_on_the_disk(limit: int) -> None:
    files = StateFiles(limit)
    if files._memory == files._disk:
        pytest.skip("no file system in memory here")
    try:
        for number in range(4):
            for node_id in range(20):
                # Beside the first state, whose size nobody could know.
                written(files, node_id, bytes([number]) * 2_000)
                assert files.memory_bytes <= max(limit, 2_000)
            files.end_round()
        assert all(files.read(node_id) == b"\3" * 2_000 for node_id in range(20))
        on_disk = sum(str(files.path(n)).startswith(str(files._disk)) for n in range(20))
        assert (on_disk == 0) == (limit == 10**9)
        assert files.memory_bytes == folder_bytes(files._memory)
    finally:
        files.close()
    with pytest.raises(ConfigError, match="state_bytes: must be at least 0, got -1"):
        StateFiles(-1)


def test_a_full_memory_sends_states_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    files = StateFiles()

    def full(path: str, data: bytes) -> None:
        if path.startswith(str(files._memory)) and files._memory != files._disk:
            raise OSError(errno.ENOSPC, "no space left")
        write_file(path, data)

    monkeypatch.setattr("simulations.engines.state_files.write_file", full)
    try:
        files.write(1, b"one")
        files.write(1, b"two")
        files.end_round()
        assert files.read(1) == b"two"
        assert files.memory_bytes in (0, 3)
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
