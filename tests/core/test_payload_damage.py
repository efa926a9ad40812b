"""Faults that damaged payloads have found, bombs, and what the errors say.

Damage at random is the business of `tests/fuzz`.
"""

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from fedcompress import PayloadError, parse, rng_for
from fedcompress.coders.adaptive import AdaptiveDecoder, AdaptiveEncoder
from fedcompress.coders.index_sets import decode_index_set
from fedcompress.coders.symbols import encode_integers
from fedcompress.coders.tables import take_tables
from fedcompress.registry import stages
from fedcompress.wire import HEADER_BYTES, Section, write_payload, write_varint

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
    compressor.decode(payload, like)  # which loads or compiles kernels: that does not count
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


def test_contexts_before_the_first_table_have_one() -> None:
    """Kernels look tables up unchecked: a context that names none must not lie outside."""
    contexts = 40
    side = AdaptiveEncoder()
    side.put(np.arange(contexts) == contexts - 1, 0)  # the last one is the first to have a table
    side.put_few(1, 0)  # which holds no magnitude but zero
    side.put(np.zeros(3, np.int64), 2, np.array([0, 4, 4]))
    tables = take_tables(AdaptiveDecoder(memoryview(side.bytes()), 20), contexts, 5, 1, 0)
    assert len(tables.levels) == 1
    assert tables.of_context.tolist() == [0] * contexts


def test_patterns_that_there_are_not_are_refused_when_read() -> None:
    """A server adds up what it has read; nothing may be refused by then."""
    compressor = parse("n_of_m(2, 4) | raw()")
    like = {"w": torch.ones(8)}
    patterns = np.array([0, 6], "<i4").tobytes()  # of which there are six
    values = np.ones(4, "<f4").tobytes()
    sections = [Section("symbols", patterns), Section("floats", values)]
    with pytest.raises(PayloadError, match="a pattern that 2 of 4 has not"):
        compressor.read(write_payload(sections, str(compressor), like), like)


@pytest.mark.parametrize("name", [n for n, kind in stages().items() if kind.takes == "floats"])
def test_a_stage_behind_a_selection_of_nothing(name: str) -> None:
    """Where no entry is kept, what follows meets empty arrays, which a sender may also claim."""
    settings = ["", "0.5", "2", "1, 2", "2, 2", '"float16"']
    specs = [f"threshold(3.0) | {name}({setting}) | entropy()" for setting in settings]
    compressor = next(c for c in map(parse_or_none, specs) if c is not None)
    for dtype in (torch.float32, torch.float64):
        like = {"x": torch.rand(7, 3, dtype=dtype)}
        payload, _ = compressor.encode(like, {}, rng_for(1))
        part = compressor.read(payload, like)[0]["x"]
        total = torch.zeros(7, 3, dtype=dtype)
        part.add_to(total, 1.0)
        assert part.is_finite()
        assert not part.dense().any()
        assert not total.any()


def test_no_bitmap_is_of_no_entries() -> None:
    with pytest.raises(PayloadError, match="no known coding"):
        decode_index_set(memoryview(write_varint(34) + bytes(1) + encode_integers(np.zeros(0))), 0)


def parse_or_none(spec: str):  # type: ignore[no-untyped-def]
    try:
        return parse(spec)
    except ValueError:
        return None
