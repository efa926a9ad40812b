"""Payloads of wire version 1 never change, and decode to the same numbers for ever."""

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


@pytest.mark.parametrize("name", golden.SPECS)
def test_golden_bytes_decode(name: str) -> None:
    compressor = parse(golden.SPECS[name])
    update = golden.update()
    decoded = compressor.decode((golden.FOLDER / f"{name}.bin").read_bytes(), update)
    with np.load(golden.FOLDER / f"{name}.npz") as expected:
        assert set(expected) == set(update)
        for key, x in decoded.items():
            np.testing.assert_array_equal(x.numpy(), expected[key])
    if golden.SPECS[name] in ("raw()", "lossless()", "entropy()"):
        assert all(torch.equal(decoded[key], x) for key, x in update.items())


def test_every_golden_file_has_its_spec() -> None:
    assert {path.stem for path in golden.FOLDER.glob("*.bin")} == set(golden.SPECS)
