"""Hostile archives: heads that say anything, payloads changed, everything checksummed."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from fedcompress.errors import PayloadError
from fedcompress.wire import read_varint, write_varint
from simulations.export.archive import MAGIC, MOST_RATIO, Head, archive_bytes, model_of, read_bytes
from simulations.export.levels import stored_arrays
from simulations.models import build_model

CASES = 1500
_LENGTH_AT = len(MAGIC) + 5
_MOST_SECONDS = 2.0
_ODD: list[Any] = [
    *(None, True, -1, 0, 1, 7, 1 << 31, 1 << 62, 1 << 70, 0.5, 1e300, -0.0, "", "x", [], {}),
    *([1], [[1]], ["w", "float32", [3]], {"name": "mlp"}, "raw()", "delta(quantize(4))", "int8"),
    *("budget(bytes=100)", "error_feedback(sign())", "top_k(0.1) | quantize(4) | entropy()"),
]


def valid() -> list[bytes]:
    """Archives of small models in each of the ways that they are written."""
    data = {"name": "digits", "task": "image", "shape": [1, 8, 8], "num_classes": 10}
    found = []
    for name, spec, kind in (
        ("mlp", 'codebook(16, zero="yes") | entropy()', None),
        ("lenet", "lossless()", "int8"),
        ("resnet", 'route({"ndim<2": lossless()}, default=codebook(4))', None),
        ("mlp", "budget(bytes=300)", None),
    ):
        model = build_model(name, (1, 8, 8), 10, seed=0, hidden=(12,), width=0.25)
        settings = {"name": name, "hidden": [12], "width": 0.25}
        head = Head(model=settings, data=data, spec=spec)
        found.append(archive_bytes(stored_arrays(model, kind), head))
    return found


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    length, start = read_varint(memoryview(content), _LENGTH_AT)
    return json.loads(zstandard.decompress(content[start : start + length])), content[
        start + length :
    ]


def joined(head: object, payload: bytes) -> bytes:
    packed = zstandard.compress(json.dumps(head).encode())
    checksum = zlib.crc32(packed).to_bytes(4, "little")
    return MAGIC + b"\x01" + checksum + write_varint(len(packed)) + packed + payload


def changed(value: Any, draw: random.Random) -> Any:
    """Change a value of JSON somewhere inside."""
    if draw.random() < 0.25 or not isinstance(value, dict | list) or not value:
        if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.6:
            return value + draw.choice([-1, 1, 2, 1000])
        return draw.choice(_ODD)
    copied = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(copied)) if isinstance(copied, dict) else draw.randrange(len(copied))
    kind = draw.random()
    if kind < 0.1:
        del copied[key]
    elif kind < 0.2 and isinstance(copied, list):
        copied.insert(key, copied[draw.randrange(len(copied))])
    else:
        copied[key] = changed(copied[key], draw)
    return copied


def with_checksum(payload: bytes) -> bytes:
    head = payload[:12]
    checksum = zlib.crc32(payload[16:], zlib.crc32(head))
    return head + checksum.to_bytes(4, "little") + payload[16:]


def hostile(seeds: list[bytes], draw: random.Random) -> bytes:
    head, payload = parts(draw.choice(seeds))
    kind = draw.random()
    if kind < 0.6:
        for _ in range(draw.choice([1, 1, 2, 4])):
            head = changed(head, draw)
    elif kind < 0.75:
        payload = parts(draw.choice(seeds))[1]
    else:
        damaged = bytearray(payload)
        for _ in range(draw.choice([1, 1, 3])):
            damaged[draw.randrange(16, len(damaged))] ^= 1 << draw.randrange(8)
        payload = with_checksum(bytes(damaged))
    content = joined(head, payload)
    if draw.random() < 0.1:
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        content = bytes(damaged[: draw.randrange(1, len(damaged) + 1)])
    return content


@pytest.mark.slow
def test_hostile_archives_are_read_or_refused() -> None:
    seeds = valid()
    ended: Counter[str] = Counter()
    for content in seeds:
        model_of(*read_bytes(content))  # what compiles, compiles now
    for case in range(CASES):
        draw = random.Random(case)
        content = hostile(seeds, draw)
        measured = case % 20 == 0
        if measured:
            tracemalloc.start()
        started = time.thread_time()
        try:
            arrays, head = read_bytes(content)
            model = model_of(arrays, head)
            ended["read"] += 1
            assert all(isinstance(x, torch.Tensor) for x in arrays.values())
            assert model.state_dict().keys() == arrays.keys()
        except PayloadError:
            ended["refused"] += 1
        except Exception as error:  # noqa: BLE001  any other error is what is looked for
            pytest.fail(f"case {case}: {type(error).__name__}: {error}")
        finally:
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < MOST_RATIO * len(content) + 4_000_000, f"case {case}"
        assert time.thread_time() - started < _MOST_SECONDS, f"case {case}"
    assert min(ended["read"], ended["refused"]) > CASES // 50, ended
    assert np.isfinite(sum(ended.values()))
