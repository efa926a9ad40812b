"""States in files: read as they were written, what many hold alike once, and nothing left over."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedcompress.block import Block, block_layout, share
from fedcompress.dense import block_record, whole_block
from simulations.engines.flower_internals import records_to_bytes
from simulations.engines.packed_state import StateFolder
from simulations.engines.state_files import StateFiles

LAYOUT = block_layout(np.dtype(np.float32), ("w", "b"), ((30, 20), (20,)))


def block(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(620).astype(np.float32)


def state(own: np.ndarray, alike: np.ndarray) -> RecordDict:
    return RecordDict(
        {
            "alike": block_record(LAYOUT, alike),
            "config": ConfigRecord({"round": 3, "raw": b"\0\1", "names": ["a"]}),
            "own": block_record(LAYOUT, own),
            "plain": ArrayRecord({"x": Array(np.arange(5)), "": Array(np.array(2.0))}),
            "metrics": MetricRecord({"loss": 0.5}),
        }
    )


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = state(block(1), block(2))
    folder, path = StateFolder(), str(tmp_path / "1")
    assert folder.write(path, written) == []
    for reader in (folder, StateFolder()):
        read = reader.read(path)
        assert read == written
        assert list(read) == list(written)
        assert reader.read_bytes(path) == records_to_bytes(written)
        for key in ("alike", "own"):
            whole = whole_block(read.array_records[key])
            assert whole is not None
            assert whole[0].ctypes.data % 4 == 0
    assert folder.write(path, RecordDict()) == []
    assert folder.read(path) == RecordDict()


LARGE = block_layout(np.dtype(np.float32), ("w", "b"), ((300, 200), (20,)))


def large_state(seed: int, server_round: int) -> RecordDict:
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.standard_normal(60_020).astype(np.float32) for _ in range(2))
    return RecordDict(
        {
            "fedcompress": ConfigRecord({"round": server_round}),
            "fedcompress.state": block_record(LARGE, ours),
            "theirs": block_record(LARGE, theirs),
        }
    )


def test_states_that_are_written_over_are_read_where_they_lie(tmp_path: Path) -> None:
    """By those that wrote them and those that did not; what an app may keep is its own."""
    path = str(tmp_path / "1")
    folders = [StateFolder() for _ in range(3)]
    held: list[tuple[RecordDict, RecordDict]] = []
    for turn, server_round in enumerate((8, 9, 10, 11, 1000)):
        written = large_state(turn, server_round)
        folders[turn % 2].write(path, written)
        for folder in folders:
            read = folder.read(path)
            assert read == written
            assert folder.read_bytes(path) == records_to_bytes(written)
            held.append((read, written))
    for read, written in held:
        assert read["theirs"] == written["theirs"]
    size = Path(path).stat().st_size
    folders[0].write(path, large_state(7, 10**9))
    assert Path(path).stat().st_size == size
    folders[1].write(path, state(block(1), block(2)))
    assert folders[0].read(path) == state(block(1), block(2))


def test_bytes_that_others_wrote_are_read(tmp_path: Path) -> None:
    written = state(block(1), block(2))
    path = tmp_path / "1"
    for some in (written, RecordDict()):
        path.write_bytes(records_to_bytes(some))
        assert StateFolder().read(str(path)) == some
        assert StateFolder().read_bytes(str(path)) == records_to_bytes(some)


def test_what_clients_hold_alike_lies_there_once(tmp_path: Path) -> None:
    alike = block(0)
    share(alike, "alike")
    folder = StateFolder()
    names = [folder.write(str(tmp_path / str(i)), state(block(i), alike)) for i in range(1, 6)]
    assert len({tuple(name) for name in names}) == 1
    assert sorted(x.name for x in tmp_path.iterdir()) == ["1", "2", "3", "4", "5", *names[0]]
    other = StateFolder()
    held = []
    for i in range(1, 6):
        assert folder.read(str(tmp_path / str(i))) == state(block(i), alike)
        whole = whole_block(other.read(str(tmp_path / str(i))).array_records["alike"])
        assert whole is not None
        held.append(whole[0])
    assert all(flat is held[0] for flat in held)
    # Written on by the one that has read it, it is the same file.
    assert other.write(str(tmp_path / "6"), state(block(6), held[0])) == names[0]
    del alike, held, whole
    gc.collect()
    assert StateFolder().read(str(tmp_path / "2")) == state(block(2), block(0))


def test_shared_files_go_with_the_last_state_that_needs_them() -> None:
    files, folder = StateFiles(), StateFolder()
    kept = [block(100 + version) for version in range(6)]
    for version, flat in enumerate(kept):
        share(flat, str(version))
    rng = np.random.default_rng(0)
    held: dict[int, int] = {}
    try:
        for version, flat in enumerate(kept):
            for node_id in rng.choice(12, 5, replace=False).tolist():
                path = files.new_path(node_id)
                names = folder.write(path, state(block(node_id), flat))
                if rng.random() < 0.8:  # else the answer never came
                    files.commit(node_id, path, names)
                    held[node_id] = version
            files.end_round()
            for node_id, of in held.items():
                expected = state(block(node_id), kept[of])
                assert files.read(node_id) == records_to_bytes(expected)
            in_use = len(set(held.values()))
            there = list(files._memory.glob("shared-*"))
            assert in_use <= len(there) <= in_use + version + 1
        if files._memory != files._disk:
            uncommitted = {x for x in there if str(x) not in files._holders}
            stored = [x for x in files._memory.iterdir() if x not in uncommitted]
            assert files.memory_bytes == sum(x.stat().st_size for x in stored)
        files.clear()
        assert not files._holders
        assert files.memory_bytes == 0
    finally:
        files.close()


def test_a_folder_that_is_full_leaves_no_half_of_a_shared_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations.engines import packed_state

    alike = block(0)
    share(alike, "alike")

    def full(path: str, data: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_state, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        StateFolder().write(str(tmp_path / "1"), state(block(1), alike))
    assert list(tmp_path.iterdir()) == []


def test_a_block_is_a_mapping_of_its_arrays() -> None:
    flat = block(3)
    flat.flags.writeable = False
    assert Block(LAYOUT, flat)["w"].shape == (30, 20)
