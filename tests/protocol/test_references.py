"""Clients of one process share decoded references, and get what decoding would give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedcompress import parse, protocol, rng_for
from fedcompress.compressor import Compressor
from fedcompress.dense import share_record
from fedcompress.references import _Known, arrays_of, known_reference

DOWNLINK = "top_k(0.1) | quantize(4)"


def model(seed: int) -> dict[str, torch.Tensor]:
    draw = rng_for(seed)
    return {"w": torch.from_numpy(draw.standard_normal((30, 20)).astype(np.float32))}


def payload(seed: int) -> bytes:
    return parse(DOWNLINK).encode(model(seed), {}, rng_for(seed))[0]


def test_equal_starts_and_payloads_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    read = Compressor.read

    def counted(self: Compressor, data: bytes, like: dict[str, torch.Tensor], *more: Any) -> object:
        decoded.append(data)
        return read(self, data, like, *more)

    monkeypatch.setattr(Compressor, "read", counted)
    compressor = parse(DOWNLINK)
    start, update = protocol.tensors_to_record(model(101)), payload(102)
    ends = [
        known_reference(7, record).after(compressor, update)
        for record in (start, share_record(start), protocol.tensors_to_record(model(101)))
    ]
    assert len(decoded) == 1
    expected = protocol.advance(model(101), compressor.decode(update, model(101)))
    for end in ends:
        assert end.version == 8
        assert torch.equal(end.tensors["w"], expected["w"])
        assert end.checksum == protocol.checksum(expected)
        assert protocol.record_to_tensors(end.record).keys() == expected.keys()


def test_another_start_or_payload_gives_its_own_end() -> None:
    compressor = parse(DOWNLINK)
    for seed, sent in ((201, 1), (202, 1), (201, 2)):
        record = protocol.tensors_to_record(model(seed))
        end = known_reference(3, record).after(compressor, payload(sent))
        expected = protocol.advance(model(seed), compressor.decode(payload(sent), model(seed)))
        assert torch.equal(end.tensors["w"], expected["w"])


def test_memory_is_bounded_and_what_was_used_last_stays() -> None:
    models = [arrays_of(protocol.tensors_to_record(model(i))) for i in range(6)]
    size = sum(x.numel() * x.element_size() for x in models[0].values())
    known = _Known(3 * size)
    first = [known.find(i, arrays) for i, arrays in enumerate(models)]
    assert known.find(5, models[5]) is first[5]
    assert known.find(3, models[3]) is first[3]
    assert known.find(0, models[0]) is not first[0]
    tight = _Known(0)
    pair = [tight.find(i, models[i]) for i in range(2)]
    assert [tight.find(i, models[i]) for i in range(2)] == pair
