"""Payloads of a wire version never change, and those of all versions decode for ever."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcompress import parse

_spec = importlib.util.spec_from_file_location("golden", Path(__file__).parent / "golden.py")
assert _spec is not None
assert _spec.loader is not None
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


@pytest.mark.parametrize("name", golden.SPECS)
def test_the_encoder_still_writes_the_golden_bytes(name: str) -> None:
    assert golden.payload_of(golden.SPECS[name]) == (golden.FOLDER / f"{name}.bin").read_bytes()


@pytest.mark.parametrize(
    ("version", "name"),
    [(1, name) for name in golden.SPECS_V1] + [(2, name) for name in golden.SPECS],
)
def test_golden_bytes_decode(version: int, name: str) -> None:
    folder = golden.FOLDERS[version]
    compressor = parse(golden.SPECS[name])
    update = golden.update()
    payload = (folder / f"{name}.bin").read_bytes()
    assert payload[2] == version
    decoded = compressor.decode(payload, update)
    with np.load(folder / f"{name}.npz") as expected:
        assert set(expected) == set(update)
        for key, x in decoded.items():
            np.testing.assert_array_equal(x.numpy(), expected[key])
    if golden.SPECS[name] in ("raw()", "lossless()", "entropy()"):
        assert all(torch.equal(decoded[key], x) for key, x in update.items())


def test_every_golden_file_has_its_spec() -> None:
    for version, specs in ((1, golden.SPECS_V1), (2, golden.SPECS)):
        assert {path.stem for path in golden.FOLDERS[version].glob("*.bin")} == set(specs)
