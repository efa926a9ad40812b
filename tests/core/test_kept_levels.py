"""Selecting and rounding in one call gives what one after the other gives, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.stage import Stage
from fedcompress.stages.top_k import TopK

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "heavy": lambda x: x,
    "many equal": np.round,
    "zeros": lambda x: x * 0,
    "constant": lambda x: x * 0 - 3,
    "denormal": lambda x: x * np.float32(1e-42),
    "huge": lambda x: np.clip(x, -1, 1) * np.float32(3e38),
    "few large among equal": lambda x: np.where(np.arange(x.size) % 997 == 0, x * 100, x * 0 + 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spec",
    [
        "top_k(0.01) | quantize(4)",
        "top_k(0.5) | quantize(16)",
        "top_k(1) | quantize(2, rounding='nearest')",
        "top_k(0.1) | quantize(8, rounding='nearest')",
    ],
)
def test_payloads_are_equal(monkeypatch: pytest.MonkeyPatch, spec: str, kind: str) -> None:
    compressor = parse(spec)
    draw = rng_for(3)
    sizes = [(1,), (10,), (17,), (40, 25), (8192,), (8193,), (150, 700)]
    update = {
        str(size): torch.from_numpy(
            np.asarray(KINDS[kind](draw.standard_t(3, size=int(np.prod(size))).astype(np.float32)))
            .astype(np.float32)
            .reshape(size)
        )
        for size in sizes
    }
    update["turned"] = update["(40, 25)"].T
    rng = rng_for(1)
    at_once = compressor.encode_and_decode(update, {}, rng)
    monkeypatch.setattr(TopK, "encode_through", Stage.encode_through)
    other_rng = rng_for(1)
    in_turn = compressor.encode_and_decode(update, {}, other_rng)
    assert at_once[0] == in_turn[0]
    assert rng.random() == other_rng.random()
    for name, x in in_turn[2].items():
        assert torch.equal(at_once[2][name], x)
