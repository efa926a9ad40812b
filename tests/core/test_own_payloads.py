"""What a process knows of its own payloads is what reading them gives, and only that."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.own_payloads import OwnPayloads

UPDATE = {
    "weight": torch.from_numpy(rng_for(1).standard_t(3, (60, 50)).astype(np.float32)),
    "bias": torch.from_numpy(rng_for(2).standard_t(3, 60).astype(np.float32)),
}


@pytest.mark.parametrize("spec", ["top_k(0.02) | quantize(4)", "top_k(1) | quantize(8)"])
@pytest.mark.parametrize("wrapper", ["{}", "error_feedback({})"])
def test_taking_is_reading(spec: str, wrapper: str) -> None:
    compressor = parse(wrapper.format(spec))
    own = OwnPayloads()
    payload, _ = compressor.encode(UPDATE, compressor.init(UPDATE), rng_for(3))
    taken = own.take(payload, compressor, UPDATE)
    assert taken is not None
    parts, by_kind = compressor.read(payload, UPDATE)
    assert taken[1] == by_kind
    assert sum(taken[1].values()) == len(payload)
    assert list(taken[0]) == list(parts)
    for name, part in parts.items():
        assert taken[0][name].dense().numpy().tobytes() == part.dense().numpy().tobytes()
    assert own.take(payload, compressor, UPDATE) is None  # it is given once


def test_nothing_else_is_taken_for_it() -> None:
    compressor, other = parse("top_k(0.02) | quantize(4)"), parse("top_k(0.03) | quantize(4)")
    before, _ = compressor.encode(UPDATE, {}, rng_for(4))
    own = OwnPayloads()
    payload, _ = compressor.encode(UPDATE, {}, rng_for(3))
    changed = bytes((*payload[:-1], payload[-1] ^ 1))
    reshaped = {"weight": UPDATE["weight"].T, "bias": UPDATE["bias"]}
    assert own.take(before, compressor, UPDATE) is None  # nobody had asked
    assert own.take(changed, compressor, UPDATE) is None
    assert own.take(payload, other, UPDATE) is None
    assert own.take(payload, compressor, reshaped) is None
    assert own.take(payload, compressor, UPDATE) is not None


def test_memory_is_bounded() -> None:
    compressor = parse("top_k(0.02) | quantize(4)")
    own = OwnPayloads()
    payloads = [compressor.encode(UPDATE, {}, rng_for(seed))[0] for seed in range(100)]
    kept = [own.take(payload, compressor, UPDATE) is not None for payload in payloads]
    assert kept == [False] * 36 + [True] * 64
