"""The archive: exact, small, and suspicious of what it reads."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from fedcompress import parse, rng_for
from fedcompress.errors import LayoutError, PayloadError
from fedcompress.wire import read_varint, write_varint
from simulations.export.archive import (
    MAGIC,
    MOST_RATIO,
    Head,
    archive_bytes,
    load_archive,
    model_of,
    read_archive,
    read_bytes,
    write_archive,
)
from simulations.export.levels import KINDS, round_weights, stored_arrays
from simulations.models import build_model

DATA = {"name": "digits", "task": "image", "shape": [1, 8, 8], "num_classes": 10}
MODEL = {"name": "lenet", "hidden": [], "width": 0.5}
LENGTH_AT = len(MAGIC) + 5
CODEBOOK = 'codebook(16, zero="yes") | entropy()'


def small_model(name: str = "lenet") -> torch.nn.Module:
    return build_model(name, (1, 8, 8), 10, seed=0, hidden=(), width=0.5).eval()


def head(spec: str = CODEBOOK, name: str = "lenet") -> Head:
    return Head(model=MODEL | {"name": name}, data=DATA, spec=spec)


@pytest.mark.parametrize("name", ["lenet", "resnet"])
@pytest.mark.parametrize("spec", ["lossless()", CODEBOOK, "quantize(4) | entropy()"])
def test_what_is_loaded_is_what_the_compressor_decodes(
    name: str, spec: str, tmp_path: Path
) -> None:
    state = small_model(name).state_dict()
    compressor = parse(spec)
    payload, _ = compressor.encode(state, {}, rng_for(0, purpose="archive"))
    wanted = compressor.decode(payload, state)
    size = write_archive(state, head(spec, name), tmp_path / "a.fca")
    loaded = load_archive(tmp_path / "a.fca").state_dict()
    assert size == (tmp_path / "a.fca").stat().st_size
    assert loaded.keys() == wanted.keys()
    for key, value in loaded.items():
        assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_levels_come_back_as_weights(kind: str, tmp_path: Path) -> None:
    model = small_model()
    write_archive(stored_arrays(model, kind), head("lossless()"), tmp_path / "a.fca")
    arrays, _ = read_archive(tmp_path / "a.fca")
    wanted = round_weights(model, kind).state_dict()
    assert all(torch.equal(arrays[key], value) for key, value in wanted.items())


def test_the_same_model_gives_the_same_bytes() -> None:
    state = small_model().state_dict()
    assert archive_bytes(state, head()) == archive_bytes(state, head())


def test_every_beginning_of_a_file_is_refused() -> None:
    content = archive_bytes(small_model().state_dict(), head())
    _, start = read_varint(memoryview(content), LENGTH_AT)
    places = {*range(start + 40), *range(0, len(content), 97), len(content) - 1}
    tracemalloc.start()
    try:
        for end in sorted(places):
            with pytest.raises(PayloadError):
                read_bytes(content[:end])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def with_head(content: bytes, change: dict[str, object]) -> bytes:
    """Say something else in the head of an archive, its checksum right."""
    length, start = read_varint(memoryview(content), LENGTH_AT)
    told = json.loads(zstandard.decompress(content[start : start + length])) | change
    packed = zstandard.compress(json.dumps(told).encode())
    checksum = zlib.crc32(packed).to_bytes(4, "little")
    before = content[: len(MAGIC) + 1] + checksum + write_varint(len(packed))
    return before + packed + content[start + length :]


HUGE = [["x", "float32", [1 << 38]]]
FALSE_HEADS: list[dict[str, object]] = [
    {"arrays": HUGE},
    {"arrays": [["x", "float32", [0, 1 << 39, 1 << 39, 1 << 39]]]},
    {"arrays": [["x", "float32", [-1]]]},
    {"arrays": [["x", "float99", [3]]]},
    {"arrays": [["x", "float32", [True]]]},
    {"arrays": [["x", "float32", [3]], ["x", "float32", [3]]]},
    {"arrays": []},
    {"arrays": {}},
    {"spec": "my_own_stage(3) | entropy()"},
    {"spec": "quantize(4) | entropy()"},
    {"spec": 7},
    {"spec": "__import__('os')"},
    {"model": {"name": "lenet", "hidden": [], "width": "wide"}},
    {"model": {"name": "nothing", "hidden": [], "width": 1.0}},
    {"model": {"name": "mlp", "hidden": [1 << 60], "width": 1.0}},
    {"model": {"name": "lenet", "hidden": [], "width": 1e300}},
    {"model": []},
    {"data": {}},
    {"data": {"shape": [1, 8], "num_classes": 10}},
    {"data": {"shape": [1, 1 << 40, 1 << 40], "num_classes": 10}},
    {"data": {"shape": [1, 8, 8], "num_classes": 11}},
]


@pytest.mark.parametrize("change", FALSE_HEADS, ids=str)
def test_a_head_that_lies_is_refused(change: dict[str, object]) -> None:
    content = archive_bytes(small_model().state_dict(), head())
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            model_of(*read_bytes(with_head(content, change)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_RATIO * len(content)


def test_a_head_may_say_more_and_come_from_another_version() -> None:
    content = archive_bytes(small_model().state_dict(), head())
    later = with_head(content, {"versions": {"fedcompress": "99"}, "notes": ["of a later version"]})
    wanted, _ = read_bytes(content)
    arrays, told = read_bytes(later)
    assert told.versions == {"fedcompress": "99"}
    assert all(torch.equal(arrays[key], value) for key, value in wanted.items())


def test_another_version_of_the_format_is_refused() -> None:
    content = bytearray(archive_bytes(small_model().state_dict(), head()))
    content[len(MAGIC)] = 2
    with pytest.raises(PayloadError, match="install a later fedcompress"):
        read_bytes(bytes(content))


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    zeros = {"w": torch.zeros(2000, 2000)}
    with pytest.raises(LayoutError, match="would not be read"):
        write_archive(zeros, head(), tmp_path / "a.fca")
    many = {f"{'name' * 100}{i}": torch.zeros(1) for i in range(200)}
    with pytest.raises(LayoutError, match="too many arrays"):
        write_archive(many, replace(head(), spec="lossless()"), tmp_path / "a.fca")
    assert list(tmp_path.iterdir()) == []


def test_damage_anywhere_is_found() -> None:
    content = archive_bytes(small_model().state_dict(), head())
    draw = np.random.default_rng(0)
    for place in {*range(60), *draw.integers(0, len(content), 200).tolist()}:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        with pytest.raises(PayloadError):
            read_bytes(bytes(damaged))
