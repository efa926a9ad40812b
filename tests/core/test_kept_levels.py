"""Selecting and rounding in one call gives what one after the other gives, to the bit."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from fedcompress import parse, rng_for
from fedcompress.chain import Chain
from fedcompress.compressor import Compressor
from fedcompress.errors import NotFiniteError, PayloadError
from fedcompress.kept_levels import KeptLevels, Plan, plan_of
from fedcompress.stage import Stage
from fedcompress.stages.top_k import TopK
from fedcompress.wire import Framed, Section, write_payload

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
    drawn_next = rng.random()
    for walk in (_by_array, _by_stage):
        walk(monkeypatch)
        other_rng = rng_for(1)
        in_turn = compressor.encode_and_decode(update, {}, other_rng)
        assert at_once[0] == in_turn[0]
        assert drawn_next == other_rng.random()
        for name, x in in_turn[2].items():
            assert at_once[2][name].shape == x.shape
            assert torch.equal(at_once[2][name], x)


def _by_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chain code array after array."""
    monkeypatch.setattr(Chain, "plan_of", lambda _self, _update: None)


def _by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it also apply stage after stage."""
    monkeypatch.setattr(TopK, "encode_through", Stage.encode_through)


def _booked(sections: Iterable[Section | Framed]) -> tuple[bytes, Counter[str]]:
    sections = list(sections)
    sizes = sum((Counter(dict(section.bytes_by_kind)) for section in sections), Counter())
    return b"".join(section.framed for section in sections), sizes


SHAPES: list[tuple[int, ...]] = [
    *[(1,), (2,), (70,), (5000,), (30_000,), (2, 3000), (3, 1), (1, 4000), (120, 784), (64, 120)],
    *[(10, 64), (200, 200), (5, 5, 1), (40, 30, 1), (6, 1, 5, 5), (16, 8, 3, 3), (300, 2)],
]


@pytest.mark.parametrize("fraction", [0.0003, 0.002, 0.01, 0.05, 0.08])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_one_call_codes_as_the_coders_do(
    monkeypatch: pytest.MonkeyPatch, fraction: float, bits: int
) -> None:
    """To the byte, of rows and columns that are kept alike and of such that are not."""
    compressor = parse(f"top_k({fraction}) | quantize({bits})")
    left_over: list[tuple[int, ...]] = []
    other_way = KeptLevels._sections_of

    def noting(self: KeptLevels, i: int) -> tuple[Section, Section, Section]:
        left_over.append(self.plan.layout.shapes[i])
        return other_way(self, i)

    monkeypatch.setattr(KeptLevels, "_sections_of", noting)
    for turn in range(6):
        draw = rng_for(turn, purpose=f"{fraction} {bits}")
        update = {
            f"{i}": torch.from_numpy(_uneven(draw, shape, spread=turn / 2, shift=turn % 3))
            for i, shape in enumerate(SHAPES)
        }
        plan = plan_of(compressor.stages, compressor.coder, update)
        assert plan is not None
        kept = compressor.keep(plan, plan.gather(update), rng_for(turn))
        at_once = kept.sections()
        in_turn = [s for i in range(len(SHAPES)) for s in other_way(kept, i)]
        assert _booked(at_once) == _booked(in_turn)
    if bits <= 8:  # kernels of taps are left over, what is dense, and what may have a histogram
        assert len(left_over) < 6 * len(SHAPES) // 2


def _uneven(
    draw: np.random.Generator, shape: tuple[int, ...], spread: float, shift: float
) -> np.ndarray:
    x = draw.standard_t(3, size=shape) + shift
    for axis in range(len(shape)):
        scales = [-1 if i == axis else 1 for i in range(len(shape))]
        x = x * np.exp(spread * draw.standard_normal(shape[axis])).reshape(scales)
    return np.asarray(x.astype(np.float32))


@pytest.mark.parametrize("size", [2, 7, 33, 64, 640])
def test_a_few_positions_are_one_number(size: int) -> None:
    """Any few positions of any small array, up to where their number passes 63 bits."""
    draw = rng_for(size)
    for count in range(1, min(size, 33)):
        kept = np.sort(draw.permutation(size)[:count])
        x = torch.zeros(size)
        x[kept] = torch.from_numpy(draw.integers(1, 8, count).astype(np.float32))
        compressor = parse(f"top_k({count / size}) | quantize(4, rounding='nearest')")
        payload, _, decoded = compressor.encode_and_decode({"x": x}, {}, rng_for(0))
        assert torch.equal(compressor.decode(payload, {"x": x})["x"], decoded["x"])
        assert set(np.flatnonzero(decoded["x"]).tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("wrapper", ["{}", "error_feedback({})"])
@pytest.mark.parametrize("kind", KINDS)
def test_rounds_are_equal(monkeypatch: pytest.MonkeyPatch, wrapper: str, kind: str) -> None:
    """Payloads, residuals, and what a process keeps of what it sent, over several rounds."""
    compressor = parse(wrapper.format("top_k(0.02) | quantize(4)"))
    draw = rng_for(5)
    shapes = {"a": (40, 25), "b": (40,), "c": (3, 5, 3, 3), "d": (1,)}
    updates = [
        {
            name: torch.from_numpy(
                # A third, so that a residual of huge entries stays finite over the rounds.
                (KINDS[kind](draw.standard_t(3, size=math.prod(shape)).astype(np.float32)) * 0.3)
                .astype(np.float32)
                .reshape(shape)
            )
            for name, shape in shapes.items()
        }
        for _ in range(3)
    ]
    states = [compressor.init(updates[0])] * 2
    for server_round, update in enumerate(updates):
        encoded = [
            compressor.encode_sections(update, states[0], rng_for(1, round=server_round), False)
        ]
        with monkeypatch.context() as patched:
            _by_array(patched)
            encoded.append(
                compressor.encode_sections(update, states[1], rng_for(1, round=server_round), False)
            )
        assert _booked(encoded[0].sections) == _booked(encoded[1].sections)
        states = [one.state for one in encoded]
        assert states[0].keys() == states[1].keys()
        for name, x in states[1].items():
            assert states[0][name].numpy().tobytes() == x.numpy().tobytes()
        payload = write_payload(encoded[0].sections, compressor.spec, update)
        parts = encoded[0].parts
        assert parts is not None
        for name, part in compressor.read(payload, update)[0].items():
            sums = [torch.ones(shapes[name]) for _ in range(2)]
            part.add_to(sums[0], 0.3)
            parts[name].add_to(sums[1], 0.3)
            assert sums[0].numpy().tobytes() == sums[1].numpy().tobytes()
            assert parts[name].dense().numpy().tobytes() == part.dense().numpy().tobytes()
            assert parts[name].is_finite()
            assert part.is_finite()


@pytest.mark.parametrize("wrapper", ["{}", "error_feedback({})"])
def test_what_is_not_finite_is_named(wrapper: str) -> None:
    compressor = parse(wrapper.format("top_k(0.02) | quantize(4)"))
    for bad in (np.nan, np.inf, -np.inf):
        update = {"a": torch.ones(40, 25), "b": torch.ones(4)}
        state = compressor.init(update)
        update["b"][1] = bad
        with pytest.raises(NotFiniteError, match=r"'b'.*top_k"):
            compressor.encode(update, state, rng_for(1))
        for residual in state.values():
            assert not residual.any()


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_payloads_are_read_at_once_as_array_by_array(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """What is damaged too: the same is read, or refused for the same reason."""
    compressor = parse(f"error_feedback(top_k(0.03) | quantize({bits}))")
    draw = rng_for(bits)
    update = {
        f"{i}": torch.from_numpy(_uneven(draw, shape, spread=1, shift=0))
        for i, shape in enumerate([(1,), (70,), (4000,), (40, 90), (10, 8), (6, 2, 3, 3)])
    }
    payload, _ = compressor.encode(update, compressor.init(update), rng_for(0))
    for turn in range(400):
        damaged = bytearray(payload)
        if turn:
            for place in draw.integers(16, len(payload), size=turn % 3 + 1):
                damaged[place] = draw.integers(256)
        damaged[12:16] = zlib.crc32(damaged[16:], zlib.crc32(damaged[:12])).to_bytes(4, "little")
        read = [_read(compressor, bytes(damaged), update)]
        with monkeypatch.context() as patched:
            patched.setattr(Plan, "read", lambda _self, _reader: None)
            read.append(_read(compressor, bytes(damaged), update))
        assert read[0] == read[1]


def _read(compressor: Compressor, payload: bytes, like: dict[str, torch.Tensor]) -> object:
    try:
        parts, by_kind = compressor.read(payload, like)
    except PayloadError as error:
        return str(error)
    added = {name: torch.ones(x.shape) for name, x in like.items()}
    for name, part in parts.items():
        part.add_to(added[name], 0.3)
    dense = {name: part.dense().numpy().tobytes() for name, part in parts.items()}
    return dense, {name: x.numpy().tobytes() for name, x in added.items()}, by_kind
