"""Sums that workers write into shared memory are read as written, or go by the socket."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from fedcompress import Compressed, rng_for
from simulations.engines import RayGrid, shared_sums
from simulations.engines.shared_sums import SumsFile, SumsFiles
from simulations.engines.state_files import MEMORY

pytestmark = pytest.mark.skipif(not MEMORY.is_dir(), reason=f"{MEMORY}: no memory for files here")


def content(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


@pytest.fixture
def files() -> Iterator[SumsFiles]:
    files = SumsFiles()
    files.open()
    try:
        yield files
    finally:
        files.close()
        files.close()


def test_what_was_written_in_a_round_is_read_whole(files: SumsFiles) -> None:
    ours = SumsFile(files.folder)
    for number in range(3):
        ours.restart()
        written = []
        for turn in range(6):  # the file grows meanwhile
            pieces = [content(turn, 1 + 7000 * turn), b"", content(number, 5000 << number)]
            places = ours.write(pieces)
            assert places is not None
            written.append((pieces, places))
            read = files.read(0, ours.name, places)
            assert [bytes(x) for x in read] == pieces
        for pieces, places in written:  # none over another of its round
            assert [bytes(x) for x in files.read(0, ours.name, places)] == pieces
    ours.close()


def test_what_has_no_room_is_not_written(files: SumsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sums, "_MOST_BYTES", 10_000)
    ours = SumsFile(files.folder)
    assert ours.write([content(0, 6000)]) == [[0, 6000]]
    assert ours.write([content(1, 6000)]) is None
    assert ours.write([content(2, 500)]) is not None
    ours.restart()
    assert ours.write([content(3, 10_000)]) == [[0, 10_000]]
    assert SumsFile(f"{files.folder}-gone").write([b"any"]) is None


def test_the_file_of_a_process_that_died_goes_when_another_writes(files: SumsFiles) -> None:
    ours = SumsFile(files.folder)
    places = ours.write([b"first"])
    assert places is not None
    files.read(3, ours.name, places)
    another = SumsFile(files.folder)
    another.name = "another"
    places = another.write([b"second"])
    assert places is not None
    assert [bytes(x) for x in files.read(3, another.name, places)] == [b"second"]
    assert sorted(x.name for x in Path(files.folder).iterdir()) == ["another", "lock"]


def test_the_folder_goes_with_the_driver() -> None:
    files = SumsFiles()
    assert files.folder == ""
    files.open()
    folder = Path(files.folder)
    SumsFile(files.folder).write([b"any"])
    files.open()
    assert files.folder == str(folder)
    files.close()
    assert not folder.exists()
    assert files.folder == ""


def test_sums_by_memory_and_by_socket_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    by_file = SumsFiles.read

    def noted(self: SumsFiles, worker: int, name: str, places: list[list[int]]) -> list[memoryview]:
        read.append(name)
        return by_file(self, worker, name, places)

    monkeypatch.setattr(SumsFiles, "read", noted)
    by_memory = means()
    assert read
    read.clear()
    monkeypatch.setattr(SumsFiles, "open", lambda _: None)  # as where there is no such memory
    assert means() == by_memory
    assert not read


def means() -> list[bytes]:
    """Give the models of some rounds."""
    arrays = ArrayRecord({"w": Array(rng_for(1).standard_normal((30, 20)).astype(np.float32))})
    found = []
    strategy = Compressed(FedAvg(fraction_evaluate=0.0), uplink="raw()")
    with RayGrid("summing_client:app", 40, workers=2, use_ray=False) as grid:
        for number in (1, 2, 3):
            random.seed(number)
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(list(messages))
            mean, _ = strategy.aggregate_train(number, replies)
            assert mean is not None
            arrays = mean
            found.append(mean["w"].data)
    return found
