"""A hundred thousand damaged payloads: each decodes or raises the package's own error."""

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from fedcompress import PayloadError, parse, rng_for
from fedcompress.wire import HEADER_BYTES, write_varint

SPECS = [
    "raw()",
    "lossless()",
    "entropy()",
    "quantize(step=0.2) | entropy()",
    "quantize(4) | pack()",
    "quantize(5) | lossless()",
    'top_k(0.1) | cast("float16") | entropy()',
    "top_k(0.05) | sign() | pack()",
    "top_k(0.3) | raw()",
    "threshold(1.0) | ternary() | lossless()",
    "random_k(0.1) | quantize(4) | entropy()",
    "n_of_m(2, 4) | quantize(3) | entropy()",
    'top_rows(0.3) | cast("float16") | entropy()',
    "global_top_k(0.08) | sign() | entropy()",
    "dgc(0.06, values=raw())",
    'error_feedback(route({"b": raw()}, default=top_k(0.1) | quantize(3)))',
    "eden(3) | pack()",
    "power_sgd(2, rest=eden(1) | entropy())",
    "count_sketch(3, 40, 9)",
]
CASES = 100_000 // len(SPECS) + 1


def model() -> dict[str, torch.Tensor]:
    draw = rng_for(0, purpose="damage")
    return {
        "w": torch.from_numpy((draw.standard_normal((30, 20)) ** 3).astype(np.float32)),
        "b": torch.from_numpy(draw.standard_normal(20).astype(np.float32)),
        "steps": torch.tensor(3),
    }


def with_checksum(payload: bytearray) -> bytes:
    """Repair the checksum, as one who forges payloads would."""
    value = zlib.crc32(payload[HEADER_BYTES:], zlib.crc32(payload[:12]))
    payload[12:16] = value.to_bytes(4, "little")
    return bytes(payload)


def damage(payload: bytes, draw: np.random.Generator) -> bytes:
    out = bytearray(payload)
    kind = draw.integers(5)
    start = int(draw.integers(HEADER_BYTES, len(out)))
    if kind == 0:
        out = out[: int(draw.integers(0, len(out)))]
    elif kind == 1:
        out[int(draw.integers(len(out)))] ^= 1 << int(draw.integers(8))
    elif kind == 2:
        for _ in range(int(draw.integers(1, 9))):
            out[int(draw.integers(HEADER_BYTES, len(out)))] = int(draw.integers(256))
    elif kind == 3:
        del out[start : start + int(draw.integers(1, 9))]
    else:
        out[start:start] = draw.bytes(int(draw.integers(1, 9)))
    if len(out) > HEADER_BYTES and draw.random() < 0.8:
        return with_checksum(out)
    return bytes(out)


@pytest.mark.parametrize("spec", SPECS)
def test_damaged_payloads(spec: str) -> None:
    like = model()
    compressor = parse(spec)
    payload, _ = compressor.encode(like, compressor.init(like), rng_for(1))
    draw = rng_for(2, purpose=spec)
    refused = 0
    for _ in range(CASES):
        damaged = damage(payload, draw)
        try:
            decoded = compressor.decode(damaged, like)
        except PayloadError:
            refused += 1
            continue
        if all(part.is_finite() for part in compressor.read(damaged, like)[0].values()):
            finite = (x.isfinite().all() for x in decoded.values() if x.is_floating_point())
            assert all(map(bool, finite))
        assert {k: (x.shape, x.dtype) for k, x in decoded.items()} == {
            k: (x.shape, x.dtype) for k, x in like.items()
        }
    assert refused > CASES // 10


@pytest.mark.parametrize("spec", SPECS)
def test_a_claim_of_more_than_the_model_allocates_nothing(spec: str) -> None:
    """Sections that claim sizes of many gigabytes are refused before anything is allocated."""
    like = model()
    compressor = parse(spec)
    payload, _ = compressor.encode(like, compressor.init(like), rng_for(1))
    draw = rng_for(3, purpose=spec)
    bombs = [payload[:HEADER_BYTES] + write_varint(1 << 40) + payload[HEADER_BYTES:]]
    for _ in range(300):
        at = int(draw.integers(HEADER_BYTES, len(payload)))
        bombs.append(
            payload[:at] + write_varint(int(draw.integers(1, 1 << 62))) + payload[at + 1 :]
        )
    tracemalloc.start()
    for bomb in bombs:
        with contextlib.suppress(PayloadError):
            compressor.decode(with_checksum(bytearray(bomb)), like)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000  # a model of 2.5 kB, a Zstandard window, and the bombs


def test_zstandard_bomb() -> None:
    """A frame of a gigabyte of zeros in a section for three kilobytes is refused unexpanded."""
    import zstandard

    like = {"w": torch.zeros(30, 20)}
    compressor = parse("lossless()")
    payload, _ = compressor.encode(like, {}, rng_for(1))
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    bomb = payload[:HEADER_BYTES] + write_varint(len(frame)) + frame
    tracemalloc.start()
    with pytest.raises(PayloadError, match="the section says"):
        compressor.decode(with_checksum(bytearray(bomb)), like)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: b"xx" + p[2:], "not b'fc'"),
        (lambda p: p[:2] + b"\x09" + p[3:], "wire version 9"),
        (lambda p: p[:20] + bytes([p[20] ^ 1]) + p[21:], "checksum"),
        (lambda p: p[:5], "cut short"),
        (lambda p: with_checksum(bytearray(p + b"\0")), "left over"),
    ],
)
def test_what_the_errors_say(change, says: str) -> None:  # type: ignore[no-untyped-def]
    like = model()
    payload, _ = parse("quantize(4)").encode(like, {}, rng_for(1))
    with pytest.raises(PayloadError, match=says):
        parse("quantize(4)").decode(change(payload), like)


def test_another_spec_and_another_layout_are_refused() -> None:
    like = model()
    payload, _ = parse("quantize(4)").encode(like, {}, rng_for(1))
    with pytest.raises(PayloadError, match="same spec"):
        parse("quantize(5)").decode(payload, like)
    with pytest.raises(PayloadError, match="other names, shapes or dtypes"):
        parse("quantize(4)").decode(
            payload, {"v": like["w"], "b": like["b"], "steps": like["steps"]}
        )
