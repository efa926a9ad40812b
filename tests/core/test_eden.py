"""The rotation is orthogonal at every length, and rounding after it errs as theory says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcompress import PayloadError, parse, rng_for
from fedcompress.coders.bits import pack_bits, packed_size, unpack_bits
from fedcompress.rotation import LEAST, blocks_of, rotate, rotate_back, walsh_hadamard
from fedcompress.stages.eden import Eden, _decode_on_device, _encode_on_device
from fedcompress.stages.lloyd_max import levels, thresholds
from fedcompress.streams import Layout

# Mean squared error of the best quantizer of a normal variable (Max, 1960), by bits.
LEAST_ERROR = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.009501, 6: 0.0006442, 8: 4.1185e-5}


def normal(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng_for(seed, purpose="x").standard_normal(n).astype(np.float32))


def nmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).double().square().sum() / x.double().square().sum())


def send(spec: str, x: torch.Tensor, seed: int = 1) -> tuple[bytes, torch.Tensor]:
    compressor = parse(spec)
    payload, _ = compressor.encode({"x": x}, {}, rng_for(seed))
    return payload, compressor.decode(payload, {"x": x})["x"]


@pytest.mark.parametrize("n", [199_210, 1_000_003])
def test_one_bit_at_theory_in_one_bit(n: int) -> None:
    x = normal(n)
    payload, y = send("eden(1) | pack()", x)
    assert nmse(x, y) <= 0.575
    assert len(payload) * 8 / n <= 1.01
    assert parse("eden(1) | pack()").breakdown(payload, {"x": x})["symbols"] == 2 + -(-n // 8)


@pytest.mark.parametrize("bits", LEAST_ERROR)
@pytest.mark.parametrize("n", [5000, 40_000])
def test_error_is_that_of_the_best_quantizer(bits: int, n: int) -> None:
    x = normal(n) ** 3 * 1e-4
    _, nearest = send(f'eden({bits}, scale="least_squares") | pack()', x)
    _, unbiased = send(f"eden({bits}) | pack()", x)
    least = LEAST_ERROR[bits]
    assert nmse(x, nearest) == pytest.approx(least, rel=0.15 if bits == 8 else 0.06)
    assert nmse(x, unbiased) == pytest.approx(least / (1 - least), rel=0.15 if bits == 8 else 0.06)


@pytest.mark.parametrize(
    "name", ["one entry", "two entries", "one row of many", "a heavy tail", "half zero", "constant"]
)
def test_error_does_not_depend_on_the_update(name: str) -> None:
    x = torch.zeros(30_000)
    if name == "one entry":
        x[7] = 3.0
    elif name == "two entries":
        x[[0, 9000]] = 1.0
    elif name == "one row of many":
        x[20_000:20_300] = normal(300)
    elif name == "a heavy tail":
        x = normal(30_000) ** 9
    elif name == "half zero":
        x[15_000:] = normal(15_000)
    else:
        x[:] = -0.3
    assert nmse(x, send("eden(1) | pack()", x)[1]) == pytest.approx(0.571, abs=0.02)


@pytest.mark.parametrize("n", [5, 16, 23, 64])
def test_unbiased_over_ten_thousand_rotations(n: int) -> None:
    x = normal(n, seed=n) ** 3
    stage, like = Eden(1), Layout.of(x)
    draws = torch.stack(
        [stage.decode(*stage.encode(x, rng_for(0, round=i)), like) for i in range(10_000)]
    ).double()
    standard_error = draws.std(0) / 100
    assert bool(((draws.mean(0) - x).abs() <= 4 * standard_error + 1e-6 * x.abs()).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 8), st.sampled_from([1e-30, 1.0, 1e30]))
def test_small_arrays(n: int, bits: int, size: float) -> None:
    x = normal(n, seed=n) * size
    payload, y = send(f"eden({bits}) | pack()", x)
    assert nmse(x / size, y / size) < (1e-9 if n < LEAST else 1.2)
    assert len(payload) <= 16 + 3 + (n * bits + 7) // 8 + (4 * n + 3 if n < LEAST else 16)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70_000), st.integers(0, (1 << 64) - 1))
def test_rotation_keeps_the_norm_and_is_undone(n: int, seed: int) -> None:
    x = normal(n)
    y = rotate(x, seed)
    assert float(y.double().norm()) == pytest.approx(float(x.double().norm()), rel=1e-5)
    torch.testing.assert_close(rotate_back(y, seed), x, rtol=0, atol=2e-5)
    ends = blocks_of(n)
    assert (ends[0, 0], ends[-1, 1]) == (0, n)
    assert np.array_equal(ends[1:, 0], ends[:-1, 1])


@pytest.mark.parametrize("levels_of", range(11))
def test_hadamard_is_sylvesters(levels_of: int) -> None:
    from fedcompress.kernels.hadamard import walsh_hadamard as compiled

    matrix = torch.ones(1, 1)
    for _ in range(levels_of):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    x = torch.randint(-9, 9, (matrix.shape[0],)).float()
    assert torch.equal(walsh_hadamard(x[None])[0], matrix @ x)
    out = x.clone()
    compiled(out.numpy(), np.empty(x.numel(), np.float32))
    assert torch.equal(out, matrix @ x)


@pytest.mark.parametrize("n", [3, 16, 33, 1000, 16_384, 40_000, 65_536])
@pytest.mark.parametrize("bits", [1, 3])
def test_a_device_gives_what_the_host_gives(n: int, bits: int) -> None:
    x = normal(n)
    symbols, side = Eden(bits).encode(x, rng_for(5))
    seed = int(rng_for(5).integers(0, 1 << 64, dtype=np.uint64))
    there, scales = _encode_on_device(x, seed, bits, nearest=False)
    assert int((symbols != there).sum()) <= n // 10_000  # a sum may round otherwise there
    torch.testing.assert_close(side[-1].values, scales.float())
    decoded = _decode_on_device(symbols, seed, bits)
    from fedcompress.stages.eden import _decode_on_host

    assert torch.equal(decoded, _decode_on_host(symbols, seed, bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_meet_lloyds_conditions(bits: int) -> None:
    level, ends = levels(bits).astype(np.float64), thresholds(bits).astype(np.float64)
    normals = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
    edges = torch.from_numpy(np.concatenate([[-40.0], ends, [40.0]]))
    density, share = normals.log_prob(edges).exp(), normals.cdf(edges).diff()
    np.testing.assert_allclose(level, -(density.diff() / share).numpy(), atol=3e-6)
    np.testing.assert_allclose(ends, (level[1:] + level[:-1]) / 2, atol=1e-6)


def test_symbols_that_no_encoder_sends_are_refused() -> None:
    x = normal(100)
    symbols, side = Eden(2).encode(x, rng_for(1))
    for wrong in (-1, 4):
        symbols[50] = wrong
        with pytest.raises(PayloadError, match="more than 2 bits"):
            Eden(2).decode(symbols, side, Layout.of(x))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 62), st.lists(st.integers(0, (1 << 62) - 1), max_size=40))
def test_packed_bits_are_the_integers_one_after_another(width: int, values: list[int]) -> None:
    values = [value % (1 << width) for value in values]
    data = pack_bits(np.array(values, np.int64), width)
    text = "".join(f"{value:0{width}b}" for value in values) if width else ""
    expected = int(text.ljust(len(data) * 8, "0") or "0", 2).to_bytes(len(data), "big")
    assert data == expected
    assert len(data) == packed_size(len(values), width)
    assert unpack_bits(memoryview(data), len(values), width).tolist() == values
    if width < 31:
        assert pack_bits(np.array(values, np.int32), width) == data
        assert unpack_bits(memoryview(data), len(values), width, np.int32).tolist() == values
