"""Files that are mapped hold what was written last, by whomever."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from simulations.engines.mapped_files import MappedFiles

SIZE = 100_000


def content(seed: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "1"
    file.write_bytes(content(0))
    return str(file)


def test_what_is_written_over_is_read_by_all(path: str) -> None:
    files, others = MappedFiles(1 << 30), MappedFiles(1 << 30)
    for turn in range(1, 5):
        writer = files if turn % 2 else others
        whole = content(turn)
        assert writer.write(path, [whole[:8], whole[8:70], whole[70:]])
        assert Path(path).read_bytes() == whole
        for reader in (files, others)[: 1 if turn == 1 else 2]:
            read = reader.read(path)
            assert read is not None
            assert read.tobytes() == whole


def test_only_a_file_of_that_size_is_written_over(path: str, tmp_path: Path) -> None:
    files = MappedFiles(1 << 30)
    assert not files.write(path, [content(1, SIZE + 1)])
    assert not files.write(str(tmp_path / "new"), [content(1)])
    assert files.read(path) is None
    small = tmp_path / "small"
    small.write_bytes(b"few")
    assert not files.write(str(small), [b"new"])
    assert Path(path).read_bytes() == content(0)
    assert small.read_bytes() == b"few"


def test_a_file_that_changed_is_not_read_from_its_old_pages(path: str) -> None:
    for change in ("shorter", "longer", "another", "gone"):
        Path(path).write_bytes(content(0))
        files = MappedFiles(1 << 30)
        assert files.write(path, [content(1)])
        held = files.read(path)
        assert held is not None
        if change == "shorter":
            os.truncate(path, SIZE - 5000)
        elif change == "longer":
            os.truncate(path, SIZE + 5000)
        else:
            Path(path).unlink()
            if change == "another":
                Path(path).write_bytes(content(2))
        assert files.read(path) is None
        assert not files.write(path, [content(3, SIZE + 1)])
        # In its new size it can be mapped anew.
        if change == "another":
            assert held.tobytes() == content(1)
            assert files.write(path, [content(4)])
            assert Path(path).read_bytes() == content(4)


def test_no_more_is_mapped_than_was_said(tmp_path: Path) -> None:
    files = MappedFiles(3 * SIZE)
    paths = [str(tmp_path / str(i)) for i in range(5)]
    for i, path in enumerate(paths):
        Path(path).write_bytes(content(i))
        assert files.write(path, [content(i + 10)])
    assert [files.read(path) is not None for path in paths] == [False, False, True, True, True]
    assert files.read(paths[2]) is not None
    assert files.write(paths[0], [content(20)])  # the one that was used last but two goes
    assert [files.read(path) is not None for path in paths] == [True, False, True, False, True]
